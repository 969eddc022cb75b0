package redissync

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"replicator/internal/preflight"
)

// argumentsAtOnce bounds one rebuilding command.
const argumentsAtOnce = 1000

// rebuild writes a value by commands, for servers that refuse its payload. It reads the value anew, in one transaction, and replaces
// the destination's in one.
func (f *flow) rebuild(ctx context.Context, origin, destination *session, v version, id keyID, offset time.Duration) error {
	r, err := origin.exec(ctx, id.db, []unit{{id.key, []command{{"TYPE", id.key}}}})
	if err != nil {
		return err
	}
	kind := r[0][0].str
	read := map[string]command{
		"string": {"GET", id.key}, "list": {"LRANGE", id.key, "0", "-1"}, "set": {"SMEMBERS", id.key}, "hash": {"HGETALL", id.key},
		"zset": {"ZRANGE", id.key, "0", "-1", "WITHSCORES"}, "stream": {"XINFO", "STREAM", id.key, "FULL", "COUNT", "0"},
	}[kind]
	if kind == "none" {
		return remove(ctx, destination, id)
	}
	if read == nil {
		return &preflight.Hinted{Code: "redis-type-unknown", Err: fmt.Errorf("values of type %s can't be carried over", kind), Hint: "exclude the key, or remove it"}
	}
	f.mu.Lock()
	there, takesFields := f.destSeen.version, f.destSeen.fieldExpiry
	f.mu.Unlock()
	ask := expiryCommands(v, []string{id.key})
	var cmds []command
	var replies []value
	if kind == "hash" && f.fieldExpiry() {
		h, more, err := readHashCalmly(ctx, origin, id.db, id.key, ask...)
		if err != nil {
			return err
		}
		if len(h.expires) > 0 && !takesFields {
			return errFieldsImmortal(len(h.expires))
		}
		// Never nil, even if every field has expired.
		cmds, replies = append([]command{}, h.commands(id.key, offset)...), more
	} else {
		all := slices.Concat([]command{{"MULTI"}}, ask, []command{read, {"EXEC"}})
		if r, err = origin.exec(ctx, id.db, []unit{{id.key, all}}); err != nil {
			return err
		}
		replies = r[0][len(all)-1].items
	}
	expires, rest, err := expiriesOf(replies, v, 1)
	switch {
	case errors.Is(err, errHeldUp):
		return f.rebuild(ctx, origin, destination, v, id, offset)
	case err != nil:
		return err
	case expires[0] == gone:
		return remove(ctx, destination, id)
	case cmds == nil && (len(rest) != 1 || rest[0].err() != nil):
		return errMoved
	case cmds == nil:
		if cmds, err = rebuildCommands(kind, id.key, rest[0], there); err != nil {
			return err
		}
	}
	if e := expiryThere(content{expires: expires[0]}, offset); e != 0 {
		cmds = append(cmds, command{"PEXPIREAT", id.key, strconv.FormatInt(e, 10)})
	}
	return f.replace(ctx, destination, id, cmds)
}

// remove deletes a key that is gone from the origin. An expiry under a freeze is no event, so the deletion must not wait for one.
func remove(ctx context.Context, destination *session, id keyID) error {
	refused, err := store(ctx, destination, id.db, 0, []string{id.key}, []content{{}})
	if err == nil && len(refused) > 0 {
		err = refused[0].err
	}
	return err
}

// replace runs the commands that rebuild a key in one transaction, after removing the key.
func (f *flow) replace(ctx context.Context, destination *session, id keyID, cmds []command) error {
	f.count(cmds)
	if err := destination.enter(ctx, id.db); err != nil {
		return err
	}
	cmds = slices.Concat([]command{{"MULTI"}, {"UNLINK", id.key}}, cmds, []command{{"EXEC"}})
	r, err := destination.exec(ctx, id.db, []unit{{id.key, cmds}})
	if err != nil {
		return err
	}
	last := r[0][len(cmds)-1]
	if err := last.err(); err != nil {
		return err
	}
	for i, v := range last.items {
		if err := v.err(); err != nil {
			return fmt.Errorf("%s: %w", cmds[i+1][0], err)
		}
	}
	return nil
}

// rebuildCommands are the commands that make a value of the given type out of what its reading command replied.
func rebuildCommands(kind, key string, v value, there version) ([]command, error) {
	switch kind {
	case "string":
		return []command{{"SET", key, v.str}}, nil
	case "list":
		return inPieces([]string{"RPUSH", key}, v.strings()), nil
	case "set":
		return inPieces([]string{"SADD", key}, v.strings()), nil
	case "hash":
		return inPieces([]string{"HSET", key}, v.strings()), nil
	case "zset":
		args := v.strings()
		for i := 0; i+1 < len(args); i += 2 {
			args[i], args[i+1] = args[i+1], args[i]
		}
		return inPieces([]string{"ZADD", key}, args), nil
	case "stream":
		return rebuildStream(key, v, there)
	}
	return nil, errors.New("unknown type " + kind)
}

