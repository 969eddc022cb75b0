package state

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"replicator/internal/postgres"
	"replicator/replication"
)

// Step is how far the first set-up of a pair has come. It only ever grows.
type Step string

// The steps, in order: nothing is there; the schema's statements are stored; tables exist on the target; the capture is in place and
// tables may be copied; keys and indexes are built; constraints, triggers and the rest are in place too.
const (
	StepNew      Step = "new"
	StepDumped   Step = "dumped"
	StepTables   Step = "tables"
	StepCapture  Step = "capture"
	StepIndexed  Step = "indexed"
	StepComplete Step = "complete"
	StepFinished Step = "finished"
)

// Pair is the stored row of a pair.
type Pair struct {
	Step         Step
	Capture      string
	SourceSystem string
	Fingerprint  string
}

// Pairs is the stored state of one pair on its target.
type Pairs struct {
	pool *pgxpool.Pool
	id   postgres.Identity
}

// NewPairs returns the stored state of the pair that id names, for the leader with id's epoch.
func NewPairs(pool *pgxpool.Pool, id postgres.Identity) *Pairs { return &Pairs{pool: pool, id: id} }

// Load reads the pair, making its row if there is none.
func (p *Pairs) Load(ctx context.Context) (Pair, error) {
	var out Pair
	err := p.pool.QueryRow(ctx, `INSERT INTO replicator.pair AS p (migration, pair) VALUES ($1, $2)
		ON CONFLICT (migration, pair) DO UPDATE SET pair = p.pair RETURNING step, capture, source_system, fingerprint`, p.id.Migration, p.id.Pair).
		Scan(&out.Step, &out.Capture, &out.SourceSystem, &out.Fingerprint)
	if err != nil {
		return out, fmt.Errorf("read the state of pair %q: %w", p.id.Pair, err)
	}
	return out, nil
}

// Save writes the pair.
func (p *Pairs) Save(ctx context.Context, s Pair) error {
	_, err := p.fenced(ctx, "write the state of the pair", `UPDATE replicator.pair SET step = $3, capture = $4, source_system = $5, fingerprint = $6, updated_at = clock_timestamp()
		WHERE migration = $1 AND pair = $2`, p.id.Migration, p.id.Pair, s.Step, s.Capture, s.SourceSystem, s.Fingerprint)
	return err
}

// fenced carries a statement out in a synchronous transaction that only the leader can commit, in one round trip.
func (p *Pairs) fenced(ctx context.Context, doing, sql string, args ...any) (pgconn.CommandTag, error) {
	var b pgx.Batch
	b.Queue(`BEGIN`)
	b.Queue(`SET LOCAL synchronous_commit = on`)
	QueueFence(&b, p.id)
	b.Queue(sql, args...)
	b.Queue(`COMMIT`)
	tag, err := carryOut(p.pool.SendBatch(ctx, &b), b.Len()-2)
	if err != nil {
		return tag, fmt.Errorf("%s: %w", doing, Fenced(err))
	}
	return tag, nil
}

// carryOut reads a batch's answers and returns that with the number which.
func carryOut(r pgx.BatchResults, which int) (out pgconn.CommandTag, err error) {
	for i := 0; i <= which && err == nil; i++ {
		out, err = r.Exec()
	}
	return out, errors.Join(err, r.Close())
}

