package trigger

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"replicator/internal/postgres"
)

// prepareBeginSQL bounds the wait of statements that are parsed.
const prepareBeginSQL = "BEGIN READ ONLY; " + lockWaitSQL

// query is one statement of a round trip; each row goes to take, whose data is valid until it returns.
type query struct {
	sql  string
	args [][]byte
	take func(row [][]byte) error
}

// ask carries out queries in one round trip. Statements that come again are prepared.
func (r *reader) ask(ctx context.Context, queries []query) error {
	names, err := r.prepareAll(ctx, queries)
	if err != nil {
		return err
	}
	p := r.conn.PgConn().StartPipeline(ctx)
	for i, q := range queries {
		if names[i] == "" {
			p.SendQueryParams(q.sql, nil, nil, nil, nil)
		} else {
			p.SendQueryPrepared(names[i], q.args, nil, nil)
		}
	}
	if err := p.Sync(); err != nil {
		_ = p.Close() // the first error tells more
		return fmt.Errorf("read the change log: %w", err)
	}
	var failed error
	for _, q := range queries {
		if failed = r.result(p, q.take); failed != nil {
			failed = r.withoutValues(failed, q.sql)
			break
		}
	}
	if err := p.Close(); err != nil && failed == nil {
		failed = fmt.Errorf("read the change log: %w", err)
	}
	return failed
}

func (r *reader) result(p *pgconn.Pipeline, take func([][]byte) error) error {
	got, err := p.GetResults()
	if err != nil {
		return fmt.Errorf("read the change log: %w", err)
	}
	rows, ok := got.(*pgconn.ResultReader)
	if !ok {
		return fmt.Errorf("read the change log: unexpected answer %T in a pipeline", got)
	}
	var failed error
	for failed == nil && rows.NextRow() {
		if take != nil {
			failed = take(rows.Values())
		}
	}
	if _, err := rows.Close(); err != nil && failed == nil {
		return fmt.Errorf("read the change log: %w", err)
	}
	return failed
}

// withoutValues makes of an error that quotes a row's value (of a label that an enum no longer has) one that names the table.
func (r *reader) withoutValues(err error, sql string) error {
	if !strings.HasPrefix(postgres.Code(err), "22") {
		return err
	}
	bare := postgres.WithoutValues(err)
	for _, t := range r.order {
		if t.shape != nil && (strings.HasPrefix(sql, t.shape.statements.net) || strings.HasPrefix(sql, t.shape.statements.gone)) {
			return altered(t.name, fmt.Sprintf("the type of its key, or of a column, refuses a value that its log holds (%v)", bare))
		}
	}
	return fmt.Errorf("read the change log: %w", bare)
}

// prepareAll prepares what comes with parameters or an answer. To parse a statement its tables are locked ACCESS SHARE; so before the window's
// transaction, whose snapshot it would take, that is done in one of its own, in which the wait is bounded too.
func (r *reader) prepareAll(ctx context.Context, queries []query) ([]string, error) {
	fresh := func(q query) bool { return r.prepared[q.sql] == "" && (len(q.args) > 0 || q.take != nil) }
	apart := r.conn.PgConn().TxStatus() == 'I' && slices.ContainsFunc(queries, fresh)
	if apart {
		if _, err := r.conn.PgConn().Exec(ctx, prepareBeginSQL).ReadAll(); err != nil {
			return nil, fmt.Errorf("prepare to read the change log: %w", err)
		}
	}
	names := make([]string, len(queries))
	for i, q := range queries {
		if len(q.args) == 0 && q.take == nil {
			continue // BEGIN, LOCK and their like
		}
		name, err := r.prepare(ctx, q.sql)
		if err != nil {
			return nil, err // the attempt is rolled back
		}
		names[i] = name
	}
	if apart {
		if _, err := r.conn.Exec(ctx, "COMMIT"); err != nil {
			return nil, fmt.Errorf("prepare to read the change log: %w", err)
		}
	}
	return names, nil
}

func (r *reader) prepare(ctx context.Context, sql string) (string, error) {
	if name, ok := r.prepared[sql]; ok {
		return name, nil
	}
	name := "replicator_" + strconv.Itoa(len(r.prepared))
	if _, err := r.conn.PgConn().Prepare(ctx, name, sql, nil); err != nil {
		return "", fmt.Errorf("prepare to read the change log: %w", err)
	}
	r.prepared[sql] = name
	return name, nil
}
