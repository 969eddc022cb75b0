package trigger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/replication"
)

// A small table whose rows are updated again and again is scanned: its trigger fires for inserts, deletes and updates that name a column of the
// key (UPDATE OF), and costs all other updates nothing. What these have changed is found by reading the whole table in each window: a row's version
// whose xmin the former snapshot didn't see has come since. That takes no note of which transaction wrote what, and loses none, since xmin is
// the id of the version's own transaction or subtransaction ("System Columns"); freezing leaves it readable. A row that is named without
// having changed is written again as it is.

// scan is what the reader knows of a table that is scanned.
type scan struct {
	// known are the xmin, at or after the last snapshot's, of the rows that it showed: subtransactions' ids among them, of which a snapshot says
	// nothing. found are those that the present window sees at or after the last snapshot's xmin.
	known map[uint32]bool
	found []uint32
	// narrow: the trigger leaves plain updates out. full is a snapshot that sees the transaction by which it stopped to.
	narrow bool
	full   *replication.Snapshot
	// updates is how many rows statistics say were updated, -1 before the first look at them; hot: enough of them since the look before.
	updates int64
	hot     bool
	// rest is after how many rounds of upkeep a busy table is tried again, tries how often it was.
	rest, tries int
}

func (s *scan) news() bool {
	return slices.ContainsFunc(s.found, func(x uint32) bool { return !s.known[x] })
}

// recent is the condition that a version of table t may be as young as the snapshot whose xmin is the given parameter: that its 32-bit id is one of those
// given out from then on to the present snapshot's xmax, beyond which nothing is visible. The comparison with ctid makes the planner read the table in its order, where it may not read it whole (settings).
func recent(parameter string) string {
	return "t.ctid >= '(0,0)'::tid AND (t.xmin::text::bigint - " + parameter + "::bigint) & 4294967295 < (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint) - " + parameter + "::bigint"
}

// updated is the part of touched that comes from the table itself.
func (d described) updated(table string) string {
	keys := make([]string, len(d.Key))
	for i, c := range d.Key {
		keys[i] = "t." + replication.QuoteIdent(c.Name) + "::" + c.Type
		if c.Collation != "" {
			keys[i] = "(" + keys[i] + ") COLLATE " + c.Collation
		}
	}
	return "SELECT 0, false, " + strings.Join(keys, ", ") + " FROM ONLY " + table + " t WHERE " + recent("$3") + " AND t.xmin::text::bigint <> ALL ($4::bigint[])"
}

// args are the parameters of a table's statements.
func (r *reader) args(t *captured) [][]byte {
	p := r.previous(t)
	if !t.log.Scanned {
		return bounds(p)
	}
	known := []byte{'{'}
	for x := range t.scan.known {
		if len(known) > 1 {
			known = append(known, ',')
		}
		known = strconv.AppendUint(known, uint64(x), 10)
	}
	return append(bounds(p), strconv.AppendUint(nil, p.Xmin, 10), append(known, '}'))
}

const rewrittenSQL = `SELECT c.oid::text FROM pg_class c WHERE c.oid = ANY($1::text::oid[]) AND c.relfilenode IS DISTINCT FROM pg_relation_filenode(c.oid)`

func (r *reader) scanned() []*captured {
	return slices.DeleteFunc(slices.Clone(r.order), func(t *captured) bool { return !t.log.Scanned })
}

// scans read which versions the tables that are scanned have. Reading locks them: a rewrite after the snapshot was taken, which makes a
// table look empty, has ended by then and can be seen.
func (w *window) scans() []query {
	var out []query
	var oids []uint32
	for _, t := range w.order {
		t.scan.found = t.scan.found[:0]
	}
	for _, t := range w.scanned() {
		oids = append(oids, t.oid)
		out = append(out, query{"SELECT DISTINCT t.xmin::text::bigint FROM ONLY " + t.name.Quoted() + " t WHERE " + recent("$1"),
			[][]byte{strconv.AppendUint(nil, w.previous(t).Xmin, 10)}, func(row [][]byte) error {
				x, err := strconv.ParseUint(string(row[0]), 10, 32)
				t.scan.found = append(t.scan.found, uint32(x))
				return err
			}})
	}
	if len(oids) == 0 {
		return nil
	}
	return append(out, query{rewrittenSQL, [][]byte{oidArray(oids)}, func([][]byte) error { return errRewritten }})
}

