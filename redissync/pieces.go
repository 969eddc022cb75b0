package redissync

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// What one command of a piecewise copy moves: about so many bytes, and never more elements. Either side is held up for a few milliseconds.
const (
	pieceBytes    = 512 << 10
	pieceElements = 1000
)

// element is one element of a big value: a field with its value and expiry, a member with its score, a list's element, or some bytes of
// a string.
type element struct {
	name    string
	value   string // hash: the value; zset: the score
	expires int64  // hash: milliseconds since 1970 by the server's clock; 0: never
}

// piece is what one reading gave, and where the next begins; there is none after next "0".
type piece struct {
	at       int64 // where it begins, of types with an order
	elements []element
	next     string
}

// bigValue is a big key on one side, read piece by piece (Redis documentation, "SCAN", "ZRANGE", "HPEXPIRETIME"). It is used by one
// goroutine at a time.
type bigValue struct {
	s      *session
	db     int
	key    string
	kind   string
	count  int64 // elements, or bytes of a string, in a piece
	timed  bool  // a hash whose fields may expire, on a server that knows that
	expiry bool  // such a field was met
	single bool  // the server looks elements up one by one only
}

// divisible tells whether values of a type can be taken apart.
func divisible(kind string) bool {
	return slices.Contains([]string{"string", "list", "set", "hash", "zset"}, kind)
}

// openBig prepares to read a value of about so many bytes in memory.
func openBig(ctx context.Context, s *session, db int, key, kind string, size int64) (*bigValue, error) {
	b := &bigValue{s: s, db: db, key: key, kind: kind, timed: kind == "hash", count: pieceBytes}
	if kind == "string" {
		return b, nil
	}
	n, err := b.length(ctx)
	b.count = max(1, min(pieceElements, pieceBytes*n/max(size, 1)))
	return b, err
}

// ask runs one command on the value. An error reply means that the key has another type now, unless the command is unknown.
func (b *bigValue) ask(ctx context.Context, args ...string) (value, error) {
	r, err := b.s.exec(ctx, b.db, []unit{{b.key, []command{args}}})
	if err != nil {
		return value{}, err
	}
	if err := r[0][0].err(); err != nil {
		if wrongType(err) {
			err = errors.Join(errMoved, err)
		}
		return value{}, fmt.Errorf("%s %s: %w", args[0], show(b.key), err)
	}
	return r[0][0], nil
}

// length is the number of elements, or bytes of a string.
func (b *bigValue) length(ctx context.Context) (int64, error) {
	name := map[string]string{"string": "STRLEN", "list": "LLEN", "set": "SCARD", "hash": "HLEN", "zset": "ZCARD"}[b.kind]
	v, err := b.ask(ctx, name, b.key)
	return v.num, err
}

// read returns the piece at a cursor; the first one's is "0". While the value changes, elements may be missing or come twice.
func (b *bigValue) read(ctx context.Context, cursor string) (piece, error) {
	switch b.kind {
	case "set", "hash":
		return b.readUnordered(ctx, cursor)
	}
	at, err := strconv.ParseInt(cursor, 10, 64)
	if err != nil {
		return piece{}, fmt.Errorf("read %s: cursor %q", show(b.key), cursor)
	}
	p := piece{at: at}
	from, to := strconv.FormatInt(at, 10), strconv.FormatInt(at+b.count-1, 10)
	var got int64
	switch b.kind {
	case "string":
		v, err := b.ask(ctx, "GETRANGE", b.key, from, to)
		if err != nil {
			return piece{}, err
		}
		if got = int64(len(v.str)); got > 0 {
			p.elements = []element{{name: v.str}}
		}
	case "list":
		v, err := b.ask(ctx, "LRANGE", b.key, from, to)
		if err != nil {
			return piece{}, err
		}
		for _, x := range v.items {
			p.elements = append(p.elements, element{name: x.str})
		}
		got = int64(len(v.items))
	case "zset":
		v, err := b.ask(ctx, "ZRANGE", b.key, from, to, "WITHSCORES")
		if err != nil {
			return piece{}, err
		}
		p.elements = pairsOf(v.items)
		got = int64(len(p.elements))
	}
	if p.next = "0"; got == b.count {
		p.next = strconv.FormatInt(at+b.count, 10)
	}
	return p, nil
}

