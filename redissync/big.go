package redissync

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// bigBytes is the size in memory from which a key is carried over in pieces: DUMP and RESTORE of a whole hold both servers up, and the
// reply lies in the server's memory until it is read.
const bigBytes = 2 << 20

func (o Options) bigBytes() int64 {
	if o.BigBytes > 0 {
		return o.BigBytes
	}
	return bigBytes
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

// each hands a value's pieces to f while the next one is being read. If f is enough, the rest isn't read.
func (b *bigValue) each(ctx context.Context, f func(p piece) (enough bool, err error)) error {
	first, err := b.read(ctx, "0")
	if err != nil {
		return err
	}
	if first.next == "0" {
		_, err := f(first)
		return err
	}
	pieces, stop := make(chan piece, 1), make(chan struct{})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(pieces)
		for p := first; ; {
			select {
			case pieces <- p:
			case <-stop:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
			if p.next == "0" {
				return nil
			}
			var err error
			if p, err = b.read(ctx, p.next); err != nil {
				return err
			}
		}
	})
	g.Go(func() error {
		for p := range pieces {
			enough, err := f(p)
			if err != nil {
				return err
			}
			if enough {
				close(stop)
				return nil
			}
		}
		return nil
	})
	return g.Wait()
}

// bigCopy carries one big key over.
type bigCopy struct {
	f           *flow
	from        *bigValue
	destination *session
	there       version
	id          keyID
	offset      time.Duration
	before      standing
	settled     bool // both sides were found to have the same length
}

// copyBig carries a key over in pieces. One that the destination has already is made equal element by element; any other grows in a key
// of our own, which then takes its place. If the key changes meanwhile, the event has marked it again, and the pass after the last change is
// exact. It tells whether it did anything: some types can't be taken apart.
func (f *flow) copyBig(ctx context.Context, origin, destination *session, v version, id keyID, size int64, offset time.Duration) (bool, error) {
	before, err := stand(ctx, origin, v, id.db, id.key)
	if err != nil {
		return false, err
	}
	if !divisible(before.kind) {
		return false, nil
	}
	if err := destination.enter(ctx, id.db); err != nil {
		return false, err
	}
	f.mu.Lock()
	there := f.destSeen.version
	f.mu.Unlock()
	f.noteLarge(id)
	c := &bigCopy{f: f, destination: destination, there: there, id: id, offset: offset, before: before}
	if c.from, err = openBig(ctx, origin, id.db, id.key, before.kind, size); err == nil {
		err = c.run(ctx, v)
	}
	if errors.Is(err, errMoved) {
		return true, nil // marked again already
	}
	return err == nil, err
}

func (c *bigCopy) run(ctx context.Context, v version) error {
	have, err := stand(ctx, c.destination, c.there, c.id.db, c.id.key)
	if err != nil {
		return err
	}
	done := false
	if have.kind == c.before.kind && c.from.patchable() {
		if done, err = c.patch(ctx); err != nil {
			return err
		}
	}
	if !done {
		if err := c.replace(ctx); err != nil {
			return err
		}
	}
	after, err := stand(ctx, c.from.s, v, c.id.db, c.id.key)
	if err != nil {
		return err
	}
	if after.kind == "none" { // gone: an expiry under a freeze is no event
		return c.do(ctx, command{"UNLINK", c.id.key})
	}
	if after.kind != c.before.kind {
		return errMoved
	}
	if after.expires != c.before.expires || c.before.expires != 0 {
		if err := c.do(ctx, c.expire(c.id.key, after.expires)); err != nil {
			return err
		}
	}
	return c.settle(ctx)
}

// settle has the key copied again if the destination lost some of it meanwhile, by eviction or a restart. Fields that have expired
// may still be counted on one side.
func (c *bigCopy) settle(ctx context.Context) error {
	if c.settled || c.from.expiry {
		return nil
	}
	here, there, err := lengths(ctx, c.from, &bigValue{s: c.destination, db: c.id.db, key: c.id.key, kind: c.from.kind})
	if err != nil {
		return err
	}
	if here != there {
		c.f.queue.mark(c.id)
	}
	return nil
}

