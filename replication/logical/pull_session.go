package logical

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"replicator/internal/postgres"
	"replicator/replication"
)

// session reads from a temporary copy of a slot, slot.
type session struct {
	conn *pgconn.PgConn
	slot string
}

// open makes the first session and its copy of the slot where there is enough to pull.
func (p *pulled) open(ctx context.Context, s *Source) (worth bool, err error) {
	conn, err := p.connect(ctx, s)
	if err != nil {
		return false, err
	}
	start := p.b.where()
	var inVain int64
	var backlog *int64
	err = conn.QueryRow(ctx, `SELECT pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_flush_lsn(), $2::pg_lsn)::bigint, coalesce(pg_catalog.pg_wal_lsn_diff($2::pg_lsn, restart_lsn), 0)::bigint
		FROM pg_catalog.pg_replication_slots WHERE slot_name = $1`, s.o.Slot, string(position(start))).Scan(&backlog, &inVain)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil // to start streaming says what is wrong with the slot
	}
	if err != nil {
		return false, fmt.Errorf("look at the backlog: %w", err)
	}
	if backlog == nil || *backlog < max(s.o.Pull, inVain/leastUse) || inVain > farthest {
		return false, nil
	}
	if err := p.copySlot(ctx, conn, s.o.Slot); err != nil {
		return false, err
	}
	p.start, p.size = start, min(max(*backlog/firstPart, leastPull), s.pace.portion)
	p.from = start - uint64(max(inVain, 0))
	p.at = standing{confirmed: start, restart: p.from, end: start + uint64(*backlog)}
	if err := conn.PgConn().SyncConn(ctx); err != nil {
		return false, fmt.Errorf("take over the session: %w", err)
	}
	return true, nil
}

// openOther makes the other session, if the server has room for it.
func (p *pulled) openOther(ctx context.Context, s *Source) error {
	conn, err := p.connect(ctx, s)
	if err == nil {
		if err = p.copySlot(ctx, conn, s.o.Slot); err == nil {
			if err = conn.PgConn().SyncConn(ctx); err != nil {
				return fmt.Errorf("take over the session: %w", err)
			}
			return nil
		}
		closeQuietly(ctx, conn.PgConn())
		p.sessions = p.sessions[:1]
	}
	if !refused(err) {
		return err
	}
	s.o.Log.Debug("a backlog is pulled by one session", "error", err)
	return nil
}

// connect adds a session.
func (p *pulled) connect(ctx context.Context, s *Source) (*pgx.Conn, error) {
	conn, err := postgres.Connect(ctx, s.o.URL, s.o.ID, "pull")
	if err != nil {
		return nil, err
	}
	suffix := fmt.Sprintf("_pull_%d", conn.PgConn().PID())
	p.sessions = append(p.sessions, &session{conn: conn.PgConn(), slot: s.o.Slot[:min(len(s.o.Slot), 63-len(suffix))] + suffix})
	return conn, nil
}

// copySlot makes the newest session's copy of a slot.
func (p *pulled) copySlot(ctx context.Context, conn *pgx.Conn, slot string) error {
	// Rows beyond work_mem go into a temporary file.
	if err := postgres.Several(ctx, conn, `SET work_mem = '64MB'`, copySQL(slot, p.sessions[len(p.sessions)-1].slot)); err != nil {
		return fmt.Errorf("copy the slot: %w", err)
	}
	return nil
}

func copySQL(from, to string) string {
	return `SELECT pg_catalog.pg_copy_logical_replication_slot(` + replication.QuoteLiteral(from) + `, ` + replication.QuoteLiteral(to) + `, true)`
}

// close ends the sessions, and the queries that they are in the middle of.
func (p *pulled) close(ctx context.Context) {
	canceling, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	for _, a := range p.asked {
		_ = a.by.conn.CancelRequest(canceling) // the server notices at the latest when it sends
	}
	for _, s := range p.sessions {
		closeQuietly(ctx, s.conn)
	}
}