// settle remembers what the window's snapshot, now the last one, has shown. An id outside the snapshot's bounds, or of a transaction that was running, is
// none of its time: the row was frozen long ago, before ids were given out a second time, and what that id writes now is still to come.
func (w *window) settle() {
	s := w.state.snapshot
	for _, t := range w.order {
		clear(t.scan.known)
		for _, x := range t.scan.found {
			id := s.Xmin + uint64(x-uint32(s.Xmin))
			if id >= s.Xmax || slices.Contains(s.Xip, id) {
				continue
			}
			if t.scan.known == nil {
				t.scan.known = map[uint32]bool{}
			}
			t.scan.known[x] = true
		}
	}
}

// missing explains that a table wasn't there: drift can tell more.
func (r *reader) missing(ctx context.Context, err error) error {
	if r.s.o.Drift != nil {
		if e := pgx.BeginTxFunc(ctx, r.conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
			return r.s.o.Drift(ctx, tx)
		}); e != nil {
			return e
		}
	}
	return &preflight.Hinted{Code: "capture-altered", Err: fmt.Errorf("a table was dropped or renamed: %w", err),
		Hint: "make both sides alike, then run `replicator resync` for it, or exclude it"}
}

// Scanning is what makes a table one that is scanned. Zeros stand for DefaultScanning's values.
type Scanning struct {
	// Bytes is the size of a table up to which it is; one four times as large is no longer.
	Bytes int64
	// Updates is how many rows of it must be updated between two rounds of upkeep.
	Updates int64
	// Tables bounds how many are: each is read in every look at the source.
	Tables int
}

// DefaultScanning takes in tables of which the pages are read in less than a millisecond, from a hundred updates a second on.
var DefaultScanning = Scanning{Bytes: 512 << 10, Updates: 200, Tables: 8}

func (s Scanning) orDefault() Scanning {
	d := DefaultScanning
	if s.Bytes != 0 {
		d.Bytes = s.Bytes
	}
	if s.Updates != 0 {
		d.Updates = s.Updates
	}
	if s.Tables != 0 {
		d.Tables = s.Tables
	}
	return d
}

// heat takes in how many of the table's rows have been updated by now. Whether it is small enough is seen by measure.
func (t *captured) heat(updates int64, o Scanning) {
	t.scan.hot = t.scan.updates >= 0 && updates-t.scan.updates >= o.Updates && len(t.log.Key) > 0 && t.seam == nil && !t.log.Scanned
	t.scan.updates = updates
}

// scannableSQL tells which tables can be scanned: not those of which an update may change the key without naming it, and no partitions. None can where
// transaction ids come round for a second time, or will soon: a row that was frozen in the first one shows the 32-bit id of a transaction of today,
// and of a subtransaction's id no snapshot tells which it is.
const scannableSQL = `
SELECT c.oid FROM pg_class c WHERE c.oid = ANY($1) AND c.relkind = 'r' AND NOT c.relispartition AND current_setting('server_version_num')::int >= 140000
  AND pg_snapshot_xmax(pg_current_snapshot())::text::bigint < 4294967296 - 16777216
  AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgtype & 19 = 19)
  AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated <> '' AND NOT a.attisdropped)`

