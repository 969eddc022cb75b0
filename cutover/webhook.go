package cutover

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"replicator/internal/retry"
)

// The headers of a webhook.
const (
	// DeliveryHeader carries Delivery.ID.
	DeliveryHeader = "X-Replicator-Delivery"
	// SignatureHeader carries what Sign returns, if a secret is configured.
	SignatureHeader = "X-Replicator-Signature"
)

// WebhookConfig is a hook that is a signed HTTP POST of the delivery as JSON.
type WebhookConfig struct {
	URL string `yaml:"url"`
	// Secret signs the body (see Sign); empty sends no signature.
	Secret  string        `yaml:"secret,omitempty"`
	Timeout time.Duration `yaml:"timeout,omitempty"`
}

// String shows no secret; a URL's path and query may be one.
func (c WebhookConfig) String() string { return "webhook " + origin(c.URL) }

// LogValue implements slog.LogValuer.
func (c WebhookConfig) LogValue() slog.Value { return slog.StringValue(c.String()) }

// origin returns a URL's scheme and host.
func origin(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return "(invalid URL)"
	}
	return u.Scheme + "://" + u.Host
}

type webhook struct {
	config WebhookConfig
	client *http.Client
}

func newWebhook(c WebhookConfig, place string) (*webhook, []error) {
	var problems []error
	u, err := url.Parse(c.URL)
	switch {
	case c.URL == "":
		problems = append(problems, fmt.Errorf("%s.url: is missing", place))
	case err != nil:
		// The parser's error would quote the URL, which may hold a secret.
		problems = append(problems, fmt.Errorf("%s.url: is not a URL: give http://host/path or https://host/path", place))
	case (u.Scheme != "http" && u.Scheme != "https") || u.Host == "":
		problems = append(problems, fmt.Errorf("%s.url: give an absolute http:// or https:// URL", place))
	}
	timeout, errs := hookTimeout(c.Timeout, place)
	c.Timeout = timeout
	return &webhook{config: c, client: &http.Client{
		// A redirect is not an acknowledgement, and following it would hand the signed body to someone else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, append(problems, errs...)
}

// String implements Means.
func (w *webhook) String() string { return w.config.String() }

// Call implements Means. Any 2xx answer is success.
func (w *webhook) Call(ctx context.Context, d Delivery) error {
	body, err := json.Marshal(d.document())
	if err != nil {
		return retry.Stop(fmt.Errorf("encode the delivery: %w", err))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, w.config.Timeout, fmt.Errorf("no answer within %s", w.config.Timeout))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.config.URL, bytes.NewReader(body))
	if err != nil {
		return retry.Stop(errors.New("the URL is invalid"))
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "replicator")
	req.Header.Set(DeliveryHeader, d.ID())
	if w.config.Secret != "" {
		req.Header.Set(SignatureHeader, Sign(w.config.Secret, time.Now(), body))
	}
	resp, err := w.client.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		var wrapped *url.Error // quotes the URL, which may hold a secret
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return fmt.Errorf("post: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
	if resp.StatusCode/100 == 2 {
		return nil
	}
	err = fmt.Errorf("answered %s", resp.Status)
	if text := printable(answer); text != "" {
		err = fmt.Errorf("answered %s: %s", resp.Status, text)
	}
	switch s := resp.StatusCode; {
	case s == http.StatusRequestTimeout, s == http.StatusTooEarly, s == http.StatusTooManyRequests, s >= 500:
		return err
	}
	return retry.Stop(err)
}

// Sign returns the value of SignatureHeader: `t=UNIX,v1=HEX`, where HEX is the HMAC-SHA256 by secret of UNIX, a dot and the body.
func Sign(secret string, at time.Time, body []byte) string {
	t := strconv.FormatInt(at.Unix(), 10)
	return "t=" + t + ",v1=" + hex.EncodeToString(mac(secret, t, body))
}

// CheckSignature is a receiver's half of Sign: it fails if header does not sign body by secret, or at a time further than
// tolerance from now.
func CheckSignature(secret, header string, body []byte, now time.Time, tolerance time.Duration) error {
	t, rest, ok := strings.Cut(strings.TrimPrefix(header, "t="), ",v1=")
	sum, err := hex.DecodeString(rest)
	unix, terr := strconv.ParseInt(t, 10, 64)
	if !ok || err != nil || terr != nil || !strings.HasPrefix(header, "t=") {
		return errors.New("signature: want t=UNIX,v1=HEX")
	}
	if !hmac.Equal(sum, mac(secret, t, body)) {
		return errors.New("signature: does not match the body: check that both ends have the same secret")
	}
	if age := now.Sub(time.Unix(unix, 0)).Abs(); age > tolerance {
		return fmt.Errorf("signature: is %s away from this clock: check the clocks, or it is a replay", age.Round(time.Second))
	}
	return nil
}

func mac(secret, t string, body []byte) []byte {
	h := hmac.New(sha256.New, []byte(secret))
	h.Write([]byte(t))
	h.Write([]byte("."))
	h.Write(body)
	return h.Sum(nil)
}

// printable makes one line of what a stranger sent.
func printable(b []byte) string {
	s := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(string(b), "?"))
	return strings.Join(strings.Fields(s), " ")
}
