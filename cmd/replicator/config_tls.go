package main

import (
	"net"
	"net/url"
	"os"
	"strings"

	"replicator/redissync"
)

// sslModes are libpq's words for the ways to verify ("SSL Support" in the PostgreSQL documentation).
var sslModes = map[TLSVerify]string{"full": "verify-full", "ca": "verify-ca", "none": "require"}

// PostgresURL returns the side's URL with the tls settings put in as libpq's parameters. Where neither says anything, a host
// other than this one is asked for encryption without verification (libpq's own default would fall back to plain text); to do
// without encryption on a private network, the URL says sslmode=disable.
func (e Endpoint) PostgresURL() string {
	u, err := url.Parse(e.URL.Reveal())
	if err != nil {
		return e.URL.Reveal()
	}
	q := u.Query()
	verify := e.TLS.Verify
	if verify == "" && e.TLS.CAFile != "" {
		verify = "full"
	}
	switch {
	case verify != "":
		q.Set("sslmode", sslModes[verify])
	case !q.Has("sslmode") && os.Getenv("PGSSLMODE") == "" && !local(u, q):
		q.Set("sslmode", "require")
	default:
		return e.URL.Reveal()
	}
	if e.TLS.CAFile != "" {
		q.Set("sslrootcert", e.TLS.CAFile)
	}
	u.RawQuery = q.Encode()
	return u.String()
}

func local(u *url.URL, q url.Values) bool {
	host := u.Hostname()
	if host == "" {
		host = q.Get("host")
	}
	ip := net.ParseIP(host)
	return host == "" || host == "localhost" || strings.HasPrefix(host, "/") || (ip != nil && ip.IsLoopback())
}

// RedisTLS returns how a rediss:// side is trusted; without settings the certificate is verified in full.
func (e Endpoint) RedisTLS() redissync.TLS {
	return redissync.TLS{CAFile: e.TLS.CAFile, Pin: e.TLS.PinSHA256, Insecure: e.TLS.Verify == "none"}
}
