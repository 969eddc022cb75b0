package redissync

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
)

// TLS says how a server is trusted where its URL begins with rediss://. With nothing set, the certificate is verified against the
// system's roots. The URL's query may say the same: ?ca_file=PATH, ?pin_sha256=HEX, ?tls_verify=none.
type TLS struct {
	// CAFile is a PEM file of the authorities that may have signed the server's certificate.
	CAFile string
	// Pin is the SHA-256 of the server's certificate (DER) in hex; it replaces every other verification. Heroku's certificates
	// are self-signed and change when the instance is replaced.
	Pin string
	// Insecure encrypts without knowing to whom.
	Insecure bool
	// ServerName replaces the host name in the verification.
	ServerName string
}

// endpoint is a parsed connection URL.
type endpoint struct {
	address  string
	user     string
	password string
	database int
	tls      *tls.Config // nil: plain
	topology *topology   // nil: one node of a cluster, or a server known to be single
}

// parseEndpoint reads redis[s]://[USER][:PASSWORD@]HOST[:PORT][/DATABASE]. Its errors never show the URL.
func parseEndpoint(raw string, t TLS) (endpoint, error) {
	const form = "write redis://USER:PASSWORD@HOST:PORT, or rediss:// for TLS, with special characters in the password percent-encoded"
	u, err := url.Parse(strings.TrimSpace(raw))
	if err != nil {
		return endpoint{}, errors.New("not a valid Redis URL: " + form)
	}
	if u.Scheme != "redis" && u.Scheme != "rediss" || u.Hostname() == "" {
		return endpoint{}, errors.New("not a Redis URL: " + form)
	}
	e := endpoint{user: u.User.Username(), topology: newTopology()}
	e.password, _ = u.User.Password()
	port := u.Port()
	if port == "" {
		port = "6379"
	}
	e.address = net.JoinHostPort(u.Hostname(), port)
	if db := strings.Trim(u.Path, "/"); db != "" {
		if _, err := fmt.Sscanf(db, "%d", &e.database); err != nil || e.database < 0 {
			return endpoint{}, errors.New("not a Redis URL: the path is not a database number: " + form)
		}
	}
	q := u.Query()
	if v := q.Get("ca_file"); v != "" {
		t.CAFile = v
	}
	if v := q.Get("pin_sha256"); v != "" {
		t.Pin = v
	}
	if q.Get("tls_verify") == "none" {
		t.Insecure = true
	}
	if u.Scheme == "redis" {
		return e, nil
	}
	e.tls, err = t.config(u.Hostname())
	return e, err
}

func (t TLS) config(host string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if t.ServerName != "" {
		c.ServerName = t.ServerName
	}
	switch {
	case t.Pin != "":
		pin, err := hex.DecodeString(strings.ReplaceAll(t.Pin, ":", ""))
		if err != nil || len(pin) != sha256.Size {
			return nil, errors.New("the pinned certificate is not a SHA-256 in hex: take it from `openssl x509 -noout -fingerprint -sha256`")
		}
		c.InsecureSkipVerify = true // replaced by the comparison with the pin
		c.VerifyConnection = func(s tls.ConnectionState) error {
			got := sha256.Sum256(s.PeerCertificates[0].Raw)
			if string(got[:]) != string(pin) {
				return fmt.Errorf("the server's certificate has SHA-256 %x, not the pinned one: if the server was replaced on purpose, pin the new one", got)
			}
			return nil
		}
	case t.Insecure:
		c.InsecureSkipVerify = true
	case t.CAFile != "":
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read the CA file: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read the CA file %s: it holds no PEM certificate", t.CAFile)
		}
	}
	return c, nil
}
