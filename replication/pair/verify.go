package pair

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"replicator/internal/postgres"
	"replicator/replication"
	"replicator/replication/schema"
	"replicator/replication/verify"
)

// Verify compares while the origin is frozen and drained, and returns the number of differences. What Prepare compared, and what the stream
// has not touched since, needs no second look: both sides' gates are shut to everybody else.
func (p *Pair) Verify(ctx context.Context, reverse bool) (int, error) {
	if _, err := p.frozen(reverse); err != nil {
		return 0, err
	}
	origin, destination := p.ends(reverse)
	a, err := p.export(ctx, origin)
	if err != nil {
		return 0, err
	}
	defer a.close(ctx)
	b, err := p.export(ctx, destination)
	if err != nil {
		return 0, err
	}
	defer b.close(ctx)
	known, err := p.knownEqual(ctx, reverse)
	if err != nil {
		return 0, err
	}
	report, err := p.compare(ctx, a, b, nil, known)
	if err != nil {
		return 0, err
	}
	for _, t := range report.Tables {
		if !t.Equal {
			p.log.Error("verify: tables differ", "table", t.Table.String(), "origin_rows", t.SourceRows, "destination_rows", t.TargetRows, "differences", len(t.Differences))
		}
	}
	return report.Mismatches, nil
}

// VerifyNow compares both sides while the application writes, exactly: the capture takes a snapshot of the origin whose place in the
// stream is known; the stream is held at that place until the destination's snapshot is taken, and goes on while the
// contents are compared. Only the named tables, all if none is named.
//
// A snapshot doesn't protect against TRUNCATE, nor against ALTER TABLE that rewrites ("Caveats" of concurrency control): a table that
// meets one meanwhile looks empty. Tables that differ are therefore compared again under new snapshots before they count.
func (p *Pair) VerifyNow(ctx context.Context, only []replication.TableName) (verify.Report, error) {
	select {
	case <-ctx.Done():
		return verify.Report{}, fmt.Errorf("wait for another comparison to end: %w", ctx.Err())
	case p.verifying <- struct{}{}:
		defer func() { <-p.verifying }()
	}
	report, err := p.verifyOnce(ctx, only)
	for range 2 {
		if err != nil || report.Mismatches == 0 {
			return report, err
		}
		var again []replication.TableName
		for _, t := range report.Tables {
			if !t.Equal {
				again = append(again, t.Table)
			}
		}
		var second verify.Report
		if second, err = p.verifyOnce(ctx, again); err != nil {
			return report, err
		}
		for _, t := range second.Tables {
			i := slices.IndexFunc(report.Tables, func(r verify.TableResult) bool { return r.Table == t.Table })
			report.Tables[i] = t
		}
		report.Mismatches = second.Mismatches
		p.metrics.VerifyMismatches(report.Mismatches)
	}
	return report, err
}

func (p *Pair) verifyOnce(ctx context.Context, only []replication.TableName) (verify.Report, error) {
	if err := p.awaitReady(ctx); err != nil {
		return verify.Report{}, err
	}
	reverse := p.isActive()
	_, destination := p.ends(reverse)
	l, err := p.running(ctx, reverse)
	if err != nil {
		return verify.Report{}, fmt.Errorf("verify: %w", err)
	}
	stored, err := p.storages(ctx, false) // before the snapshots: what is rewritten in between isn't known to be equal
	if err != nil {
		return verify.Report{}, fmt.Errorf("verify: %w", err)
	}
	var b *exported
	defer func() { b.close(ctx) }()
	a, err := l.capture.align(ctx, l, func(loop context.Context) (err error) {
		p.mu.Lock()
		p.comparing = map[replication.TableName]bool{}
		p.mu.Unlock()
		b, err = p.export(loop, destination)
		return err
	})
	defer func() {
		p.mu.Lock()
		p.comparing = nil
		p.mu.Unlock()
	}()
	if err != nil {
		return verify.Report{}, fmt.Errorf("verify: hold the stream: %w", err)
	}
	defer a.close(ctx)
	report, err := p.compare(ctx, a, b, only, nil)
	if err != nil {
		return report, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range report.Tables {
		if t.Equal && !p.comparing[t.Table] {
			p.verified[t.Table] = stored[t.Table]
		} else {
			delete(p.verified, t.Table) // a stray write isn't seen by the stream
		}
	}
	return report, nil
}

// touch notes that the stream changes these tables.
func (p *Pair) touch(changes []replication.Change) {
	if len(changes) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	noted := map[*replication.Relation]bool{}
	note := func(r *replication.Relation) {
		if !noted[r] {
			noted[r] = true
			delete(p.verified, r.Name)
			if p.comparing != nil {
				p.comparing[r.Name] = true
			}
		}
	}
	for i := range changes {
		note(changes[i].Relation)
		for _, r := range changes[i].Truncated {
			note(r)
		}
	}
}

func (p *Pair) compare(ctx context.Context, origin, destination *exported, only []replication.TableName, skip map[replication.TableName]bool) (verify.Report, error) {
	tables, err := schema.Tables(ctx, origin.side.pool, p.o.Filter)
	if err != nil {
		return verify.Report{}, err
	}
	if len(skip) > 0 {
		tables = slices.DeleteFunc(tables, func(t replication.Table) bool { return skip[t.Name] })
	}
	if len(only) > 0 {
		for _, n := range only {
			if !slices.ContainsFunc(tables, func(t replication.Table) bool { return t.Name == n }) {
				return verify.Report{}, fmt.Errorf("verify: table %s is not replicated by pair %q", n, p.o.Name)
			}
		}
		tables = slices.DeleteFunc(tables, func(t replication.Table) bool { return !slices.Contains(only, t.Name) })
	}
	open := func(e *exported) verify.Opener {
		return func(ctx context.Context) (*pgx.Conn, func(), error) { return p.within(ctx, e) }
	}
	report, err := verify.Compare(ctx, open(origin), open(destination), tables, verify.Options{})
	if err != nil {
		return report, err
	}
	p.metrics.VerifyMismatches(report.Mismatches)
	return report, nil
}

// exported is a snapshot of one side that other sessions can take on, until close.
type exported struct {
	side *side
	name string
	end  func(context.Context)
}

func (e *exported) close(ctx context.Context) {
	if e != nil {
		e.end(ctx)
	}
}

// export takes a snapshot of a side as it is now.
func (p *Pair) export(ctx context.Context, s *side) (*exported, error) {
	conn, err := postgres.Connect(ctx, s.url, p.id, "verify")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.name, err)
	}
	e := &exported{side: s, end: func(ctx context.Context) { closeConn(ctx, conn) }}
	if _, err = conn.Exec(ctx, `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY`); err == nil {
		err = conn.QueryRow(ctx, `SELECT pg_export_snapshot()`).Scan(&e.name)
	}
	if err != nil {
		e.close(ctx)
		return nil, fmt.Errorf("%s: export a snapshot: %w", s.name, err)
	}
	return e, nil
}

// within opens a session in an exported snapshot.
func (p *Pair) within(ctx context.Context, e *exported) (*pgx.Conn, func(), error) {
	conn, err := postgres.Connect(ctx, e.side.url, p.id, "verify")
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", e.side.name, err)
	}
	if _, err = conn.Exec(ctx, `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY`); err == nil {
		_, err = conn.Exec(ctx, "SET TRANSACTION SNAPSHOT "+replication.QuoteLiteral(e.name))
	}
	if err != nil {
		closeConn(ctx, conn)
		return nil, nil, fmt.Errorf("%s: take on a snapshot: %w", e.side.name, err)
	}
	return conn, func() { closeConn(ctx, conn) }, nil
}
