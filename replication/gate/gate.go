package gate

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"replicator/internal/postgres"
)

// Schema, Function and Trigger name what Install makes.
const (
	Schema   = "replicator"
	Function = "gate"
	Trigger  = "replicator_gate"

	tokenSetting = "replicator.token"
)

var (
	// ErrNotInstalled: replicator.gate() doesn't exist.
	ErrNotInstalled = errors.New("the write gate is not installed on this database: call Install first")
	// ErrNotArmed: Barrier without an armed gate, so that nothing would hold later writers back; Renew or Seal without one of that token.
	ErrNotArmed = errors.New("the write gate is not armed by this attempt, or its deadline has passed: writes may have been let through, so freeze anew")
	// ErrExpired: the deadline of this arming passed before it could be renewed. Writes may have passed since; a barrier
	// reached before it proves nothing any more.
	ErrExpired = errors.New("the write gate's deadline passed before it was renewed: writes may have been let through, so freeze anew")
	// ErrPermanent: a permanent gate is not turned into one with a deadline, which would open it by itself.
	ErrPermanent = errors.New("the write gate is shut permanently: disarm it before arming it with a deadline")
)

// sealMargin is what must remain of the deadline for making a freeze permanent: enough for one commit on a slow server.
const sealMargin = time.Second

// changeTimeout bounds the wait for another session that is changing the function at the same moment.
const changeTimeout = 5 * time.Second

// Gate is the write gate of one database. Its methods may be called from several goroutines and processes; changes of the
// function are serialised by an advisory lock.
type Gate struct {
	pool  *pgxpool.Pool
	log   *slog.Logger
	fence func(ctx context.Context, tx pgx.Tx) error
}

// New returns the gate of the pool's database. The pool's role must own the tables (or hold TRIGGER on them, and own them to uninstall).
func New(pool *pgxpool.Pool, log *slog.Logger) *Gate {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Gate{pool: pool, log: log}
}

// Fenced makes every change of the gate's state run fence first, in the same transaction: a process that has lost the lead must not open
// or shut a gate behind its successor's back. It returns g.
func (g *Gate) Fenced(fence func(ctx context.Context, tx pgx.Tx) error) *Gate {
	g.fence = fence
	return g
}

// Pass lets the statements of tx through a gate that was armed with token. It ends with the transaction.
func Pass(ctx context.Context, tx pgx.Tx, token string) error {
	if _, err := tx.Exec(ctx, `SELECT pg_catalog.set_config($1, $2, true)`, tokenSetting, token); err != nil {
		return fmt.Errorf("pass the write gate: %w", err)
	}
	return nil
}

// Arm makes every statement on a gated table that starts after Arm has returned fail with SQLSTATE 25006, until ttl from now by the
// server's clock; ttl 0 is for ever. Called again with the same token it does what Renew does. Transactions that have written already go
// on: wait for them with Barrier.
//
// The token of an arming whose deadline has passed is ErrExpired: the caller must thaw (Disarm) or begin anew with another token.
// ErrPermanent, if the gate is shut permanently and ttl is not 0.
func (g *Gate) Arm(ctx context.Context, token string, ttl time.Duration) error {
	if err := g.arm(ctx, token, ttl, false); err != nil {
		return fmt.Errorf("arm the write gate: %w", err)
	}
	return nil
}

// Renew moves the deadline of a gate that is armed with this token to ttl from now, without a moment in between at which a write could
// pass. Unlike Arm it never arms a gate that isn't, so that a process which was cut off and comes back can't freeze the application
// again: ErrNotArmed, if somebody disarmed it or armed it with another token. ErrExpired, if the deadline has passed, be it while
// the change was being committed: writes may have passed then, and the caller must thaw.
func (g *Gate) Renew(ctx context.Context, token string, ttl time.Duration) error {
	if ttl == 0 {
		return errors.New("renew the write gate: a time to live is needed; Seal makes the freeze permanent")
	}
	if err := g.arm(ctx, token, ttl, true); err != nil {
		return fmt.Errorf("renew the write gate: %w", err)
	}
	return nil
}

// Seal makes the freeze under this token permanent, under the rules of Renew; ErrExpired also with less than a second left. A gate
// sealed with this token already is left as it is.
func (g *Gate) Seal(ctx context.Context, token string) error {
	if err := g.arm(ctx, token, 0, true); err != nil {
		return fmt.Errorf("seal the write gate: %w", err)
	}
	return nil
}

