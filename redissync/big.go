package redissync

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// bigBytes is the size in memory from which a key is carried over in pieces: DUMP and RESTORE of a whole hold both servers up.
const bigBytes = 16 << 20

// pieceBytes is about what one command of a piecewise copy moves.
const pieceBytes = 1 << 20

func (o Options) bigBytes() int64 {
	if o.BigBytes > 0 {
		return o.BigBytes
	}
	return bigBytes
}

// pieces describes how values of a type are read and written piece by piece.
type pieces struct {
	length command // how many elements
	scan   string  // the cursor command, for types without order
	span   string  // the command that takes first and last index, for types with one
	write  string
	pairs  bool // an element is two arguments
}

func piecesOf(kind, key string) (pieces, bool) {
	switch kind {
	case "string":
		return pieces{length: command{"STRLEN", key}, span: "GETRANGE", write: "APPEND"}, true
	case "list":
		return pieces{length: command{"LLEN", key}, span: "LRANGE", write: "RPUSH"}, true
	case "set":
		return pieces{length: command{"SCARD", key}, scan: "SSCAN", write: "SADD"}, true
	case "hash":
		return pieces{length: command{"HLEN", key}, scan: "HSCAN", write: "HSET", pairs: true}, true
	case "zset":
		return pieces{length: command{"ZCARD", key}, span: "ZRANGE", write: "ZADD", pairs: true}, true
	}
	return pieces{}, false
}

// each hands a value's elements to f piece by piece, as arguments of the writing command; while the value changes, some may be
// missing or come twice.
func (p pieces) each(ctx context.Context, s *session, db int, key, kind string, size int64, f func(args []string) error) error {
	ask := func(args ...string) (value, error) {
		r, err := s.exec(ctx, db, []unit{{key, []command{args}}})
		if err != nil {
			return value{}, err
		}
		if err := r[0][0].err(); err != nil {
			return value{}, fmt.Errorf("%s %s: %w: %w", args[0], show(key), errMoved, err)
		}
		return r[0][0], nil
	}
	n, err := ask(p.length...)
	if err != nil {
		return err
	}
	count := max(1, min(1000, pieceBytes*n.num/max(size, 1)))
	if kind == "string" {
		count = pieceBytes
	}
	give := func(v value) error {
		args := v.strings()
		if kind == "string" {
			args = []string{v.str}
		}
		if kind == "zset" {
			for i := 0; i+1 < len(args); i += 2 {
				args[i], args[i+1] = args[i+1], args[i]
			}
		}
		if len(args) == 0 {
			return nil
		}
		return f(args)
	}
	if p.scan != "" {
		for cursor := "0"; ; {
			v, err := ask(p.scan, key, cursor, "COUNT", strconv.FormatInt(count, 10))
			if err != nil {
				return err
			}
			if len(v.items) != 2 {
				return fmt.Errorf("%s %s: unexpected reply", p.scan, show(key))
			}
			if err := give(v.items[1]); err != nil {
				return err
			}
			if cursor = v.items[0].str; cursor == "0" {
				return nil
			}
		}
	}
	for at := int64(0); at < n.num; at += count {
		cmd := command{p.span, key, strconv.FormatInt(at, 10), strconv.FormatInt(at+count-1, 10)}
		if kind == "zset" {
			cmd = append(cmd, "WITHSCORES")
		}
		v, err := ask(cmd...)
		if err != nil {
			return err
		}
		if err := give(v); err != nil {
			return err
		}
	}
	return nil
}

// standing is a key's type and expiry.
type standing struct {
	kind    string
	expires int64
}

func stand(ctx context.Context, s *session, v version, db int, key string) (standing, error) {
	cmds := append([]command{{"MULTI"}}, expiryCommands(v, []string{key})...)
	cmds = append(cmds, command{"TYPE", key}, command{"EXEC"})
	for {
		r, err := s.exec(ctx, db, []unit{{key, cmds}})
		if err != nil {
			return standing{}, err
		}
		last := r[0][len(cmds)-1]
		if err := last.err(); err != nil {
			return standing{}, fmt.Errorf("read type and expiry of %s: %w", show(key), err)
		}
		expires, rest, err := expiriesOf(last.items, v, 1)
		if errors.Is(err, errHeldUp) {
			continue
		}
		if err != nil || len(rest) != 1 {
			return standing{}, errors.Join(err, fmt.Errorf("read type and expiry of %s", show(key)))
		}
		if expires[0] == gone {
			return standing{kind: "none"}, nil
		}
		return standing{kind: rest[0].str, expires: expires[0]}, nil
	}
}