func pairsOf(items []value) []element {
	out := make([]element, 0, len(items)/2)
	for i := 0; i+1 < len(items); i += 2 {
		out = append(out, element{name: items[i].str, value: items[i+1].str})
	}
	return out
}

func (b *bigValue) readUnordered(ctx context.Context, cursor string) (piece, error) {
	scan := map[string]string{"set": "SSCAN", "hash": "HSCAN"}[b.kind]
	v, err := b.ask(ctx, scan, b.key, cursor, "COUNT", strconv.FormatInt(b.count, 10))
	if err != nil {
		return piece{}, err
	}
	if len(v.items) != 2 {
		return piece{}, fmt.Errorf("%s %s: unexpected reply", scan, show(b.key))
	}
	p := piece{next: v.items[0].str}
	if b.kind == "hash" {
		p.elements = pairsOf(v.items[1].items)
		err := b.readExpiries(ctx, p.elements)
		// Fields that have expired since would otherwise be taken for some that never do, and no feed tells of their expiry.
		p.elements = slices.DeleteFunc(p.elements, func(e element) bool { return e.expires == gone })
		return p, err
	}
	for _, x := range v.items[1].items {
		p.elements = append(p.elements, element{name: x.str})
	}
	return p, nil
}

// readExpiries adds the fields' expiries, where the server knows such; gone if a field isn't there any more.
func (b *bigValue) readExpiries(ctx context.Context, fields []element) error {
	if !b.timed || len(fields) == 0 {
		return nil
	}
	v, err := b.ask(ctx, withFields([]string{"HPEXPIRETIME", b.key}, fields)...)
	if unknownCommand(err) {
		b.timed = false
		return nil
	}
	if err != nil {
		return err
	}
	for i := range min(len(v.items), len(fields)) {
		switch n := v.items[i].num; {
		case n == gone:
			fields[i].expires = gone
		case n > 0:
			fields[i].expires, b.expiry = n, true
		}
	}
	return nil
}

func withFields(head []string, fields []element) []string {
	out := append(slices.Grow(head, len(fields)+2), "FIELDS", strconv.Itoa(len(fields)))
	for _, e := range fields {
		out = append(out, e.name)
	}
	return out
}

// lookup asks for elements of sets, hashes and sorted sets by their names: whether it is there, its value, its score.
func (b *bigValue) lookup(ctx context.Context, elements []element) ([]value, error) {
	names := map[string][2]string{"set": {"SMISMEMBER", "SISMEMBER"}, "hash": {"HMGET", "HGET"}, "zset": {"ZMSCORE", "ZSCORE"}}[b.kind]
	if !b.single {
		cmd := append(make([]string, 0, len(elements)+2), names[0], b.key)
		for _, e := range elements {
			cmd = append(cmd, e.name)
		}
		v, err := b.ask(ctx, cmd...)
		if err == nil && len(v.items) == len(elements) {
			return v.items, nil
		}
		if !unknownCommand(err) { // Redis 6.0 only knows the form for one
			return nil, cmp.Or(err, errMoved)
		}
		b.single = true
	}
	cmds := make([]command, len(elements))
	for i, e := range elements {
		cmds[i] = command{names[1], b.key, e.name}
	}
	r, err := b.s.exec(ctx, b.db, []unit{{b.key, cmds}})
	if err != nil {
		return nil, err
	}
	for _, v := range r[0] {
		if v.err() != nil {
			return nil, fmt.Errorf("%s %s: %w: %w", names[1], show(b.key), errMoved, v.err())
		}
	}
	return r[0], nil
}

