package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
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

// TLSConfig returns how to reach a rediss:// side, nil for a redis:// one. Without settings the certificate is verified in full.
func (e Endpoint) TLSConfig() (*tls.Config, error) {
	u, err := url.Parse(e.URL.Reveal())
	if err != nil || u.Scheme != "rediss" {
		return nil, nil
	}
	c := &tls.Config{ServerName: u.Hostname(), MinVersion: tls.VersionTLS12}
	if e.TLS.CAFile != "" {
		pem, err := os.ReadFile(e.TLS.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read the certificate authorities: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("no certificate in %s: give a PEM file", e.TLS.CAFile)
		}
	}
	switch e.TLS.Verify {
	case "none":
		c.InsecureSkipVerify = true //nolint:gosec // the configuration says so: Heroku's certificates are self-signed
	case "ca":
		c.InsecureSkipVerify = true //nolint:gosec // the name is not verified, the chain is, below
		c.VerifyConnection = func(s tls.ConnectionState) error {
			o := x509.VerifyOptions{Roots: c.RootCAs, Intermediates: x509.NewCertPool()}
			for _, cert := range s.PeerCertificates[1:] {
				o.Intermediates.AddCert(cert)
			}
			_, err := s.PeerCertificates[0].Verify(o)
			return err
		}
	}
	return c, nil
}
