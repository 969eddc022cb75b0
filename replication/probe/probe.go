package probe

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/replication"
)

// Catalog is what the probes need to know of tables and programs; package schema's Catalog has it.
type Catalog interface {
	// Tables lists what is replicated, with keys and sizes.
	Tables(ctx context.Context, conn *pgx.Conn) ([]replication.Table, error)
	// Unreplicated gives the tables that the filter takes but no capture carries, with the reason.
	Unreplicated(ctx context.Context, conn *pgx.Conn) (map[replication.TableName]string, error)
	// Client returns the pg_dump in use and its major version.
	Client(ctx context.Context) (path string, major int, err error)
}

// Options describe the pair to look at.
type Options struct {
	Pair                 string
	SourceURL, TargetURL string
	// Capture is auto, logical or trigger; Copy is full or none; Slot is an existing slot to adopt, as in the configuration.
	Capture, Copy, Slot string
	Catalog             Catalog
	ID                  postgres.Identity
	// Triggers looks at what trigger capture needs of the tables; package trigger's Check is made for it.
	Triggers func(ctx context.Context, conn *pgx.Conn, tables []replication.Table) ([]preflight.Finding, error)
	// Resuming tells that this migration has begun already: the target holds its tables and state, the source its slot.
	Resuming bool
	// Chosen is the capture that a pair which has begun took, and ChosenReason why, in its words; empty before.
	Chosen, ChosenReason string
	// Connections is how many sessions the pair will need on each side; 10 if zero.
	Connections int
}

// timeout bounds the probes of one pair, and patience one statement.
const (
	timeout  = 2 * time.Minute
	patience = "30s"
)

// Sides, as findings name them.
const (
	source = "source"
	target = "target"
)

// Run looks at both sides and returns what it found, in the order in which it looked. No finding carries a secret.
func Run(ctx context.Context, o Options) []preflight.Finding {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	r := &run{Options: o}
	src := r.open(ctx, source, o.SourceURL)
	dst := r.open(ctx, target, o.TargetURL)
	defer src.close(ctx)
	defer dst.close(ctx)
	if src != nil {
		r.server(ctx, src)
		r.client(ctx, src)
		r.tables(ctx, src)
		if r.grant(ctx, src, r.slotName(), src.tables) {
			r.capture(ctx, src)
		}
		r.calm(ctx, src)
		r.sourceRollback(ctx, src)
	}
	if dst != nil {
		r.server(ctx, dst)
		r.target(ctx, dst)
		if r.grant(ctx, dst, r.ID.ObjectName("reverse"), nil) { // the tables will be ours
			r.targetRollback(dst)
		}
	}
	if src != nil && dst != nil {
		r.both(ctx, src, dst)
	}
	return r.findings
}

// grant reads what a side grants for logical capture; false if that can't be told.
func (r *run) grant(ctx context.Context, s *side, slot string, tables []replication.Table) bool {
	var err error
	if s.grants, err = ReadGrants(ctx, s.conn, r.ID, slot, tables); err != nil {
		r.broke(s.name, "capture", err)
		return false
	}
	return true
}

// run is one run of the probes.
type run struct {
	Options
	findings []preflight.Finding
}

// side is an open session with what is known of its server.
type side struct {
	name string
	conn *pgx.Conn
	facts
	tables []replication.Table // that are to be replicated
	grants Grants
}

func (s *side) close(ctx context.Context) {
	if s != nil {
		_ = s.conn.Close(context.WithoutCancel(ctx))
	}
}

func (r *run) add(severity preflight.Severity, side, code, hint, format string, args ...any) {
	r.findings = append(r.findings, preflight.Finding{Code: code, Severity: severity, Pair: r.Pair, Side: side, Message: fmt.Sprintf(format, args...), Hint: hint})
}

func (r *run) ok(side, code, format string, args ...any) {
	r.add(preflight.OK, side, code, "", format, args...)
}

func (r *run) info(side, code, hint, format string, args ...any) {
	r.add(preflight.Info, side, code, hint, format, args...)
}

func (r *run) warn(side, code, hint, format string, args ...any) {
	r.add(preflight.Warning, side, code, hint, format, args...)
}

func (r *run) fail(side, code, hint, format string, args ...any) {
	r.add(preflight.Error, side, code, hint, format, args...)
}

// broke reports a probe that couldn't be made. What isn't known isn't assumed to be well.
func (r *run) broke(side, code string, err error) {
	r.fail(side, code, "mend the cause and run check again; where a right is missing, grant it to the role", "this could not be probed: %v", err)
}

// names writes at most ten names, and how many there are more.
func names[T fmt.Stringer](list []T) string {
	var out []string
	for i, n := range list {
		if i == 10 {
			out = append(out, fmt.Sprintf("and %d more", len(list)-i))
			break
		}
		out = append(out, n.String())
	}
	return strings.Join(out, ", ")
}

// text is a string as a Stringer.
type text string

func (t text) String() string { return string(t) }

// column runs a query for one column of text.
func column(ctx context.Context, s *side, sql string, args ...any) ([]text, error) {
	rows, err := s.conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[text])
}
