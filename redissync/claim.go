package redissync

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"replicator/internal/preflight"
	"replicator/internal/retry"
)

// enter takes possession: it cuts off predecessors, and makes sure that the target is ours.
func (p *Pair) enter(ctx context.Context, reverse bool) error {
	for _, at := range []side{p.source, p.target} {
		if err := p.succeed(ctx, at); err != nil {
			return err
		}
	}
	if reverse {
		return nil
	}
	return p.claim(ctx)
}

// succeed ends the connections of earlier terms on a server, and refuses to go on if there are some of a later one.
func (p *Pair) succeed(ctx context.Context, at side) error {
	return p.onEach(ctx, at, func(s *session) error { return p.succeedOn(ctx, at, s) })
}

func (p *Pair) succeedOn(ctx context.Context, at side, s *session) error {
	v, err := repeated(ctx, s, at, []command{{"CLIENT", "LIST"}})
	if err != nil {
		return err
	}
	for _, c := range parseClients(v.str) {
		_, epoch := splitTerm(c.name)
		if epoch < 0 || !strings.HasPrefix(c.name, p.o.namePrefix()) {
			continue
		}
		switch {
		case epoch > p.o.Epoch:
			return retry.Stop(superseded(epoch, p.o.Epoch))
		case epoch < p.o.Epoch:
			p.log.Info("ending a connection of an earlier term", "side", at.name, "connection", c.name)
			if _, err := repeated(ctx, s, at, []command{{"CLIENT", "KILL", "ID", c.id}}); err != nil && !isReplyError(err) {
				return err
			}
		}
	}
	return nil
}

// watchSuccessors ends Run when another process has taken the lead, and ends the connections of earlier terms that come back.
func (p *Pair) watchSuccessors(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-p.suspicion: // our connections were ended: perhaps by a successor
		}
		for _, at := range []side{p.source, p.target} {
			var h *preflight.Hinted
			if err := p.succeed(ctx, at); errors.As(err, &h) {
				return h
			}
		}
	}
}

// suspect has watchSuccessors look at once.
func (p *Pair) suspect() {
	select {
	case p.suspicion <- struct{}{}:
	default:
	}
}

// claim refuses a target that holds keys and wasn't claimed before; else it marks the target as ours.
func (p *Pair) claim(ctx context.Context) error {
	v, err := p.control(ctx, p.target, command{"EXISTS", p.o.stateKey()})
	if err != nil {
		return err
	}
	if v.num == 1 {
		return nil
	}
	n, err := p.foreignKeys(ctx)
	if err != nil {
		return err
	}
	if n > 0 && !p.o.Resuming {
		return retry.Stop(targetNotEmpty(n))
	}
	return p.markClaimed(ctx)
}

// markClaimed notes on the target that its keys are ours. A target that was restarted empty, or flushed, has lost the note.
func (p *Pair) markClaimed(ctx context.Context) error {
	_, err := p.control(ctx, p.target, command{"HSETNX", p.o.stateKey(), "claimed", time.Now().UTC().Format(time.RFC3339)})
	return err
}

func targetNotEmpty(n int64) error {
	return &preflight.Hinted{Code: "redis-target-not-empty", Err: fmt.Errorf("the target Redis holds %d keys that replicator didn't write", n),
		Hint: "they would be deleted: take an empty server, or empty this one (FLUSHALL) if nothing of it is needed, or move only certain databases"}
}

// foreignKeys counts the target's keys in our databases, as far as they are not replicator's own.
func (p *Pair) foreignKeys(ctx context.Context) (int64, error) {
	s := &session{endpoint: p.target.endpoint, name: p.o.connectionName("claim")}
	defer s.close()
	info, err := readInfo(ctx, s, "keyspace")
	if err != nil {
		return 0, err
	}
	var n int64
	for _, db := range p.o.ownDatabases(mergeDatabases(info.databases)) {
		if info.databases[db] > 1000 {
			n += info.databases[db]
			continue
		}
		if err := scanKeys(ctx, s, db, p.o, func(keys []string) error { n += int64(len(keys)); return nil }); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// markCopied notes on the target that a first copy has been completed.
func (p *Pair) markCopied(ctx context.Context) error {
	_, err := p.control(ctx, p.target, command{"HSETNX", p.o.stateKey(), "copied", time.Now().UTC().Format(time.RFC3339)})
	return err
}
