package probe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"replicator/internal/postgres"
)

// open makes a session and reads the server's facts, or reports why not and returns nil.
func (r *run) open(ctx context.Context, name, url string) *side {
	config, err := postgres.Config(url, r.ID, "check")
	if err != nil {
		r.fail(name, "url-invalid", "write it as postgres://USER:PASSWORD@HOST:PORT/DATABASE, special characters percent-encoded", "the connection URL can't be read: %v", err)
		return nil
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		r.refused(name, config, err)
		return nil
	}
	s := &side{name: name, conn: conn}
	if err := s.read(ctx); err != nil {
		r.broke(name, "connect", err)
		s.close(ctx)
		return nil
	}
	r.ok(name, "connect", "%s at %s:%d answers as PostgreSQL %s", config.Database, config.Host, config.Port, s.version)
	if !r.direct(s) {
		s.close(ctx)
		return nil
	}
	r.encryption(s)
	return s
}

// refused says why no session could be made, by SQLSTATE or the kind of network error.
func (r *run) refused(name string, c *pgx.ConnConfig, err error) {
	message := err.Error()
	if c.Password != "" {
		message = strings.ReplaceAll(message, c.Password, "xxxxx")
	}
	message = strings.Join(strings.Fields(message), " ")
	var (
		pe        *pgconn.PgError
		dns       *net.DNSError
		unknownCA x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		verify    *tls.CertificateVerificationError
		record    tls.RecordHeaderError
		op        *net.OpError
	)
	switch {
	case errors.As(err, &pe):
		code, hint := refusal(pe.Code)
		r.fail(name, code, hint, "the server refused the session: %s", message)
	case errors.As(err, &unknownCA), errors.As(err, &hostname), errors.As(err, &invalid), errors.As(err, &verify), errors.As(err, &record):
		r.fail(name, "tls-failed", "give the server's CA by sslrootcert with sslmode=verify-ca, or use sslmode=require to encrypt without verifying (Heroku's certificates are self-signed)",
			"TLS could not be agreed: %s", message)
	case errors.As(err, &dns):
		r.fail(name, "unreachable", "correct the host's name in the URL, or the name service of this machine", "host %s has no address: %s", c.Host, message)
	case errors.As(err, &op), errors.Is(err, context.DeadlineExceeded), errors.As(err, new(net.Error)):
		r.fail(name, "unreachable", "check host and port, that the server runs, and that firewalls and security groups let this machine through", "%s:%d can't be reached: %s", c.Host, c.Port, message)
	case c.TLSConfig != nil:
		r.fail(name, "tls-failed", "switch TLS on at the server (ssl = on), or, where the way to it is safe, use sslmode=prefer or sslmode=disable", "the URL demands TLS and none could be agreed: %s", message)
	default:
		r.fail(name, "connect-failed", "correct the connection URL", "no session: %s", message)
	}
}

// refusal turns the SQLSTATE of a refused session into a finding's code and hint.
func refusal(code string) (string, string) {
	switch code {
	case "28P01", "28000":
		return "authentication-failed", "take the current credentials from the provider (Heroku: heroku pg:credentials:url; they change on rotation); if the server only takes encrypted sessions, add sslmode=require"
	case "3D000":
		return "database-missing", "correct the database's name in the URL, or create the database"
	case "42501":
		return "authentication-failed", "grant the role CONNECT on the database"
	case "53300":
		return "connections-exhausted", "close sessions or raise the limit: the server has none left for us"
	case "57P03":
		return "server-not-ready", "wait until the server has started or ended its recovery, then run check again"
	case "08P01":
		return "pooled-url", pooledHint
	}
	return "connect-failed", "see the server's message; its log may say more"
}

const pooledHint = "use the direct URL of the server (Heroku: DATABASE_URL, not DATABASE_CONNECTION_POOL_URL; not the port of PgBouncer or RDS Proxy): a stream needs sessions of its own"

// direct tells whether the session is one with the server itself. A pooler gives another key than the server's process id, or
// leaves out settings that it doesn't know.
func (r *run) direct(s *side) bool {
	if uint32(s.pid) != s.conn.PgConn().PID() || s.searchPath != "pg_catalog" || s.floatDigits != "3" {
		r.fail(s.name, "pooled-url", pooledHint, "the URL leads to a connection pooler, not to the server")
		return false
	}
	r.ok(s.name, "direct-session", "the session is direct, without a pooler")
	return true
}

func (r *run) encryption(s *side) {
	c := s.conn.Config()
	host := c.Host
	ip := net.ParseIP(host)
	local := strings.HasPrefix(host, "/") || host == "localhost" || ip != nil && ip.IsLoopback()
	_, encrypted := s.conn.PgConn().Conn().(*tls.Conn)
	switch {
	case !encrypted && local:
		r.ok(s.name, "tls", "the session is not encrypted and stays on this machine")
	case !encrypted:
		r.warn(s.name, "tls", "add sslmode=require to the URL, or sslmode=verify-full with sslrootcert", "the session is not encrypted: data and password can be read on the way")
	case c.TLSConfig != nil && c.TLSConfig.InsecureSkipVerify && c.TLSConfig.VerifyPeerCertificate == nil && c.TLSConfig.VerifyConnection == nil:
		r.info(s.name, "tls", "give the server's CA by sslrootcert and sslmode=verify-ca or verify-full where there is one", "the session is encrypted; who the server is isn't verified")
	default:
		r.ok(s.name, "tls", "the session is encrypted and the server verified")
	}
}