// rescan makes hot small tables ones that are scanned, and takes back what has grown.
func (r *reader) rescan(ctx context.Context) error {
	var oids []uint32
	count := 0
	for _, t := range r.order {
		if t.log.Scanned {
			count++
		}
		if t.log.Scanned || t.scan.hot {
			oids = append(oids, t.oid)
		}
	}
	if len(oids) == 0 {
		return nil
	}
	rows, err := r.conn.Query(ctx, scannableSQL, oids)
	if err != nil {
		return fmt.Errorf("look for tables to scan: %w", err)
	}
	able, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
	if err != nil {
		return fmt.Errorf("look for tables to scan: %w", err)
	}
	for _, t := range r.order {
		fits := slices.Contains(able, t.oid) && t.bytes <= 4*r.s.o.Scanning.Bytes
		switch {
		case t.log.Scanned && t.scan.narrow && !fits:
			err = r.widen(ctx, t)
		case t.log.Scanned && !t.scan.narrow:
			err = r.unscan(ctx, t)
		case t.scan.hot && fits && count < r.s.o.Scanning.Tables:
			if err = r.narrow(ctx, t); t.log.Scanned {
				count++
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// rowTrigger is what follows CREATE TRIGGER.
func (d described) rowTrigger(oid uint32, table string, narrow bool) string {
	of := ""
	if narrow {
		names := make([]string, len(d.Key))
		for i, c := range d.Key {
			names[i] = replication.QuoteIdent(c.Name)
		}
		of = " OF " + strings.Join(names, ", ")
	}
	return rowTrigger + " AFTER INSERT OR DELETE OR UPDATE" + of + " ON " + table + " FOR EACH ROW EXECUTE FUNCTION " + functionName(oid) + "()"
}

// replace gives a table another row trigger, if it can be had at once. Whoever writes to it waits for that, and nobody writes in between.
func (r *reader) replace(ctx context.Context, t *captured, narrow bool, also ...string) (bool, error) {
	if t.scan.rest > 0 {
		t.scan.rest--
		return false, nil
	}
	table := t.name.Quoted()
	statements := append([]string{stillCapturedSQL, "LOCK TABLE ONLY " + table + " IN SHARE ROW EXCLUSIVE MODE", "CREATE OR REPLACE TRIGGER " + t.log.rowTrigger(t.oid, table, narrow),
		"ALTER TABLE ONLY " + table + " ENABLE ALWAYS TRIGGER " + rowTrigger}, also...)
	round := 1
	if !narrow {
		round += t.scan.tries // this one has to succeed
	}
	err := postgres.Once(ctx, r.conn, postgres.LockedStep{OID: t.oid, Name: t.name.String(), Statements: statements}, postgres.ShareRowExclusive, round)
	switch {
	case err == nil:
		t.scan.narrow, t.scan.tries = narrow, 0
		return true, nil
	case errors.Is(err, postgres.ErrBusy), postgres.Code(err) == postgres.CodeLockNotAvailable, postgres.Code(err) == "40P01":
		t.scan.tries++
		t.scan.rest = min(1<<min(t.scan.tries, 6), 64)
		return false, nil
	case postgres.Code(err) == postgres.CodeDivisionByZero:
		return false, lost()
	}
	return false, fmt.Errorf("replace the capture trigger of %s: %w", t.name, err)
}

// narrow begins to scan a table. What came before is in its log, and what comes behind, in its rows; so both are read from now on.
func (r *reader) narrow(ctx context.Context, t *captured) error {
	next := t.log
	next.Scanned = true
	function, err := next.create(t.oid)
	if err != nil {
		return err
	}
	done, err := r.replace(ctx, t, true, r.unsilenced(), function)
	if done {
		t.log, t.shape, t.scan.known, t.scan.full = next, nil, nil, nil
		r.s.o.Log.Info("change log: updates of a small table are read from the table itself", "table", t.name.String())
	}
	return err
}

// widen has all updates logged again. The table is scanned until the destination has everything from before.
func (r *reader) widen(ctx context.Context, t *captured) error {
	_, err := r.replace(ctx, t, false)
	return err
}

// unscan ends the scanning of a table whose trigger leaves nothing out, once the destination has all that it did leave out.
func (r *reader) unscan(ctx context.Context, t *captured) error {
	if t.scan.full == nil {
		here, err := now(ctx, r.conn)
		t.scan.full = &here.seen
		return err
	}
	if acked := r.s.acked.Load(); acked == nil || !covers(acked.seen, *t.scan.full) {
		return nil
	}
	next := t.log
	next.Scanned = false
	function, err := next.create(t.oid)
	if err != nil {
		return err
	}
	if err := r.redefine(ctx, function); err != nil {
		return fmt.Errorf("end the scanning of %s: %w", t.name, err)
	}
	t.log, t.shape, t.scan.full = next, nil, nil
	r.s.o.Log.Info("change log: all updates of a table are logged again", "table", t.name.String())
	return nil
}
