package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// SQLSTATEs that decisions rest on (PostgreSQL documentation, appendix "PostgreSQL Error Codes").
const (
	CodeLockNotAvailable     = "55P03"
	CodeDivisionByZero       = "22012"
	CodeNotSupported         = "0A000"
	CodeReadOnly             = "25006"
	CodeObjectInUse          = "55006"
	CodeUndefinedTable       = "42P01"
	CodeUndefinedObject      = "42704"
	CodeDuplicateObject      = "42710"
	CodeUndefinedColumn      = "42703"
	CodeInsufficientPriv     = "42501"
	CodeSerializationFailure = "40001"
	CodeDeadlock             = "40P01"
)

// Code returns the SQLSTATE of a server's error, empty if err is none.
func Code(err error) string {
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		return pe.Code
	}
	return ""
}

// WithoutValues keeps of a server's error what shows no row's values: never the detail, and of class 22 ("Data Exception") not even the
// message, which quotes the value.
func WithoutValues(err error) error {
	var pe *pgconn.PgError
	switch {
	case !errors.As(err, &pe):
		return err
	case strings.HasPrefix(pe.Code, "22"):
		return fmt.Errorf("SQLSTATE %s", pe.Code)
	case pe.ConstraintName != "":
		return fmt.Errorf("%s (SQLSTATE %s, constraint %q)", pe.Message, pe.Code, pe.ConstraintName)
	}
	return fmt.Errorf("%s (SQLSTATE %s)", pe.Message, pe.Code)
}

// IsTransient tells whether trying again on a new session can help: the connection broke or couldn't be made, the server was
// shutting down or out of slots, or the transaction lost a deadlock. A wrong password, a missing database or a constraint is not.
func IsTransient(err error) bool {
	if err == nil {
		return false
	}
	if code := Code(err); code != "" {
		switch {
		case strings.HasPrefix(code, "08"), strings.HasPrefix(code, "57P"), strings.HasPrefix(code, "53"):
			return true
		case code == CodeSerializationFailure, code == CodeDeadlock, code == CodeLockNotAvailable, code == CodeObjectInUse:
			return true
		}
		return false
	}
	var ne net.Error
	if errors.As(err, &ne) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	var ce *pgconn.ConnectError
	if errors.As(err, &ce) {
		return true
	}
	return isConnLost(err)
}

// isConnLost recognises pgconn's own word for a session that a broken connection had closed; it exports no type for it.
func isConnLost(err error) bool {
	for e := err; e != nil; e = errors.Unwrap(e) {
		if e.Error() == "conn closed" || e.Error() == "closed pool" {
			return true
		}
	}
	var safe interface{ SafeToRetry() bool }
	return errors.As(err, &safe) && safe.SafeToRetry()
}

var keywordPassword = regexp.MustCompile(`(?i)(password\s*=\s*)('(?:[^'\\]|\\.)*'|\S+)`)

// Redact returns the URL or keyword string with its password replaced, for showing to people.
func Redact(dsn string) string {
	if u, err := url.Parse(dsn); err == nil && u.Scheme != "" {
		q := u.Query()
		for _, k := range []string{"password", "sslpassword"} {
			if q.Has(k) {
				q.Set(k, "xxxxx")
				u.RawQuery = q.Encode()
			}
		}
		return u.Redacted()
	}
	if strings.Contains(dsn, "://") {
		return dsn[:strings.Index(dsn, "://")] + "://(unreadable URL)"
	}
	return keywordPassword.ReplaceAllString(dsn, "${1}xxxxx")
}

func redact(err error, dsn string) error {
	msg := strings.ReplaceAll(err.Error(), dsn, Redact(dsn))
	if u, perr := url.Parse(dsn); perr == nil && u.User != nil {
		if p, ok := u.User.Password(); ok && p != "" {
			msg = strings.ReplaceAll(msg, p, "xxxxx")
		}
	} else if perr != nil {
		// A URL that can't be parsed may show its password anywhere in the message.
		return fmt.Errorf("not a valid connection URL: write postgres://USER:PASSWORD@HOST:PORT/DATABASE, with special characters in the password percent-encoded")
	}
	return errors.New(msg)
}
