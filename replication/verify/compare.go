package verify

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"replicator/internal/postgres"
	"replicator/replication"
)

const (
	defaultWorkers = 2
	defaultMaxKeys = 100
	// rangePages is the size of the pieces in which a table is read: 256 MB of 8 kB pages. Below version 14 a ctid range
	// still reads the whole table (no TID range scans), so tables aren't cut there.
	rangePages    = 32768
	tidRangeScans = 140000
)

// Compare compares the tables, of the same names and columns, on both sides at once. Unequal tables are no error: they are in the report. An
// error is about a table or column that is absent, a right that is missing, or a broken session; it names side and table. The
// report then holds what was finished.
func Compare(ctx context.Context, source, target Opener, tables []replication.Table, o Options) (Report, error) {
	if len(tables) == 0 {
		return Report{}, nil
	}
	if o.Workers <= 0 {
		o.Workers = defaultWorkers
	}
	if o.MaxKeys <= 0 {
		o.MaxKeys = defaultMaxKeys
	}
	if o.rangePages <= 0 {
		o.rangePages = rangePages
	}
	r := &run{o: o, tables: make([]*progress, len(tables))}
	sides := [2]*side{{name: "source"}, {name: "target"}}
	defer func() {
		for _, s := range sides {
			s.close()
		}
	}()
	var open errgroup.Group
	for i, opener := range []Opener{source, target} {
		open.Go(func() error { return sides[i].open(ctx, opener, o.Workers) })
	}
	if err := open.Wait(); err != nil {
		return Report{}, fmt.Errorf("verify: %w", err)
	}
	for i, t := range tables {
		r.tables[i] = &progress{comparison: comparison{table: t, recode: sides[0].encoding != sides[1].encoding}}
	}
	if err := r.digests(ctx, sides); err != nil {
		return r.report(), fmt.Errorf("verify: %w", err)
	}
	if err := r.differences(ctx, sides); err != nil {
		return r.report(), fmt.Errorf("verify: %w", err)
	}
	return r.report(), nil
}

// side is one database's sessions.
type side struct {
	name     string
	encoding string
	version  int
	sessions []*pgx.Conn
	releases []func()
}

func (s *side) open(ctx context.Context, opener Opener, n int) error {
	for range n {
		conn, release, err := opener(ctx)
		if err != nil {
			return fmt.Errorf("open a session on the %s: %w", s.name, err)
		}
		s.sessions, s.releases = append(s.sessions, conn), append(s.releases, release)
		if _, err := conn.Exec(ctx, pinSQL); err != nil {
			return fmt.Errorf("pin the settings on the %s: %w", s.name, err)
		}
	}
	const serverSQL = `SELECT current_setting('server_encoding'), current_setting('server_version_num')::int`
	if err := s.sessions[0].QueryRow(ctx, serverSQL).Scan(&s.encoding, &s.version); err != nil {
		return fmt.Errorf("read the encoding of the %s: %w", s.name, err)
	}
	return nil
}

func (s *side) close() {
	for _, release := range s.releases {
		if release != nil {
			release()
		}
	}
}

const sizesSQL = `
SELECT x.nspname, x.relname, coalesce(pg_relation_size(c.oid) / current_setting('block_size')::bigint, -1)
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS x(nspname, relname, i)
LEFT JOIN pg_namespace n ON n.nspname = x.nspname
LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = x.relname AND c.relkind = 'r'
ORDER BY x.i`

// sizes returns each table's pages.
func (s *side) sizes(ctx context.Context, tables []*progress) ([]int64, error) {
	var schemas, names []string
	for _, t := range tables {
		schemas, names = append(schemas, t.table.Name.Schema), append(names, t.table.Name.Name)
	}
	rows, err := s.sessions[0].Query(ctx, sizesSQL, schemas, names)
	if err != nil {
		return nil, fmt.Errorf("read the tables' sizes on the %s: %w", s.name, err)
	}
	defer rows.Close()
	var out []int64
	var absent []string
	for rows.Next() {
		var n replication.TableName
		var size int64
		if err := rows.Scan(&n.Schema, &n.Name, &size); err != nil {
			return nil, fmt.Errorf("read the tables' sizes on the %s: %w", s.name, err)
		}
		if size < 0 {
			absent = append(absent, n.String())
		}
		out = append(out, size)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read the tables' sizes on the %s: %w", s.name, err)
	}
	if len(absent) > 0 {
		return nil, fmt.Errorf("no such table on the %s: %s: create it there, or leave it out of the tables to compare", s.name, strings.Join(absent, ", "))
	}
	return out, nil
}

// total is what a side's rows add up to.
type total struct {
	rows       int64
	sum1, sum2 big.Int
}

func (t *total) add(rows int64, sum1, sum2 string) error {
	t.rows += rows
	for sum, s := range map[*big.Int]string{&t.sum1: sum1, &t.sum2: sum2} {
		n, ok := new(big.Int).SetString(s, 10)
		if !ok {
			return fmt.Errorf("the server gave %q for a sum", s)
		}
		sum.Add(sum, n)
	}
	return nil
}

