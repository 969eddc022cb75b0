package pair

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"replicator/internal/preflight"
	"replicator/replication"
	"replicator/replication/trigger"
)

// writable sees to it that no capture makes the application's writes fail for long: that of a table whose columns were altered so that its function
// can't do its work is given up at once, in whatever phase the pair is, whether a stream runs and whether the destination is there or not. From
// source to target the table is captured anew and copied again as soon as that can be; in the reversed phase there is nothing to copy from, and the way
// back is lost.
func (p *Pair) writable(ctx context.Context) error {
	reverse := p.isActive()
	if p.capture(reverse).name() != Trigger {
		return nil
	}
	origin, _ := p.ends(reverse)
	lost, failing, err := trigger.Lost(ctx, origin.pool)
	if err != nil {
		return fmt.Errorf("%s: %w", origin.name, err)
	}
	p.showLost(reverse, lost)
	if len(failing) == 0 {
		return nil
	}
	p.log.Warn("columns that the change log keeps were altered; the capture of these tables is given up so that the application can write", "side", origin.name, "oids", fmt.Sprint(failing), "lost", fmt.Sprint(lost))
	if err := trigger.Silence(ctx, origin.pool, failing...); err != nil {
		return fmt.Errorf("%s: %w", origin.name, err)
	}
	return nil
}

func (p *Pair) showLost(reverse bool, lost []replication.TableName) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.active == reverse {
		p.status.lost = lost
	}
}

// keepWritable does what writable says until ctx ends, at the pace of the watch.
func (p *Pair) keepWritable(ctx context.Context) {
	timer := time.NewTimer(p.o.WatchEvery)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		began := time.Now()
		bounded, cancel := context.WithTimeout(ctx, writableWait)
		if err := p.writable(bounded); err != nil && ctx.Err() == nil {
			p.log.Debug("look for captures that make writes fail", "error", err) // next time; a server that is gone is reported elsewhere
		}
		cancel()
		timer.Reset(max(p.o.WatchEvery, 20*time.Since(began)))
	}
}

// writableWait bounds one look; it waits for no lock of the application's.
const writableWait = 30 * time.Second

// checkLost looks at what a rollback would carry.
func (p *Pair) checkLost(ctx context.Context, known []preflight.Finding) []preflight.Finding {
	if p.capture(true).name() != Trigger || slices.ContainsFunc(known, func(f preflight.Finding) bool { return f.Code == wayBackLost }) {
		return nil
	}
	lost, _, err := trigger.Lost(ctx, p.target.pool)
	switch {
	case err != nil:
		return []preflight.Finding{p.finding("unreachable", preflight.Error, "target", err.Error(), "mend the connection")}
	case len(lost) > 0:
		return []preflight.Finding{p.lostProblem(lost)}
	}
	return nil
}

const wayBackLost = "way-back-lost"

// lostProblem names tables whose changes in the reversed phase the source will not get.
func (p *Pair) lostProblem(tables []replication.TableName) preflight.Finding {
	names := make([]string, len(tables))
	for i, t := range tables {
		names[i] = t.String()
	}
	return p.finding(wayBackLost, preflight.Error, "target", "the way back is lost: columns or keys that the change log keeps were altered on the target, and not all changes are logged any more, of "+strings.Join(names, ", "),
		"the application goes on writing to the target, and a rollback is refused from now on: make the move final with `replicator finish`; whoever must go back begins a new migration from the target")
}
