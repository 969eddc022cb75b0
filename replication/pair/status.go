package pair

import (
	"context"
	"fmt"
	"time"

	"replicator/internal/preflight"
	"replicator/metrics"
	"replicator/replication"
	"replicator/replication/logical"
	"replicator/replication/state"
)

// Phase is what a pair is doing, in the words of the status document.
type Phase string

// The phases of a pair.
const (
	Starting  Phase = "starting"
	Copying   Phase = "copying"
	Indexing  Phase = "indexing"
	Streaming Phase = "streaming"
	Frozen    Phase = "frozen"
	Reversed  Phase = "reversed"
	Finished  Phase = "finished"
	Stopped   Phase = "stopped"
)

// Status is a pair as it stands. Pointers are nil where a value isn't known.
type Status struct {
	Name    string
	Capture string
	// CaptureReason says why this capture was taken.
	CaptureReason string
	Phase         Phase
	LagBytes      *int64
	LagSeconds    *float64
	RetainedBytes *int64
	// Horizon is the age of the oldest transaction that keeps the origin's change log from being emptied; nil without such a log.
	Horizon      *time.Duration
	TablesTotal  int
	TablesCopied int
	CopyRows     int64
	CopyBytes    int64
	// CopyExpected is the size on disk of what the copy under way moves, CopyRate its bytes a second so far, CopyETA the seconds left.
	CopyExpected *int64
	CopyRate     *float64
	CopyETA      *float64
	// Applied counts the origin's transactions since the process started.
	Applied int64
	// OriginPosition is how far the origin has written, DurablePosition how far the destination durably has it.
	OriginPosition, DurablePosition string
	Waiting                         string
	Problems                        []preflight.Finding

	failure *preflight.Finding
	lacking lacking
	gone    []replication.TableName
	// rewritten are tables that are being compared, since ALTER TABLE may have computed their rows anew.
	rewritten []replication.TableName
	// lost are tables of which the active direction's capture doesn't have all changes.
	lost []replication.TableName
	// foreign are foreign keys that could not be put back as they were.
	foreign []preflight.Finding
	copy    copyProgress
}

type copyProgress struct {
	total, copied int
	rows, bytes   int64
	moved, expect int64 // of the copy under way
	began         time.Time
}

// Status returns a snapshot of the pair's state. It asks no server.
func (p *Pair) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.status
	c := s.copy
	s.TablesTotal, s.TablesCopied, s.CopyRows, s.CopyBytes = c.total, c.copied, c.rows, c.bytes
	if s.Phase == Copying && c.moved > 0 && c.expect > 0 {
		// The sizes on disk and on the wire differ; what has passed so far is the best guess of how.
		left := max(float64(c.expect)/float64(c.moved)-1, 0)
		seconds := time.Since(c.began).Seconds()
		eta, rate := seconds*left, float64(c.moved)/seconds
		s.CopyETA, s.CopyRate, s.CopyExpected = &eta, &rate, &c.expect
	}
	switch {
	case p.freeze != nil:
		s.Phase = Frozen
	case p.active && s.Phase != Finished:
		s.Phase = Reversed
	}
	bytes, seconds := p.lag.read(p.link)
	s.LagBytes, s.LagSeconds, s.RetainedBytes = bytes, seconds, p.lag.retained
	s.Horizon = p.lag.horizon
	s.Applied = p.applied.Load()
	s.OriginPosition, s.DurablePosition = string(p.lag.last.position), string(p.lag.durable)
	if s.failure != nil {
		s.Problems = append(s.Problems, *s.failure)
	}
	if p.lag.held != nil {
		s.Problems = append(s.Problems, p.lag.held.finding)
	}
	if len(s.lacking.tables) > 0 && !p.active {
		s.Problems = append(s.Problems, p.lackingProblem(s.lacking))
	}
	if len(s.gone) > 0 && !p.active {
		s.Problems = append(s.Problems, p.goneProblem(s.gone))
	}
	if len(s.rewritten) > 0 && !p.active {
		s.Problems = append(s.Problems, p.rewrittenProblem(s.rewritten))
	}
	if len(s.lost) > 0 && p.active && s.Phase != Finished {
		s.Problems = append(s.Problems, p.lostProblem(s.lost))
	}
	s.Problems = append(s.Problems, s.foreign...)
	if p.o.RetainedWarning > 0 && s.RetainedBytes != nil && *s.RetainedBytes > p.o.RetainedWarning {
		s.Problems = append(s.Problems, preflight.Finding{Code: "retained-wal", Severity: preflight.Warning, Pair: p.o.Name,
			Message: "the source keeps more on its disk for the pair (the slot's write-ahead log, or the change log) than the guard allows", Hint: "see what the target waits for; the source's disk fills up meanwhile"})
	}
	return s
}

// reading serves the metrics at a scrape.
func (p *Pair) reading() metrics.PostgresReading {
	s := p.Status()
	var r metrics.PostgresReading
	if s.LagBytes != nil {
		v := float64(*s.LagBytes)
		r.LagBytes = &v
	}
	r.LagSeconds = s.LagSeconds
	if s.RetainedBytes != nil {
		v := float64(*s.RetainedBytes)
		r.RetainedBytes = &v
	}
	if s.Horizon != nil {
		v := s.Horizon.Seconds()
		r.HorizonSeconds = &v
	}
	return r
}