// progress is one table on its way.
type progress struct {
	comparison
	started time.Time
	left    int // pieces of both sides not yet summed up
	totals  [2]total
	done    bool
	result  TableResult
}

type run struct {
	o      Options
	mu     sync.Mutex // guards tables' progress, and serialises OnTable
	tables []*progress
}

type piece struct {
	table *progress
	pages pages
}

// digests sums up all tables, each side by its own sessions from its own queue.
func (r *run) digests(ctx context.Context, sides [2]*side) error {
	var queues [2][]piece
	for i, s := range sides {
		sizes, err := s.sizes(ctx, r.tables)
		if err != nil {
			return err
		}
		for j, t := range r.tables {
			ranges := []pages{{0, -1}}
			if s.version >= tidRangeScans {
				ranges = split(sizes[j], r.o.rangePages)
			}
			for _, p := range ranges {
				queues[i] = append(queues[i], piece{t, p})
			}
			t.left += len(ranges)
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	for i, s := range sides {
		next := make(chan piece, len(queues[i]))
		for _, p := range queues[i] {
			next <- p
		}
		close(next)
		for _, conn := range s.sessions {
			g.Go(func() error {
				for p := range next {
					if err := r.digest(ctx, conn, i, p); err != nil {
						return explain(err, s.name, p.table.table.Name)
					}
				}
				return nil
			})
		}
	}
	return g.Wait()
}

// lightly runs f in a subtransaction of conn's transaction that is rolled back, which lets go of the locks that f took: a session that
// kept them to the end could hold up the application's TRUNCATE of one table, which in turn holds up our reading of another.
func lightly(ctx context.Context, conn *pgx.Conn, f func() error) error {
	if _, err := conn.Exec(ctx, "SAVEPOINT replicator_verify"); err != nil {
		return err
	}
	if err := f(); err != nil {
		return err
	}
	_, err := conn.Exec(ctx, "ROLLBACK TO SAVEPOINT replicator_verify; RELEASE SAVEPOINT replicator_verify", pgx.QueryExecModeSimpleProtocol)
	return err
}

func (r *run) digest(ctx context.Context, conn *pgx.Conn, side int, p piece) error {
	r.mu.Lock()
	if p.table.started.IsZero() {
		p.table.started = time.Now()
	}
	r.mu.Unlock()
	var rows int64
	var sum1, sum2 string
	if err := lightly(ctx, conn, func() error {
		return conn.QueryRow(ctx, p.table.digest(p.pages)).Scan(&rows, &sum1, &sum2)
	}); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	t := p.table
	if err := t.totals[side].add(rows, sum1, sum2); err != nil {
		return err
	}
	if t.left--; t.left > 0 {
		return nil
	}
	a, b := &t.totals[0], &t.totals[1]
	t.result = TableResult{Table: t.table.Name, SourceRows: a.rows, TargetRows: b.rows}
	t.result.Equal = a.rows == b.rows && a.sum1.Cmp(&b.sum1) == 0 && a.sum2.Cmp(&b.sum2) == 0
	if t.result.Equal {
		r.finish(t)
	}
	return nil
}

// finish gives a table's result out; r.mu is held.
func (r *run) finish(t *progress) {
	t.done = true
	t.result.Elapsed = time.Since(t.started)
	if r.o.OnTable != nil {
		r.o.OnTable(t.result)
	}
}

// differences finds the rows of the unequal tables, one pair of sessions a table.
func (r *run) differences(ctx context.Context, sides [2]*side) error {
	next := make(chan *progress, len(r.tables))
	for _, t := range r.tables {
		if !t.done {
			next <- t
		}
	}
	close(next)
	g, ctx := errgroup.WithContext(ctx)
	for i := range sides[0].sessions {
		pair := [2]*pgx.Conn{sides[0].sessions[i], sides[1].sessions[i]}
		g.Go(func() error {
			for t := range next {
				var found []Difference
				var truncated bool
				err := lightly(ctx, pair[0], func() error {
					return lightly(ctx, pair[1], func() (err error) {
						found, truncated, err = t.diff(ctx, pair, r.o.MaxKeys)
						return err
					})
				})
				if err != nil {
					return err
				}
				r.mu.Lock()
				t.result.Differences, t.result.Truncated = found, truncated
				r.finish(t)
				r.mu.Unlock()
			}
			return nil
		})
	}
	return g.Wait()
}

func (r *run) report() Report {
	var out Report
	for _, t := range r.tables {
		if !t.done {
			continue
		}
		out.Tables = append(out.Tables, t.result)
		if !t.result.Equal {
			out.Mismatches += max(1, len(t.result.Differences))
		}
	}
	return out
}

func explain(err error, side string, table replication.TableName) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	hint := ""
	switch postgres.Code(err) {
	case postgres.CodeUndefinedColumn:
		hint = ": the table's columns differ between the sides: bring the schema in line first"
	case postgres.CodeInsufficientPriv:
		hint = ": grant this role SELECT on the table, and BYPASSRLS or the ownership where row-level security is forced"
	case "54000", "53200":
		hint = ": a row's text is larger than the server can build (1 GB): compare this table by other means"
	}
	return fmt.Errorf("sum up %s on the %s: %w%s", table, side, err, hint)
}
