package gate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// body is what the function's source says, written into it as a comment in JSON so that any process can read it back.
type body struct {
	Armed     bool      `json:"armed"`
	Permanent bool      `json:"permanent,omitempty"`
	Deadline  time.Time `json:"deadline,omitzero"`
	Token     string    `json:"token_sha256,omitempty"`
}

const bodyMark = "-- replicator gate: "

// create returns the statement that gives the function this body. Everything in it is a literal: no table is read, so no snapshot
// can be stale, and neither the caller's search_path nor its rights matter. EXECUTE is checked when a trigger is created, not when it
// fires ("Triggers" and CREATE TRIGGER in the PostgreSQL documentation), and schema USAGE not at all.
func (b body) create() (string, error) {
	state, err := json.Marshal(b)
	if err != nil {
		return "", fmt.Errorf("write down the gate's state: %w", err)
	}
	var code string
	pin := "SET search_path = pg_catalog, pg_temp"
	switch {
	case !b.Armed:
		// It names nothing that a search_path could redirect, and goes without the setting's cost (3 of 4 µs a statement): for
		// weeks this is what the application runs.
		pin = ""
		code = "BEGIN\n  RETURN NULL;\nEND\n"
	case b.Permanent:
		code = fmt.Sprintf(armedCode, b.Token, "",
			"this database refuses writes: it is not, or no longer, the primary side of its migration",
			"Write to the primary side: take the connection URL that is in force now and reconnect.")
	default:
		open := fmt.Sprintf("  IF pg_catalog.clock_timestamp() >= '%s'::pg_catalog.timestamptz THEN RETURN NULL; END IF;\n", b.Deadline.UTC().Format("2006-01-02 15:04:05.000000+00"))
		code = fmt.Sprintf(armedCode, b.Token, open,
			"this database refuses writes for a moment: a cutover is under way",
			"Try again shortly; reads go on. If the cutover completes, reconnect with the connection URL that is in force then.")
	}
	return "CREATE OR REPLACE FUNCTION replicator.gate() RETURNS trigger LANGUAGE plpgsql SECURITY INVOKER\n" +
		pin + " AS $gate$\n" + bodyMark + string(state) + "\n" + code + "$gate$", nil
}

func (b body) store(ctx context.Context, tx pgx.Tx) error {
	sql, err := b.create()
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, sql)
	return err
}

// armedCode tests the deadline first: past it, statements cost as little as disarmed.
const armedCode = `BEGIN
%[2]s  IF pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(coalesce(pg_catalog.current_setting('` + tokenSetting + `', true), ''), 'UTF8')), 'hex') = '%[1]s' THEN
    RETURN NULL;
  END IF;
  RAISE EXCEPTION USING ERRCODE = '25006', MESSAGE = '%[3]s', HINT = '%[4]s';
END
`

type rowQuerier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

const readBodySQL = `
SELECT p.prosrc FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname = 'replicator' AND p.proname = 'gate' AND p.pronargs = 0`

func readBody(ctx context.Context, q rowQuerier) (body, error) {
	var src string
	if err := q.QueryRow(ctx, readBodySQL).Scan(&src); errors.Is(err, pgx.ErrNoRows) {
		return body{}, ErrNotInstalled
	} else if err != nil {
		return body{}, fmt.Errorf("read replicator.gate(): %w", err)
	}
	return parseBody(src)
}

func parseBody(src string) (body, error) {
	_, rest, ok := strings.Cut(src, bodyMark)
	if !ok {
		return body{}, errors.New("replicator.gate() was not written by replicator: drop that function (its triggers go with CASCADE) and try again")
	}
	line, _, _ := strings.Cut(rest, "\n")
	var b body
	if err := json.Unmarshal([]byte(line), &b); err != nil {
		return body{}, fmt.Errorf("read the state in replicator.gate(): %w", err)
	}
	return b, nil
}
