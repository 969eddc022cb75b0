package redissync

import (
	"errors"
	"fmt"
	"strconv"
	"time"
)

// gone stands for the expiry of a key that doesn't exist.
const gone = -2

// heldUp is how long a server may take over a transaction's time stamps before the expiries reckoned from them are too inexact.
const heldUp = 2 * time.Millisecond

// errHeldUp says that the server was busy with something else while it was asked for times to live: ask again.
var errHeldUp = errors.New("the server was held up meanwhile")

// expiryCommands ask, within a transaction, for the expiries of keys; expiriesOf understands the replies. Before 7.0 servers tell only
// what is left of them, so that the time is asked for just before and after.
func expiryCommands(v version, keys []string) []command {
	cmds := make([]command, 0, len(keys)+2)
	if v >= 70000 {
		for _, k := range keys {
			cmds = append(cmds, command{"PEXPIRETIME", k})
		}
		return cmds
	}
	cmds = append(cmds, command{"TIME"})
	for _, k := range keys {
		cmds = append(cmds, command{"PTTL", k})
	}
	return append(cmds, command{"TIME"})
}

// expiriesOf reads what a transaction that began with expiryCommands replied for n keys: milliseconds since 1970 by the server's clock, 0
// for never, gone. It returns the replies that come after as well. errHeldUp asks for another try.
func expiriesOf(x []value, v version, n int) ([]int64, []value, error) {
	var now int64
	if v < 70000 {
		if len(x) < n+2 {
			return nil, nil, fmt.Errorf("EXEC gave %d replies, expected at least %d", len(x), n+2)
		}
		before, after := serverTime(x[0]), serverTime(x[n+1])
		if before.IsZero() || after.IsZero() {
			return nil, nil, errors.New("TIME: unexpected reply")
		}
		if after.Sub(before).Abs() > heldUp {
			return nil, nil, errHeldUp
		}
		now = before.UnixMilli()
		x = append(x[1:n+1:n+1], x[n+2:]...)
	}
	if len(x) < n {
		return nil, nil, fmt.Errorf("EXEC gave %d replies, expected at least %d", len(x), n)
	}
	out := make([]int64, n)
	for i := range out {
		if err := x[i].err(); err != nil {
			return nil, nil, err
		}
		switch left := x[i].num; {
		case left == gone:
			out[i] = gone
		case left < 0:
		case v >= 70000:
			out[i] = left
		default:
			// A time to live of 0 with a value is a key in its last millisecond: as an absolute time it's in the past, and gone.
			out[i] = now + left
		}
	}
	return out, x[n:], nil
}

// serverTime reads TIME's reply; the zero time if it is none.
func serverTime(v value) time.Time {
	if len(v.items) != 2 {
		return time.Time{}
	}
	sec, err1 := strconv.ParseInt(v.items[0].str, 10, 64)
	usec, err2 := strconv.ParseInt(v.items[1].str, 10, 64)
	if err1 != nil || err2 != nil {
		return time.Time{}
	}
	return time.UnixMicro(sec*1e6 + usec)
}
