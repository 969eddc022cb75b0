package apply

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
	"replicator/replication"
)

// soak multiplies the work of a random test when REPLICATOR_SOAK is set.
func soak(n int) int {
	if os.Getenv("REPLICATOR_SOAK") != "" {
		return 20 * n
	}
	return n
}

const positionTable = `CREATE SCHEMA IF NOT EXISTS replicator;
CREATE TABLE replicator.position (migration text, pair text, direction text, position text NOT NULL, epoch bigint NOT NULL, updated_at timestamptz, session bigint NOT NULL DEFAULT 0, PRIMARY KEY (migration, pair, direction));`

// destination is a database that changes are applied to.
type destination struct {
	t    *testing.T
	url  string
	pool *pgxpool.Pool // for looking at it
	id   postgres.Identity
	o    Options
}

// newDestination makes the schema in an empty database; types are named by the database origin, by itself where that is empty.
func newDestination(t *testing.T, url, origin, schema, position string) *destination {
	t.Helper()
	d := &destination{t: t, url: url, id: postgres.Identity{Migration: "m", Pair: "p", Epoch: 7}}
	pgtest.Exec(t, url, schema, positionTable, "INSERT INTO replicator.position VALUES ('m', 'p', 'forward', '"+position+"', 7)")
	if origin == "" {
		origin = url
	}
	names, err := postgres.Pool(d.ctx(), origin, d.id, "names", 2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(names.Close)
	if d.pool, err = pgxpool.New(d.ctx(), url); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.pool.Close)
	d.o = Options{URL: url, ID: d.id, Direction: replication.Forward, TypeNames: func(ctx context.Context, oids []uint32, mods []int32) ([]string, error) {
		rows, err := names.Query(ctx, `SELECT format_type(o, m) FROM unnest($1::oid[], $2::int4[]) WITH ORDINALITY AS u(o, m, n) ORDER BY n`, oids, mods)
		if err != nil {
			return nil, err
		}
		return pgx.CollectRows(rows, pgx.RowTo[string])
	}}
	return d
}

// ctx bounds one call.
func (d *destination) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	d.t.Cleanup(cancel)
	return ctx
}

func (d *destination) open() *Applier {
	d.t.Helper()
	a, err := Open(d.ctx(), d.o)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { a.Close(context.Background()) })
	return a
}

// rows reads a query's rows as text.
func (d *destination) rows(sql string, args ...any) []string {
	d.t.Helper()
	return rows(d.t, d.pool, sql, args...)
}

func rows(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := pool.Query(ctx, sql, args...)
	if err != nil {
		t.Fatal(err)
	}
	out, err := pgx.CollectRows(r, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

// relation describes a table as the stream would, from the destination's own catalog.
func (d *destination) relation(name string, identity replication.ReplicaIdentity, key ...string) *replication.Relation {
	d.t.Helper()
	r := &replication.Relation{Name: replication.TableName{Schema: "public", Name: name}, ReplicaIdentity: identity}
	found, err := d.pool.Query(d.ctx(), `SELECT attname::text, atttypid, atttypmod FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum`, "public."+name)
	if err != nil {
		d.t.Fatal(err)
	}
	r.Columns, err = pgx.CollectRows(found, func(row pgx.CollectableRow) (c replication.RelationColumn, err error) {
		err = row.Scan(&c.Name, &c.TypeOID, &c.TypeMod)
		c.Key = slices.Contains(key, c.Name)
		return c, err
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return r
}

// Changes by hand. A value is a string, nil for NULL, or unchanged.

type unchangedValue struct{}

var unchanged unchangedValue

func values(in []any) []replication.Value {
	out := make([]replication.Value, len(in))
	for i, v := range in {
		switch v := v.(type) {
		case nil:
			out[i].Kind = replication.Null
		case unchangedValue:
			out[i].Kind = replication.Unchanged
		default:
			out[i] = replication.Value{Kind: replication.Text, Data: []byte(fmt.Sprint(v))}
		}
	}
	return out
}

func insert(r *replication.Relation, row ...any) replication.Change {
	return replication.Change{Op: replication.Insert, Relation: r, New: values(row)}
}

func update(r *replication.Relation, row ...any) replication.Change {
	return replication.Change{Op: replication.Update, Relation: r, New: values(row)}
}

func remove(r *replication.Relation, row ...any) replication.Change {
	return replication.Change{Op: replication.Delete, Relation: r, Old: values(row)}
}

// batch makes one transaction that ends at the position.
func batch(position replication.Position, changes ...replication.Change) *replication.Batch {
	b := replication.NewBatch()
	b.Changes, b.Position = changes, position
	b.Marks = []replication.Mark{{End: len(changes), Position: position}}
	return b
}