func inPieces(head, args []string) []command {
	var out []command
	for part := range slices.Chunk(args, argumentsAtOnce) {
		out = append(out, slices.Concat(head, part))
	}
	return out
}

type streamID struct{ ms, seq uint64 }

func parseStreamID(s string) (id streamID) {
	a, b, _ := strings.Cut(s, "-")
	id.ms, _ = strconv.ParseUint(a, 10, 64)
	id.seq, _ = strconv.ParseUint(b, 10, 64)
	return id
}

func compareStreamIDs(a, b string) int {
	x, y := parseStreamID(a), parseStreamID(b)
	return cmp.Or(cmp.Compare(x.ms, y.ms), cmp.Compare(x.seq, y.seq))
}

// rebuildStream makes a stream with its groups, consumers and pending entries out of XINFO STREAM FULL. Pending entries whose
// message was deleted are claimed while a stand-in exists, since XCLAIM forgets them otherwise.
func rebuildStream(key string, v value, there version) ([]command, error) {
	text := func(v value, name string) string {
		x, _ := v.field(name)
		if x.kind == kindInt {
			return strconv.FormatInt(x.num, 10)
		}
		return x.str
	}
	list := func(v value, names ...string) []value {
		for _, n := range names {
			if x, ok := v.field(n); ok {
				return x.items
			}
		}
		return nil
	}
	type message struct {
		id     string
		fields []string
	}
	var messages []message
	have := map[string]bool{}
	for _, e := range list(v, "entries") {
		if len(e.items) != 2 {
			return nil, errors.New("XINFO STREAM: unexpected form")
		}
		messages = append(messages, message{e.items[0].str, e.items[1].strings()})
		have[e.items[0].str] = true
	}
	var standIns []string
	for _, g := range list(v, "groups") {
		for _, p := range list(g, "pel", "pending") {
			if id := p.items[0].str; !have[id] {
				have[id] = true
				standIns = append(standIns, id)
				messages = append(messages, message{id, []string{"replicator", ""}})
			}
		}
	}
	truly := make([]string, 0, len(messages)+1)
	for _, e := range list(v, "entries") {
		truly = append(truly, e.items[0].str)
	}
	slices.SortFunc(messages, func(a, b message) int { return compareStreamIDs(a.id, b.id) })
	// A group makes an empty stream come into being.
	cmds := []command{{"XGROUP", "CREATE", key, "__replicator__", "0", "MKSTREAM"}, {"XGROUP", "DESTROY", key, "__replicator__"}}
	for _, m := range messages {
		cmds = append(cmds, slices.Concat([]string{"XADD", key, m.id}, m.fields))
	}
	for _, g := range list(v, "groups") {
		name := text(g, "name")
		create := command{"XGROUP", "CREATE", key, name, text(g, "last-delivered-id")}
		if n := text(g, "entries-read"); n != "" && there >= 70000 {
			create = append(create, "ENTRIESREAD", n)
		}
		cmds = append(cmds, create)
		for _, c := range list(g, "consumers") {
			add := command{"XGROUP", "CREATECONSUMER", key, name, text(c, "name")}
			if there < 60200 { // reading what was delivered to it before makes a consumer too, and delivers nothing
				add = command{"XREADGROUP", "GROUP", name, text(c, "name"), "COUNT", "1", "STREAMS", key, "0"}
			}
			cmds = append(cmds, add)
		}
		for _, p := range list(g, "pel", "pending") {
			f := p.strings()
			if len(f) != 4 {
				return nil, errors.New("XINFO STREAM: unexpected form of a pending entry")
			}
			cmds = append(cmds, command{"XCLAIM", key, name, f[1], "0", f[0], "TIME", f[2], "RETRYCOUNT", f[3], "FORCE", "JUSTID"})
		}
	}
	cmds = append(cmds, withdraw(key, standIns, slices.MinFunc(append(truly, "18446744073709551615-18446744073709551615"), compareStreamIDs), there)...)
	set := command{"XSETID", key, text(v, "last-generated-id")}
	if n := text(v, "entries-added"); n != "" && there >= 70000 {
		set = append(set, "ENTRIESADDED", n, "MAXDELETEDID", cmp.Or(text(v, "max-deleted-entry-id"), "0-0"))
	}
	return append(cmds, set), nil
}

// withdraw removes stand-ins. XDEL leaves its mark in max-deleted-entry-id, which XSETID can't set back to none: those before the first
// true message are trimmed off, as their messages mostly were.
func withdraw(key string, standIns []string, first string, there version) []command {
	if there < 60200 || len(standIns) == 0 {
		return inPieces([]string{"XDEL", key}, standIns)
	}
	later := slices.DeleteFunc(standIns, func(id string) bool { return compareStreamIDs(id, first) < 0 })
	return append([]command{{"XTRIM", key, "MINID", first}}, inPieces([]string{"XDEL", key}, later)...)
}
