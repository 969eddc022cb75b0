package pair

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/internal/pgtest"
)

// phases are an attempt's steps up to the switch.
func (f *fixture) phases(ctx context.Context, reverse bool, deadline time.Time) []func() error {
	return []func() error{
		func() error { return f.pair.Prepare(ctx, reverse) },
		func() error { return f.pair.Freeze(ctx, reverse, deadline) },
		func() error { return f.pair.Fence(ctx, reverse) },
		func() error { return f.pair.Drain(ctx, reverse) },
		func() error { return f.pair.Sequences(ctx, reverse) },
		func() error { _, err := f.pair.Verify(ctx, reverse); return err },
		func() error { return f.pair.Arm(ctx, reverse) },
	}
}

// write runs a statement of the application's in a session of its own.
func (f *fixture) write(url, sql string) error {
	f.t.Helper()
	conn, err := pgx.Connect(f.ctx(), url)
	if err != nil {
		f.t.Fatal(err)
	}
	defer conn.Close(context.Background())
	_, err = conn.PgConn().Exec(f.ctx(), sql).ReadAll()
	return err
}

// writable waits until a side takes the application's writes, and tells whether the other one refuses them.
func (f *fixture) writable(url, other string) {
	f.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := f.write(url, "INSERT INTO secured (id, v) SELECT coalesce(max(id), 0) + 1, 'writable' FROM secured")
		if err == nil {
			break
		}
		if fatal(err) || time.Now().After(deadline) {
			f.t.Fatalf("the side in use refuses writes: %v", err)
		}
		<-time.After(50 * time.Millisecond)
	}
	if err := f.write(other, "INSERT INTO secured (id, v) VALUES (-1, 'stray')"); err == nil {
		f.t.Error("both sides take writes")
	}
}

// An attempt that is given up after any of its phases returns to replicating, in either direction, and loses nothing. The phases that are tried
// follow from the seed; with REPLICATOR_SOAK all are.
func TestThawAfterEachPhase(t *testing.T) { everyCapture(t, thawAfterEachPhase) }

func thawAfterEachPhase(t *testing.T, f *fixture) {
	s := pgtest.Seed(t)
	pgtest.Exec(t, f.source, variedSchema)
	stop := writers(t, f.source, s, 2)
	f.start(false)
	f.streaming()
	for _, reverse := range []bool{false, true} {
		inUse, other := f.source, f.target
		if reverse {
			inUse, other = other, inUse
		}
		n := len(f.phases(f.ctx(), reverse, time.Time{}))
		tried := rand.New(rand.NewPCG(s, 0)).Perm(n)
		if !soak() {
			tried = tried[:2]
			if reverse {
				tried = tried[:1]
			}
		}
		for _, last := range tried {
			for i, phase := range f.phases(f.ctx(), reverse, time.Now().Add(20*time.Second))[:last+1] {
				if err := phase(); err != nil {
					t.Fatalf("phase %d (reverse %v): %v", i, reverse, err)
				}
			}
			if err := f.pair.Thaw(f.ctx(), reverse); err != nil {
				t.Fatalf("thaw after phase %d (reverse %v): %v", last, reverse, err)
			}
			f.writable(inUse, other)
			f.caughtUp()
		}
		stop()
		f.caughtUp()
		f.equal()
		if reverse && !soak() {
			return
		}
		f.attempt(reverse)
		stop = writers(t, other, s+10, 2)
	}
	stop()
	f.caughtUp()
	f.equal()
}

// A freeze that nobody renews ends at its deadline: the source takes writes again, though the daemon is busy or dead; the attempt can't go
// on, and what was written meanwhile is streamed.
func TestFreezeExpires(t *testing.T) { everyCapture(t, freezeExpires) }

func freezeExpires(t *testing.T, f *fixture) {
	pgtest.Exec(t, f.source, variedSchema)
	f.start(false)
	f.streaming()
	both := []bool{false, true}
	if !soak() {
		both = both[pgtest.Seed(t)%2:][:1]
	}
	for _, dies := range both {
		ctx := f.ctx()
		if err := f.pair.Prepare(ctx, false); err != nil {
			t.Fatal(err)
		}
		for i, phase := range f.phases(ctx, false, time.Now().Add(20*time.Second))[1:] {
			if err := phase(); err != nil {
				t.Fatalf("phase %d: %v", i+1, err)
			}
		}
		if err := f.write(f.source, "UPDATE secured SET v = 'frozen'"); err == nil {
			t.Error("the frozen source took a write")
		}
		if err := f.pair.Renew(ctx, false, time.Now().Add(2*time.Second)); err != nil {
			t.Fatal(err)
		}
		if dies {
			f.stop()
		}
		f.writable(f.source, f.target)
		if !dies {
			if err := f.pair.Renew(ctx, false, time.Now().Add(time.Minute)); err == nil {
				t.Error("an expired freeze was renewed")
			}
			if err := f.pair.Seal(ctx, false); err == nil {
				t.Error("an expired freeze was made permanent")
			}
		} else {
			f.start(false)
		}
		f.writable(f.source, f.target)
		if err := f.pair.Thaw(f.ctx(), false); err != nil {
			t.Fatal(err)
		}
		f.writable(f.source, f.target)
		f.caughtUp()
		f.equal()
	}
	f.attempt(false)
	f.writable(f.target, f.source)
	f.caughtUp()
	f.equal()
}