// fencedTx runs f in a synchronous transaction that only the leader can commit.
func (p *Pairs) fencedTx(ctx context.Context, doing string, f func(pgx.Tx) error) error {
	err := pgx.BeginFunc(ctx, p.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL synchronous_commit = on`); err != nil {
			return err
		}
		if err := Fence(ctx, tx, p.id); err != nil {
			return err
		}
		return f(tx)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return nil
}

const fenceSQL = `SELECT 1 / count(*) FROM (SELECT FROM replicator.migration WHERE name = $1 AND epoch = $2 FOR SHARE) f`

// QueueFence makes the transaction that the batch is part of one that only the leader can commit, as Fence does, without waiting for an
// answer: it fails by itself in any other process. Fenced tells so of an error.
func QueueFence(b *pgx.Batch, id postgres.Identity) { b.Queue(fenceSQL, id.Migration, id.Epoch) }

// Fenced returns replication.ErrDeposed, with what to do, for the failure of what QueueFence has queued, and any other error as it is.
func Fenced(err error) error {
	if postgres.Code(err) == postgres.CodeDivisionByZero {
		return deposed("check the epoch")
	}
	return err
}

// Fence makes the transaction one that only the leader can commit: it holds the epoch's row until its end.
func Fence(ctx context.Context, tx pgx.Tx, id postgres.Identity) error {
	var one int
	err := tx.QueryRow(ctx, `SELECT 1 FROM replicator.migration WHERE name = $1 AND epoch = $2 FOR SHARE`, id.Migration, id.Epoch).Scan(&one)
	if errors.Is(err, pgx.ErrNoRows) {
		return deposed("check the epoch")
	}
	return err
}

// CopyState is how far the copy of a table has come.
type CopyState string

// The states of a table's copy.
const (
	Pending CopyState = "pending"
	Copying CopyState = "copying"
	Copied  CopyState = "copied"
)

// Copy is the stored state of one table's copy.
type Copy struct {
	Table    replication.TableName
	State    CopyState
	Snapshot string
	LSN      string
	Rows     int64
	Bytes    int64
	// Storage is where the source stored the rows when they were last known to be the target's too, as text; empty if that isn't known.
	Storage string
	// Witness is the source's witness of what the copy has seen; empty if there is none, or the stream has passed the copy.
	Witness string
}

// Copies lists the pair's tables by name.
func (p *Pairs) Copies(ctx context.Context) ([]Copy, error) {
	rows, err := p.pool.Query(ctx, `SELECT schema_name, table_name, state, snapshot, lsn, rows, bytes, storage, witness FROM replicator.copy
		WHERE migration = $1 AND pair = $2 ORDER BY 1, 2`, p.id.Migration, p.id.Pair)
	if err != nil {
		return nil, fmt.Errorf("read the state of the copies: %w", err)
	}
	out, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (c Copy, err error) {
		err = r.Scan(&c.Table.Schema, &c.Table.Name, &c.State, &c.Snapshot, &c.LSN, &c.Rows, &c.Bytes, &c.Storage, &c.Witness)
		return c, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the state of the copies: %w", err)
	}
	return out, nil
}

// AddCopies makes tables pending that are not known yet.
func (p *Pairs) AddCopies(ctx context.Context, tables []replication.TableName) error {
	schemas, names := split(tables)
	_, err := p.fenced(ctx, "note the tables to copy", `INSERT INTO replicator.copy (migration, pair, schema_name, table_name)
		SELECT $1, $2, s, t FROM unnest($3::text[], $4::text[]) AS u(s, t) ON CONFLICT DO NOTHING`, p.id.Migration, p.id.Pair, schemas, names)
	return err
}

// ResetCopies makes tables pending again, so that they are copied anew; all of the pair's where none is named. It returns how many.
func (p *Pairs) ResetCopies(ctx context.Context, tables []replication.TableName) (int64, error) {
	schemas, names := split(tables)
	tag, err := p.fenced(ctx, "note the tables to copy again", `UPDATE replicator.copy SET state = 'pending', snapshot = '', lsn = '0/0', rows = 0, bytes = 0, storage = '', witness = ''
		WHERE migration = $1 AND pair = $2 AND ($5 OR (schema_name, table_name) IN (SELECT * FROM unnest($3::text[], $4::text[])))`,
		p.id.Migration, p.id.Pair, schemas, names, len(tables) == 0)
	return tag.RowsAffected(), err
}

// ForgetCopies forgets tables that are no longer replicated.
func (p *Pairs) ForgetCopies(ctx context.Context, tables []replication.TableName) error {
	schemas, names := split(tables)
	_, err := p.fenced(ctx, "forget tables", `DELETE FROM replicator.copy WHERE migration = $1 AND pair = $2 AND (schema_name, table_name) IN (SELECT * FROM unnest($3::text[], $4::text[]))`,
		p.id.Migration, p.id.Pair, schemas, names)
	return err
}

// AdoptCopies marks all of the pair's tables as copied by other means, before everything that the stream will carry.
func (p *Pairs) AdoptCopies(ctx context.Context) error {
	_, err := p.fenced(ctx, "note the tables as loaded", `UPDATE replicator.copy SET state = 'copied', snapshot = '3:3:', lsn = '0/0', finished_at = clock_timestamp() WHERE migration = $1 AND pair = $2`, p.id.Migration, p.id.Pair)
	return err
}

// StartCopy notes that a table's copy begins under a new snapshot; what an earlier attempt left is void.
func (p *Pairs) StartCopy(ctx context.Context, c Copy) error {
	_, err := p.fenced(ctx, "note the start of a copy", `UPDATE replicator.copy SET state = 'copying', snapshot = $5, lsn = $6, storage = $7, witness = '', rows = 0, bytes = 0, started_at = clock_timestamp(), finished_at = NULL
		WHERE migration = $1 AND pair = $2 AND schema_name = $3 AND table_name = $4`, p.id.Migration, p.id.Pair, c.Table.Schema, c.Table.Name, c.Snapshot, c.LSN, c.Storage)
	return err
}

// FinishCopy notes, in the transaction that the batch is part of, that a table is copied. In a process that no longer leads it fails, see Fenced.
func (p *Pairs) FinishCopy(b *pgx.Batch, c Copy) {
	QueueFence(b, p.id)
	b.Queue(`UPDATE replicator.copy SET state = 'copied', rows = $5, bytes = $6, witness = $7, finished_at = clock_timestamp()
		WHERE migration = $1 AND pair = $2 AND schema_name = $3 AND table_name = $4`, p.id.Migration, p.id.Pair, c.Table.Schema, c.Table.Name, c.Rows, c.Bytes, c.Witness)
}

// SaveStorage notes where the source stores the rows of tables whose copies are good.
func (p *Pairs) SaveStorage(ctx context.Context, storage map[replication.TableName]string) error {
	var tables []replication.TableName
	var texts []string
	for t, s := range storage {
		tables, texts = append(tables, t), append(texts, s)
	}
	schemas, names := split(tables)
	_, err := p.fenced(ctx, "note where tables are stored", `UPDATE replicator.copy c SET storage = u.storage FROM unnest($3::text[], $4::text[], $5::text[]) AS u(s, t, storage)
		WHERE c.migration = $1 AND c.pair = $2 AND c.schema_name = u.s AND c.table_name = u.t AND c.state = 'copied'`, p.id.Migration, p.id.Pair, schemas, names, texts)
	return err
}

func split(tables []replication.TableName) (schemas, names []string) {
	schemas, names = make([]string, len(tables)), make([]string, len(tables))
	for i, t := range tables {
		schemas[i], names[i] = t.Schema, t.Name
	}
	return schemas, names
}

// Statement is one stored statement of the schema's plan.
type Statement struct {
	Seq                              int
	Section, Type, Schema, Name, SQL string
	Done                             bool
}

// SaveStatements stores a stage's statements, replacing none that are there.
func (p *Pairs) SaveStatements(ctx context.Context, stages map[string][]Statement, next Pair) error {
	return p.fencedTx(ctx, "store the schema", func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `DELETE FROM replicator.ddl WHERE migration = $1 AND pair = $2`, p.id.Migration, p.id.Pair); err != nil {
			return err
		}
		var rows [][]any
		for stage, list := range stages {
			for _, s := range list {
				rows = append(rows, []any{p.id.Migration, p.id.Pair, stage, s.Seq, s.Section, s.Type, s.Schema, s.Name, s.SQL})
			}
		}
		if _, err := tx.CopyFrom(ctx, pgx.Identifier{"replicator", "ddl"}, []string{"migration", "pair", "stage", "seq", "section", "type", "schema_name", "name", "statement"}, pgx.CopyFromRows(rows)); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `UPDATE replicator.pair SET step = $3, capture = $4, source_system = $5, fingerprint = $6, updated_at = clock_timestamp()
			WHERE migration = $1 AND pair = $2`, p.id.Migration, p.id.Pair, next.Step, next.Capture, next.SourceSystem, next.Fingerprint)
		return err
	})
}

// Statements reads a stage's statements in order.
func (p *Pairs) Statements(ctx context.Context, stage string) ([]Statement, error) {
	rows, err := p.pool.Query(ctx, `SELECT seq, section, type, schema_name, name, statement, done_at IS NOT NULL FROM replicator.ddl
		WHERE migration = $1 AND pair = $2 AND stage = $3 ORDER BY seq`, p.id.Migration, p.id.Pair, stage)
	if err != nil {
		return nil, fmt.Errorf("read the stored schema: %w", err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Statement])
	if err != nil {
		return nil, fmt.Errorf("read the stored schema: %w", err)
	}
	return out, nil
}

// StatementDone is the statement that notes, in a transaction of the caller's, that one of the schema has been carried out.
func (p *Pairs) StatementDone(stage string, seq int) string {
	return fmt.Sprintf(`UPDATE replicator.ddl SET done_at = clock_timestamp() WHERE migration = %s AND pair = %s AND stage = %s AND seq = %d`,
		replication.QuoteLiteral(p.id.Migration), replication.QuoteLiteral(p.id.Pair), replication.QuoteLiteral(stage), seq)
}

// Undo is a setting of an object of the application's that was changed, and what it was before.
type Undo struct {
	Side, What, Schema, Name, Previous string
}

// SaveUndo notes what is about to be changed. The first note of an object stands: a repeated change doesn't overwrite it.
func (p *Pairs) SaveUndo(ctx context.Context, u Undo) error {
	_, err := p.fenced(ctx, "note what to put back", `INSERT INTO replicator.undo VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING`,
		p.id.Migration, p.id.Pair, u.Side, u.What, u.Schema, u.Name, u.Previous)
	return err
}

// Undos lists what is to be put back on a side.
func (p *Pairs) Undos(ctx context.Context, side string) ([]Undo, error) {
	rows, err := p.pool.Query(ctx, `SELECT side, what, schema_name, name, previous FROM replicator.undo WHERE migration = $1 AND pair = $2 AND side = $3 ORDER BY what, schema_name, name`, p.id.Migration, p.id.Pair, side)
	if err != nil {
		return nil, fmt.Errorf("read what to put back: %w", err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Undo])
	if err != nil {
		return nil, fmt.Errorf("read what to put back: %w", err)
	}
	return out, nil
}

// Settings reads what the pair has chosen.
func (p *Pairs) Settings(ctx context.Context) (map[string]string, error) {
	rows, err := p.pool.Query(ctx, `SELECT key, value FROM replicator.setting WHERE migration = $1 AND pair = $2`, p.id.Migration, p.id.Pair)
	if err != nil {
		return nil, fmt.Errorf("read the pair's settings: %w", err)
	}
	out := map[string]string{}
	var key, value string
	if _, err := pgx.ForEachRow(rows, []any{&key, &value}, func() error { out[key] = value; return nil }); err != nil {
		return nil, fmt.Errorf("read the pair's settings: %w", err)
	}
	return out, nil
}

// Set writes a choice of the pair's.
func (p *Pairs) Set(ctx context.Context, key, value string) error {
	_, err := p.fenced(ctx, "write the pair's settings", `INSERT INTO replicator.setting VALUES ($1, $2, $3, $4) ON CONFLICT (migration, pair, key) DO UPDATE SET value = excluded.value`,
		p.id.Migration, p.id.Pair, key, value)
	return err
}

// Undone removes a note of what to put back, once it has been.
func (p *Pairs) Undone(ctx context.Context, u Undo) error {
	_, err := p.fenced(ctx, "note what was put back", `DELETE FROM replicator.undo WHERE migration = $1 AND pair = $2 AND side = $3 AND what = $4 AND schema_name = $5 AND name = $6`,
		p.id.Migration, p.id.Pair, u.Side, u.What, u.Schema, u.Name)
	return err
}
