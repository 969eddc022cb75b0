package pair

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
)

// persistentWriters write to the varied schema and connect again whenever the server is gone, until stop is called.
func persistentWriters(t *testing.T, url string, s uint64, n int) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(s, uint64(i)))
			for ctx.Err() == nil {
				conn, err := pgx.Connect(ctx, url)
				if err != nil {
					select {
					case <-ctx.Done():
					case <-time.After(50 * time.Millisecond):
					}
					continue
				}
				for ; ctx.Err() == nil; breathe(ctx, r) {
					err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
						for range 1 + r.IntN(8) {
							if _, err := tx.Exec(ctx, randomStatement(r)); err != nil {
								return err
							}
						}
						return nil
					})
					if err != nil && conn.IsClosed() {
						break
					}
					if err != nil && fatal(err) && !postgres.IsTransient(err) && ctx.Err() == nil {
						t.Errorf("write: %v", err)
						cancel()
					}
				}
				conn.Close(context.Background())
			}
		})
	}
	f := sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(f)
	return f
}

// disturbed is a pair between servers of its own, which can be killed and cut off.
type disturbed struct {
	*fixture
	r                      *rand.Rand
	direct, destination    string // the databases' URLs past the cutters
	servers                []*pgtest.Server
	throughSource, through *pgtest.Cutter
}

func newDisturbed(t *testing.T, capture string, r *rand.Rand) *disturbed {
	t.Helper()
	source := pgtest.Start(t, pgtest.Options{})
	// The target loses what it had committed without waiting for the flush.
	target := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"wal_writer_delay": "10s"}})
	d := &disturbed{r: r, servers: []*pgtest.Server{source, target}, direct: source.Database(t), destination: target.Database(t)}
	if capture == Trigger {
		d.direct, d.destination = source.HerokuOwner(t, d.direct), target.RDSMaster(t, d.destination)
	}
	d.fixture = &fixture{t: t, migration: newMigration(), capture: capture}
	d.throughSource, d.source = pgtest.NewCutter(t, d.direct)
	d.through, d.target = pgtest.NewCutter(t, d.destination)
	return d
}

// disturb kills a server or cuts a network, of the n-th kind.
func (d *disturbed) disturb(n int) {
	d.t.Helper()
	restart := func(s *pgtest.Server) {
		if err := s.Kill(); err != nil {
			d.t.Fatal(err)
		}
		if err := s.Start(d.ctx()); err != nil {
			d.t.Fatal(err)
		}
	}
	kinds := []struct {
		name string
		do   func()
	}{
		{"source killed", func() { restart(d.servers[0]) }},
		{"target killed", func() { restart(d.servers[1]) }},
		{"source cut", d.throughSource.Cut},
		{"target cut", d.through.Cut},
		{"both cut", func() { d.throughSource.Cut(); d.through.Cut() }},
	}
	k := kinds[n%len(kinds)]
	d.t.Logf("%s in phase %s", k.name, d.pair.Status().Phase)
	k.do()
}

// disturbStream disturbs a running stream again and again, each time after some transactions have passed.
func (d *disturbed) disturbStream() {
	d.t.Helper()
	rounds := 3
	if soak() {
		rounds = 50
	}
	for i := range rounds {
		applied, least := d.pair.Status().Applied, int64(1+d.r.IntN(20))
		d.until(fmt.Sprintf("%d transactions", least), time.Minute, func(s Status) bool { return s.Applied >= applied+least })
		d.disturb(i + d.r.IntN(2))
	}
}

// settled waits until everything has arrived, and compares.
func (d *disturbed) settled() {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := d.pair.CaughtUp(ctx); err != nil {
		d.t.Fatalf("%v: %+v", err, d.pair.Status().Problems)
	}
	d.equal()
}

// Servers that are killed and networks that are cut, on either side, at random moments of the copy and of the streams forth and back, need
// nobody: the pair goes on, nothing is lost and nothing comes twice.
func TestCrashesAndCuts(t *testing.T) {
	for _, capture := range []string{Logical, Trigger} {
		t.Run(capture, func(t *testing.T) {
			t.Parallel()
			s := pgtest.Seed(t)
			r := rand.New(rand.NewPCG(s, 3))
			d := newDisturbed(t, capture, r)
			pgtest.Exec(t, d.direct, variedSchema)
			stop := persistentWriters(t, d.direct, s, 3)
			d.start(false)
			for _, phase := range []Phase{Starting, Copying, Indexing} {
				d.until("phase "+string(phase), time.Minute, func(s Status) bool { return s.Phase == phase || s.Phase == Streaming })
				d.disturb(r.IntN(5))
			}
			d.streaming()
			d.disturbStream()
			stop()
			d.settled()
			d.attempt(false)
			stop = persistentWriters(t, d.destination, s+1, 3)
			d.disturbStream()
			stop()
			d.settled()
		})
	}
}
