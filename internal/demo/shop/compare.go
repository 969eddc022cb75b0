package shop

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Compare compares the full contents of two sides at rest, row by row and key by key, by its own means. It returns one line for
// each difference, at most a few for each table or database.
func Compare(ctx context.Context, a, b Endpoint) ([]string, error) {
	var differences []string
	if a.PostgresURL != "" {
		d, err := comparePostgres(ctx, a, b)
		if err != nil {
			return nil, fmt.Errorf("compare the Postgres of both sides: %w", err)
		}
		differences = append(differences, d...)
	}
	if a.RedisURL != "" {
		d, err := compareRedis(ctx, a, b)
		if err != nil {
			return nil, fmt.Errorf("compare the Redis of both sides: %w", err)
		}
		differences = append(differences, d...)
	}
	return differences, nil
}

const (
	listTables = `
SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'replicator') ORDER BY 1`
	// Rows are compared by their text form, which says all but is the same on both sides under the same settings.
	digestTable = `SELECT count(*)::text || ' rows, digest ' || coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM ONLY %s t`
	readTable   = `SELECT t::text FROM ONLY %s t`
)

func comparePostgres(ctx context.Context, a, b Endpoint) (differences []string, err error) {
	var conns [2]*pgx.Conn
	var tables [2][]string
	for i, at := range []Endpoint{a, b} {
		if conns[i], err = pgx.Connect(ctx, at.PostgresURL); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, conns[i].Close(context.WithoutCancel(ctx))) }()
		if _, err := conns[i].Exec(ctx, "SET timezone = 'UTC'; SET extra_float_digits = 3"); err != nil {
			return nil, err
		}
		if tables[i], err = texts(ctx, conns[i], listTables); err != nil {
			return nil, err
		}
	}
	if got, want := strings.Join(tables[0], " "), strings.Join(tables[1], " "); got != want {
		return []string{fmt.Sprintf("%s has the tables %s; %s has %s", a.Name, got, b.Name, want)}, nil
	}
	for _, table := range tables[0] {
		var digests [2]string
		for i := range conns {
			if err := conns[i].QueryRow(ctx, fmt.Sprintf(digestTable, table)).Scan(&digests[i]); err != nil {
				return nil, err
			}
		}
		if digests[0] == digests[1] {
			continue
		}
		differences = append(differences, fmt.Sprintf("%s: %s has %s; %s has %s", table, a.Name, digests[0], b.Name, digests[1]))
		var rows [2][]string
		for i := range conns {
			if rows[i], err = texts(ctx, conns[i], fmt.Sprintf(readTable, table)); err != nil {
				return nil, err
			}
		}
		differences = append(differences, surplus(table, a.Name, rows[0], rows[1])...)
		differences = append(differences, surplus(table, b.Name, rows[1], rows[0])...)
	}
	return differences, nil
}

func texts(ctx context.Context, conn *pgx.Conn, query string) ([]string, error) {
	rows, err := conn.Query(ctx, query)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// surplus names the first few items that one side has more often than the other.
func surplus(where, side string, has, other []string) []string {
	n := map[string]int{}
	for _, s := range other {
		n[s]++
	}
	var lines []string
	for _, s := range has {
		if n[s]--; n[s] < 0 {
			lines = append(lines, fmt.Sprintf("%s: only %s has %.200s", where, side, s))
		}
	}
	sort.Strings(lines)
	return lines[:min(len(lines), 5)]
}