// same returns which elements of an origin's piece this side has as well. Where a type has an order by place, they must stand at the
// same one. There turns an expiry into one by this side's clock.
func (b *bigValue) same(ctx context.Context, p piece, there func(int64) int64, within func(a, b int64) bool) ([]bool, error) {
	out := make([]bool, len(p.elements))
	if len(out) == 0 {
		return out, nil
	}
	span := func(name string, n int) (value, error) {
		return b.ask(ctx, name, b.key, strconv.FormatInt(p.at, 10), strconv.FormatInt(p.at+int64(n)-1, 10))
	}
	switch b.kind {
	case "string":
		v, err := span("GETRANGE", len(p.elements[0].name))
		out[0] = v.str == p.elements[0].name
		return out, err
	case "list":
		v, err := span("LRANGE", len(out))
		for i := range min(len(v.items), len(out)) {
			out[i] = v.items[i].str == p.elements[i].name
		}
		return out, err
	}
	v, err := b.lookup(ctx, p.elements)
	if err != nil {
		return out, err
	}
	var have []element
	if b.kind == "hash" {
		have = make([]element, len(out))
		for i, e := range p.elements {
			have[i].name = e.name
		}
		if err := b.readExpiries(ctx, have); err != nil {
			return out, err
		}
	}
	for i, e := range p.elements {
		switch b.kind {
		case "set":
			out[i] = v[i].num == 1
		case "zset":
			out[i] = !v[i].null && sameScore(v[i].str, e.value)
		case "hash":
			expires := int64(0)
			if e.expires != 0 {
				expires = there(e.expires)
			}
			out[i] = !v[i].null && v[i].str == e.value && within(expires, have[i].expires)
		}
	}
	return out, nil
}

func sameScore(a, b string) bool {
	if a == b {
		return true
	}
	x, errX := strconv.ParseFloat(a, 64)
	y, errY := strconv.ParseFloat(b, 64)
	return errX == nil && errY == nil && math.Float64bits(x) == math.Float64bits(y)
}

// write returns the commands that put elements of a piece into the value at key.
func (b *bigValue) write(key string, at int64, elements []element, there func(int64) int64) []command {
	if len(elements) == 0 {
		return nil
	}
	if b.kind == "string" { // by its place, so that a repetition does no harm
		return []command{{"SETRANGE", key, strconv.FormatInt(at, 10), elements[0].name}}
	}
	put := make(command, 2, 2+2*len(elements))
	put[0], put[1] = map[string]string{"list": "RPUSH", "set": "SADD", "hash": "HSET", "zset": "ZADD"}[b.kind], key
	byTime := map[int64][]element{}
	for _, e := range elements {
		switch b.kind {
		case "zset":
			put = append(put, e.value, e.name)
		case "hash":
			put = append(put, e.name, e.value)
			if e.expires != 0 {
				t := there(e.expires)
				byTime[t] = append(byTime[t], e)
			}
		default:
			put = append(put, e.name)
		}
	}
	cmds := []command{put}
	for t, fields := range byTime { // HSET has ended an expiry that was there
		cmds = append(cmds, withFields([]string{"HPEXPIREAT", key, strconv.FormatInt(t, 10)}, fields))
	}
	return cmds
}

// remove returns the command that takes elements out.
func (b *bigValue) remove(key string, elements []element) command {
	cmd := command{map[string]string{"set": "SREM", "hash": "HDEL", "zset": "ZREM"}[b.kind], key}
	for _, e := range elements {
		cmd = append(cmd, e.name)
	}
	return cmd
}

// patchable tells whether a value can be made equal element by element: where it has an order by place, one that is missing moves all
// behind it.
func (b *bigValue) patchable() bool { return b.kind != "list" }

func wrongType(err error) bool { return refused(err, "WRONGTYPE") }

func unknownCommand(err error) bool { return refused(err, "ERR unknown command") }

func refused(err error, prefix string) bool {
	var r replyError
	return errors.As(err, &r) && strings.HasPrefix(string(r), prefix)
}