// do runs commands on the destination and expects each to succeed.
func (c *bigCopy) do(ctx context.Context, cmds ...command) error {
	c.f.count(cmds)
	r, err := c.destination.exec(ctx, c.id.db, []unit{{cmds[0][1], cmds}})
	if err != nil {
		return err
	}
	for i, v := range r[0] {
		if err := v.err(); err != nil {
			if cmds[i][0] == "HPEXPIREAT" && unknownCommand(err) {
				n, _ := strconv.Atoi(cmds[i][4])
				return errFieldsImmortal(n)
			}
			return fmt.Errorf("%s: %w", cmds[i][0], err)
		}
	}
	return nil
}

// here turns an instant by the origin's clock into the destination's.
func (c *bigCopy) here(expires int64) int64 { return expiryThere(content{expires: expires}, c.offset) }

func (c *bigCopy) expire(key string, expires int64) command {
	if expires == 0 {
		return command{"PERSIST", key}
	}
	return command{"PEXPIREAT", key, strconv.FormatInt(c.here(expires), 10)}
}

// replace writes the whole value into a key of our own, which then takes the place of the destination's. RENAME over a big value would
// free it at once, and hold the server up with that (redis.conf, lazyfree-lazy-server-del): UNLINK first.
func (c *bigCopy) replace(ctx context.Context) error {
	temporary := c.f.pair.o.temporaryKey(c.id.key)
	if err := c.do(ctx, command{"UNLINK", temporary}); err != nil {
		return err
	}
	err := c.from.each(ctx, func(p piece) (bool, error) {
		if len(p.elements) == 0 {
			return false, nil
		}
		return false, c.do(ctx, c.from.write(temporary, p.at, p.elements, c.here)...)
	})
	if err != nil {
		if errors.Is(err, errMoved) || ofTheKey(err) { // one without memory needs it for other keys
			return errors.Join(err, c.do(ctx, command{"UNLINK", temporary}))
		}
		return err
	}
	cmds := []command{c.expire(temporary, c.before.expires), {"UNLINK", c.id.key}, {"RENAME", temporary, c.id.key}}
	c.f.count(cmds)
	cmds = append(append([]command{{"MULTI"}}, cmds...), command{"EXEC"})
	r, err := c.destination.exec(ctx, c.id.db, []unit{{temporary, cmds}})
	if err != nil {
		return err
	}
	done := r[0][len(cmds)-1]
	if err := done.err(); err != nil {
		return fmt.Errorf("put %s in its place: %w", show(c.id.key), err)
	}
	// RENAME finds nothing if it was emptied, or has expired, while it was being copied; the key itself is gone then, as it should be.
	return nil
}

// patch makes the destination's value equal element by element. It tells whether that was possible.
func (c *bigCopy) patch(ctx context.Context) (bool, error) {
	to := &bigValue{s: c.destination, db: c.id.db, key: c.id.key, kind: c.from.kind, count: c.from.count, timed: c.from.timed}
	// First the expiry, or it might pass in the midst.
	if err := c.do(ctx, c.expire(c.id.key, c.before.expires)); err != nil {
		return false, err
	}
	err := c.from.each(ctx, func(p piece) (bool, error) {
		same, err := to.same(ctx, p, c.here, func(a, b int64) bool { return a == b })
		if err != nil {
			return false, err
		}
		var lacking []element
		for i, e := range p.elements {
			if !same[i] {
				lacking = append(lacking, e)
			}
		}
		if len(lacking) == 0 {
			return false, nil
		}
		return false, c.do(ctx, c.from.write(c.id.key, p.at, lacking, c.here)...)
	})
	if errors.Is(err, errMoved) { // the destination's type may have changed as well
		return false, nil
	}
	if err != nil {
		return false, err
	}
	here, there, err := lengths(ctx, c.from, to)
	if err != nil {
		return false, err
	}
	c.settled = here == there
	extra, err := surplus(ctx, c.from, to, here, there, func(extra []element) (bool, error) {
		return false, c.do(ctx, c.from.remove(c.id.key, extra))
	})
	return !extra || c.from.kind != "string", err
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

// noteLarge remembers that the destination may hold a big value under a key: RESTORE over it would free it at once.
func (f *flow) noteLarge(id keyID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.large[id] = struct{}{}
}

// overLarge tells the contents which of them are to be written over big values.
func (f *flow) overLarge(db int, keys []string, got []content) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.large) == 0 {
		return
	}
	for i, k := range keys {
		_, got[i].overLarge = f.large[keyID{db, k}]
	}
}