func (g *Gate) arm(ctx context.Context, token string, ttl time.Duration, only bool) error {
	if token == "" || ttl < 0 {
		return errors.New("a token and a time to live of zero or more are needed")
	}
	want := body{Token: hashToken(token), Permanent: ttl == 0, Armed: true}
	var until time.Time // the deadline that had to hold until the change was visible
	err := g.change(ctx, func(tx pgx.Tx, now time.Time, have body) (body, error) {
		until = time.Time{}
		held := have.Armed && have.Token == want.Token
		switch left := have.Deadline.Sub(now); {
		case only && !held:
			return body{}, ErrNotArmed
		case have.Permanent && ttl != 0:
			return body{}, ErrPermanent
		case held && !have.Permanent && (left <= 0 || (ttl == 0 && left < sealMargin)):
			return body{}, ErrExpired
		case held && !have.Permanent:
			until = have.Deadline
		}
		if ttl != 0 {
			want.Deadline = now.Add(ttl)
		}
		// An event trigger of the application's that logs DDL into a gated table runs in this transaction.
		return want, Pass(ctx, tx, token)
	})
	if err != nil || until.IsZero() {
		return err
	}
	var now time.Time
	if err := g.pool.QueryRow(ctx, clockSQL).Scan(&now); err != nil {
		return fmt.Errorf("read the server's clock: %w", err)
	}
	if !now.Before(until) {
		return ErrExpired
	}
	return nil
}

const clockSQL = `SELECT pg_catalog.clock_timestamp()`

// Disarm lets every statement through that starts afterwards. It does nothing where no gate is installed.
func (g *Gate) Disarm(ctx context.Context) error {
	err := g.change(ctx, func(pgx.Tx, time.Time, body) (body, error) { return body{}, nil })
	if err != nil && !errors.Is(err, ErrNotInstalled) {
		return fmt.Errorf("disarm the write gate: %w", err)
	}
	return nil
}

// change replaces the function's body by what decide makes of the present one, in one short synchronous transaction.
func (g *Gate) change(ctx context.Context, decide func(pgx.Tx, time.Time, body) (body, error)) error {
	return pgx.BeginTxFunc(ctx, g.pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		if g.fence != nil {
			if err := g.fence(ctx, tx); err != nil {
				return err
			}
		}
		if err := lockFunction(ctx, tx); err != nil {
			return err
		}
		have, err := readBody(ctx, tx)
		if err != nil {
			return err
		}
		var now time.Time
		if err := tx.QueryRow(ctx, clockSQL).Scan(&now); err != nil {
			return fmt.Errorf("read the server's clock: %w", err)
		}
		want, err := decide(tx, now, have)
		if err != nil {
			return err
		}
		if err := want.store(ctx, tx); err != nil {
			return fmt.Errorf("replace replicator.gate(): %w%s", err, ownerHint(err))
		}
		return nil
	})
}

func ownerHint(err error) string {
	if postgres.Code(err) != postgres.CodeInsufficientPriv {
		return ""
	}
	return ": connect with the role that installed the gate, or give this one the function (ALTER FUNCTION replicator.gate() OWNER TO …)"
}

// lockFunctionSQL also keeps a database-wide synchronous_commit = off from letting a crash undo a permanent freeze. The number is
// arbitrary; it only has to be the same in every process.
const lockFunctionSQL = `
SELECT set_config('lock_timeout', $1, true),
       set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, true)`

const advisoryKey = 0x7265706c67617465 // "replgate"

func lockFunction(ctx context.Context, tx pgx.Tx) error {
	if _, err := tx.Exec(ctx, lockFunctionSQL, fmt.Sprintf("%dms", changeTimeout.Milliseconds())); err != nil {
		return fmt.Errorf("bound the wait: %w", err)
	}
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(advisoryKey)); err != nil {
		if postgres.Code(err) == postgres.CodeLockNotAvailable {
			return fmt.Errorf("another session has been changing the write gate for %v: look for application_name replicator/… in pg_stat_activity: %w", changeTimeout, err)
		}
		return fmt.Errorf("lock the write gate's function: %w", err)
	}
	return nil
}

func hashToken(token string) string {
	h := sha256.Sum256([]byte(token))
	return hex.EncodeToString(h[:])
}