// copyBig carries a key over in pieces: into a key of our own, which then takes the place of the destination's. If the key changes
// meanwhile, the event has marked it again, and the copy after the last change is exact. It tells whether it did anything: some
// types can't be taken apart.
func (f *flow) copyBig(ctx context.Context, origin, destination *session, v version, id keyID, size int64, offset time.Duration) (bool, error) {
	before, err := stand(ctx, origin, v, id.db, id.key)
	if err != nil {
		return false, err
	}
	p, ok := piecesOf(before.kind, id.key)
	if !ok || before.kind == "hash" && f.fieldExpiry() { // fields may have expiries of their own, which HSCAN doesn't tell
		return false, nil
	}
	temporary := f.pair.o.temporaryKey(id.key)
	if err := destination.enter(ctx, id.db); err != nil {
		return false, err
	}
	run := func(cmds ...command) error {
		f.count(cmds)
		r, err := destination.exec(ctx, id.db, []unit{{temporary, cmds}})
		if err != nil {
			return err
		}
		for i, v := range r[0] {
			if err := v.err(); err != nil {
				return fmt.Errorf("%s: %w", cmds[i][0], err)
			}
		}
		return nil
	}
	if err := run(command{"UNLINK", temporary}); err != nil {
		return false, err
	}
	err = p.each(ctx, origin, id.db, id.key, before.kind, size, func(args []string) error {
		return run(append(command{p.write, temporary}, args...))
	})
	if errors.Is(err, errMoved) {
		return true, run(command{"UNLINK", temporary})
	}
	if err != nil {
		return false, err
	}
	after, err := stand(ctx, origin, v, id.db, id.key)
	if err != nil {
		return false, err
	}
	if after.kind != before.kind {
		if err := run(command{"UNLINK", temporary}); err != nil {
			return false, err
		}
		if after.kind == "none" { // gone: an expiry under a freeze is no event
			return true, run(command{"UNLINK", id.key})
		}
		return true, nil
	}
	last := command{"PERSIST", temporary}
	if e := expiryThere(content{expires: after.expires}, offset); e != 0 {
		last = command{"PEXPIREAT", temporary, strconv.FormatInt(e, 10)}
	}
	f.count([]command{last, {"RENAME", temporary, id.key}})
	r, err := destination.exec(ctx, id.db, []unit{{temporary, []command{{"MULTI"}, last, {"RENAME", temporary, id.key}, {"EXEC"}}}})
	if err != nil {
		return false, err
	}
	if renamed := r[0][3]; renamed.err() != nil || len(renamed.items) != 2 || renamed.items[1].err() != nil {
		// It was emptied or has expired while it was being copied, so the temporary key isn't there.
		return true, run(command{"UNLINK", id.key})
	}
	return true, nil
}

// temporaryKey is where a big value grows. It is in the key's slot, whatever that is.
func (o Options) temporaryKey(key string) string {
	sum := sha256.Sum256([]byte(key))
	return fmt.Sprintf("%s{%s}%s%x", ownPrefix, slotTags()[slotOf(key)], o.temporaryPart(), sum[:8])
}

func (o Options) temporaryPart() string { return ":" + o.Migration + ":temporary:" + o.Name + ":" }

// isTemporary tells whether a key is one of ours that temporaryKey makes.
func (o Options) isTemporary(key string) bool {
	return strings.HasPrefix(key, ownPrefix+"{") && strings.Contains(key, "}"+o.temporaryPart())
}

// count notes commands of an application's kind before they are run on the destination, so that they don't look like a stranger's.
func (f *flow) count(cmds []command) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range cmds {
		f.written[strings.ToLower(c[0])]++
	}
}

// digestBig is decode for keys that are too big to be read as a whole. It tells whether the type could be taken apart.
func digestBig(ctx context.Context, s *session, db int, key, kind string, size int64) (string, bool, error) {
	p, ok := piecesOf(kind, key)
	if !ok {
		return "", false, nil
	}
	h := sha256.New()
	var a, b, n uint64
	seen := map[[16]byte]struct{}{} // a cursor may give an element twice
	err := p.each(ctx, s, db, key, kind, size, func(args []string) error {
		if p.scan == "" {
			for i, x := range args {
				if kind == "zset" && i%2 == 0 {
					score, err := strconv.ParseFloat(x, 64)
					if err != nil {
						return fmt.Errorf("ZRANGE %s: score %q", show(key), x)
					}
					x = strconv.FormatUint(math.Float64bits(score), 16)
				}
				if kind != "string" { // a string's pieces may be cut elsewhere
					fmt.Fprintf(h, "%d:", len(x))
				}
				h.Write([]byte(x))
			}
			return nil
		}
		step := 1
		if p.pairs {
			step = 2
		}
		for i := 0; i+step <= len(args); i += step {
			e := fmt.Sprintf("%d:%s", len(args[i]), strings.Join(args[i:i+step], ""))
			sum := sha256.Sum256([]byte(e))
			if _, ok := seen[[16]byte(sum[:16])]; ok {
				continue
			}
			seen[[16]byte(sum[:16])] = struct{}{}
			a += binary.LittleEndian.Uint64(sum[:8])
			b += binary.LittleEndian.Uint64(sum[8:16])
			n++
		}
		return nil
	})
	if err != nil {
		return "", true, err
	}
	fmt.Fprintf(h, "%s %d %d %d", kind, a, b, n)
	return string(h.Sum(nil)), true, nil
}

// sameBig compares a big key's value and expiry piece by piece and says how it differs; ok is false if its type can't be taken apart.
func sameBig(ctx context.Context, origin, destination *session, here, there serverInfo, db int, key string, size int64, offset, tolerance time.Duration) (kind string, ok bool, err error) {
	a, err := stand(ctx, origin, here.version, db, key)
	if err != nil {
		return "", false, err
	}
	b, err := stand(ctx, destination, there.version, db, key)
	if err != nil {
		return "", false, err
	}
	if _, can := piecesOf(a.kind, key); !can || a.kind == "hash" && here.fieldExpiry() {
		return "", false, nil
	}
	switch {
	case b.kind == "none":
		return "missing", true, nil
	case a.kind != b.kind:
		return "different", true, nil
	}
	x, _, err := digestBig(ctx, origin, db, key, a.kind, size)
	if err != nil && !errors.Is(err, errMoved) {
		return "", true, err
	}
	y, _, errB := digestBig(ctx, destination, db, key, b.kind, size)
	if errB != nil && !errors.Is(errB, errMoved) {
		return "", true, errB
	}
	switch {
	case err != nil || errB != nil || x != y:
		return "different", true, nil
	case !near(expiryThere(content{expires: a.expires}, offset), b.expires, tolerance):
		return "expiry", true, nil
	}
	return "", true, nil
}
