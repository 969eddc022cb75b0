package verify

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"replicator/internal/pgtest"
	"replicator/replication"
)

// opener opens plain sessions, whose settings Compare has to pin itself, on one snapshot of the database.
func opener(t *testing.T, url string) Opener {
	t.Helper()
	holder := pgtest.Connect(t, url)
	var snapshot string
	if _, err := holder.Exec(t.Context(), `BEGIN ISOLATION LEVEL REPEATABLE READ`); err != nil {
		t.Fatal(err)
	}
	if err := holder.QueryRow(t.Context(), `SELECT pg_export_snapshot()`).Scan(&snapshot); err != nil {
		t.Fatal(err)
	}
	return func(ctx context.Context) (*pgx.Conn, func(), error) {
		conn, err := pgx.Connect(ctx, url)
		if err != nil {
			return nil, nil, err
		}
		release := func() { _ = conn.Close(context.WithoutCancel(ctx)) }
		for _, sql := range []string{`BEGIN ISOLATION LEVEL REPEATABLE READ`, `SET TRANSACTION SNAPSHOT '` + snapshot + `'`} {
			if _, err := conn.Exec(ctx, sql); err != nil {
				release()
				return nil, nil, err
			}
		}
		return conn, release, nil
	}
}

// table reads what Compare needs to know of a table; key lists the key's columns.
func table(t *testing.T, url, name string, key ...string) replication.Table {
	t.Helper()
	c := pgtest.Connect(t, url)
	rows, err := c.Query(t.Context(), `SELECT attname FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum`, name)
	if err != nil {
		t.Fatal(err)
	}
	columns, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	out := replication.Table{Name: replication.TableName{Schema: "public", Name: name}}
	for _, col := range columns {
		out.Columns = append(out.Columns, replication.Column{Name: col})
	}
	for _, k := range key {
		i := slices.Index(columns, k)
		if i < 0 {
			t.Fatalf("no column %s", k)
		}
		out.Key = append(out.Key, i)
	}
	return out
}

func compare(t *testing.T, source, target string, o Options, tables ...replication.Table) Report {
	t.Helper()
	r, err := Compare(t.Context(), opener(t, source), opener(t, target), tables, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func two(t *testing.T) (source, target string) {
	t.Helper()
	s := pgtest.Shared(t)
	return s.Database(t), s.Database(t)
}

// want checks one table's differences.
func want(t *testing.T, r Report, expected ...string) {
	t.Helper()
	var got []string
	for _, d := range r.Tables[0].Differences {
		got = append(got, fmt.Sprintf("%s %s", d.Kind, d.Key))
	}
	if !slices.Equal(got, expected) || r.Tables[0].Equal != (len(expected) == 0) || r.Mismatches != len(expected) {
		t.Errorf("differences %q (equal %v, %d mismatches), want %q", got, r.Tables[0].Equal, r.Mismatches, expected)
	}
}