// lagSamples are observations of the origin, one a second, by which lag is known even while no stream runs.
type lagSamples struct {
	samples  []lagSample // oldest first; those that are durable on the destination are dropped
	last     lagSample
	durable  replication.Position
	recalled bool // durable is what an earlier process left: how old what came after it is, nobody knows
	reached  func(p, q replication.Position) (bool, error)
	offset   time.Duration // origin's clock minus ours
	retained *int64
	held     *held // who keeps the origin from forgetting
	horizon  *time.Duration
}

type lagSample struct {
	position replication.Position
	at       time.Time // by our clock
}

// sampleAge is the age under which a sample alone doesn't count as lag: the stream needs a moment to say that nothing of ours lay
// below it.
const sampleAge = 3 * time.Second

// unknownAfter is the age of the last sample after which the lag isn't known.
const unknownAfter = 15 * time.Second

// read computes the lag. l is the running stream, nil if none.
func (g *lagSamples) read(l *link) (bytes *int64, seconds *float64) {
	now := time.Now()
	var age time.Duration
	if l != nil {
		l.mu.Lock()
		g.durable, g.reached, g.recalled = l.durable, l.source.Reached, false
		oldest := l.oldest()
		l.mu.Unlock()
		if !oldest.IsZero() {
			age = max(now.Add(g.offset).Sub(oldest), 0)
		}
	}
	for len(g.samples) > 0 && g.reached != nil {
		if ok, err := g.reached(g.durable, g.samples[0].position); err != nil || !ok {
			break
		}
		g.samples = g.samples[1:]
	}
	if len(g.samples) > 0 {
		if a := now.Sub(g.samples[0].at); a > sampleAge {
			age = max(age, a)
		}
	}
	if g.last.at.IsZero() || g.durable == "" || (now.Sub(g.last.at) > unknownAfter && len(g.samples) == 0) {
		return nil, nil
	}
	if g.recalled {
		return g.bytes(), nil
	}
	s := age.Seconds()
	return g.bytes(), &s
}

// recallPosition takes the position that the destination has, for a pair that begins paused: no stream tells it.
func (p *Pair) recallPosition(ctx context.Context, reverse bool) error {
	_, destination := p.ends(reverse)
	position, _, err := state.Position(ctx, destination.pool, p.id, replication.Direction(reverse))
	if err != nil {
		return fmt.Errorf("%s: %w", destination.name, err)
	}
	p.mu.Lock()
	p.lag.durable, p.lag.recalled = position, true
	p.mu.Unlock()
	return nil
}

// bytes is the distance of positions that are places in the write-ahead log; nil for others.
func (g *lagSamples) bytes() *int64 {
	a, errA := logical.ParsePosition(g.last.position)
	b, errB := logical.ParsePosition(g.durable)
	if errA != nil || errB != nil {
		return nil
	}
	d := max(int64(a)-int64(b), 0)
	return &d
}

// sample observes the origin until ctx ends: every second, and less often where a look takes long (thousands of tables), so that looking
// never takes more than a twentieth of the time.
func (p *Pair) sample(ctx context.Context) {
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		began := time.Now()
		bounded, cancel := context.WithTimeout(ctx, 5*time.Second)
		p.observe(bounded, p.capture(p.isActive()))
		cancel()
		timer.Reset(min(max(time.Second, 20*time.Since(began)), unknownAfter/2))
	}
}

func (p *Pair) observe(ctx context.Context, c capture) {
	began := time.Now()
	o, err := c.observe(ctx)
	if err != nil {
		return // the stream itself reports that the server can't be reached; the lag becomes unknown
	}
	ended := time.Now()
	now := p.holding(o.holder)
	p.guard(ctx, c, o)
	p.mu.Lock()
	defer p.mu.Unlock()
	g := &p.lag
	p.tellHeld(g.held, now)
	g.offset = o.at.Sub(began.Add(ended.Sub(began) / 2))
	g.last = lagSample{position: o.position, at: ended}
	if len(g.samples) < 3600 && (len(g.samples) == 0 || g.samples[len(g.samples)-1].position != o.position) {
		g.samples = append(g.samples, g.last)
	}
	g.retained, g.held, g.horizon = o.retained, now, o.horizon
}

// guard gives up what the origin retains where that is more than is allowed, and goes on with what couldn't be freed at once.
func (p *Pair) guard(ctx context.Context, c capture, o observation) {
	over := o.retained != nil && p.o.RetainedLimit > 0 && *o.retained > p.o.RetainedLimit
	if !over && !p.relieving {
		return
	}
	if !p.relieving {
		p.log.Error("the origin retains more for the capture than the guard allows; it is given up for the origin's sake", "retained_bytes", *o.retained, "limit_bytes", p.o.RetainedLimit)
	}
	done, err := c.relieve(ctx, over)
	if err != nil {
		p.log.Error("giving up what the origin retains", "error", err)
	}
	p.relieving = err != nil || !done
}
