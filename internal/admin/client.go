package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Client speaks the admin API. Its errors are a *ProblemDocument where the server answered, and wrap ErrUnreachable where nothing
// (or nothing understandable) came back.
type Client struct {
	base  string
	token string
	http  *http.Client
}

// ErrUnreachable is what errors.Is finds where it can't be told how things stand.
var ErrUnreachable = errors.New("replicator doesn't answer")

// NewClient builds a client of the API at addr (http://HOST:PORT, or HOST:PORT); token may be empty.
func NewClient(addr, token string) (*Client, error) {
	if !strings.Contains(addr, "://") {
		addr = "http://" + addr
	}
	u, err := url.Parse(addr)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fmt.Errorf("%q is not the address of an admin API: write http://HOST:PORT", addr)
	}
	return &Client{base: strings.TrimSuffix(u.Scheme+"://"+u.Host+u.Path, "/"), token: token, http: &http.Client{}}, nil
}

// quick bounds the calls that the server answers at once.
const quick = 20 * time.Second

// Status returns the status document.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.quickly(ctx, http.MethodGet, "/api/v1/status", nil, &s)
	return s, err
}

// Cutover returns the latest attempt.
func (c *Client) Cutover(ctx context.Context) (CutoverStatus, error) {
	var s CutoverStatus
	err := c.quickly(ctx, http.MethodGet, "/api/v1/cutover", nil, &s)
	return s, err
}

// StartCutover begins a cutover, or a rollback if r.Reverse, and returns the attempt's name.
func (c *Client) StartCutover(ctx context.Context, r CutoverRequest) (string, error) {
	path := "/api/v1/cutover"
	if r.Reverse {
		path = "/api/v1/rollback"
	}
	doc := startDocument{DryRun: r.DryRun}
	if r.FreezeBudget > 0 {
		doc.FreezeBudget = r.FreezeBudget.String()
	}
	var answer CutoverAccepted
	err := c.quickly(ctx, http.MethodPost, path, doc, &answer)
	return answer.Attempt, err
}

// AbortCutover asks a running attempt to go back.
func (c *Client) AbortCutover(ctx context.Context, attempt string) error {
	return c.quickly(ctx, http.MethodPost, "/api/v1/cutover/"+url.PathEscape(attempt)+"/abort", nil, nil)
}

// Finish removes all that replicator made; it takes as long as it takes.
func (c *Client) Finish(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/api/v1/finish", nil, nil)
}

// CaughtUp returns nil once everything that was committed on every source when it was called is durable on the targets; timeout
// bounds the wait if it isn't zero.
func (c *Client) CaughtUp(ctx context.Context, timeout time.Duration) error {
	var doc caughtUpDocument
	if timeout > 0 {
		doc.Timeout = timeout.String()
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout+5*time.Second)
		defer cancel()
	}
	return c.call(ctx, http.MethodPost, "/api/v1/caught-up", doc, nil)
}

// StartVerify begins a verification.
func (c *Client) StartVerify(ctx context.Context, r VerifyRequest) (Verification, error) {
	var v Verification
	err := c.quickly(ctx, http.MethodPost, "/api/v1/verify", r, &v)
	return v, err
}

// Verification returns the latest verification.
func (c *Client) Verification(ctx context.Context) (Verification, error) {
	var v Verification
	err := c.quickly(ctx, http.MethodGet, "/api/v1/verify", nil, &v)
	return v, err
}

// Resync begins to copy a pair, or some of its tables, anew.
func (c *Client) Resync(ctx context.Context, r ResyncRequest) error {
	return c.quickly(ctx, http.MethodPost, "/api/v1/resync", r, nil)
}

// SetPaused stops or resumes replication.
func (c *Client) SetPaused(ctx context.Context, paused bool) error {
	path := "/api/v1/resume"
	if paused {
		path = "/api/v1/pause"
	}
	return c.quickly(ctx, http.MethodPost, path, nil, nil)
}

func (c *Client) quickly(ctx context.Context, method, path string, doc, into any) error {
	ctx, cancel := context.WithTimeout(ctx, quick)
	defer cancel()
	return c.call(ctx, method, path, doc, into)
}

func (c *Client) request(ctx context.Context, method, path string, doc any) (*http.Response, error) {
	var send io.Reader = http.NoBody
	if doc != nil {
		b, err := json.Marshal(doc)
		if err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
		send = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, send)
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	if doc != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	res, err := c.http.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return nil, fmt.Errorf("%w at %s: %w", ErrUnreachable, c.base, err)
	}
	if res.StatusCode >= http.StatusBadRequest {
		defer func() { _ = res.Body.Close() }()
		return nil, c.problem(res)
	}
	return res, nil
}

func (c *Client) problem(res *http.Response) error {
	var p ProblemDocument
	b, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	if err != nil || json.Unmarshal(b, &p) != nil || p.Title == "" {
		return fmt.Errorf("%w at %s: it answered %s, which is not replicator's form", ErrUnreachable, c.base, res.Status)
	}
	p.Status = res.StatusCode
	return &p
}

func (c *Client) call(ctx context.Context, method, path string, doc, into any) error {
	res, err := c.request(ctx, method, path, doc)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	if into == nil {
		into = &json.RawMessage{}
	}
	if err := json.NewDecoder(res.Body).Decode(into); err != nil {
		return fmt.Errorf("%w at %s: %w", ErrUnreachable, c.base, err)
	}
	return nil
}

// Received is an event as it came; Data is the JSON text.
type Received struct {
	Type string
	Data json.RawMessage
}

// Events calls each for every event until ctx ends, the stream breaks (ErrUnreachable) or each returns an error, which it returns.
func (c *Client) Events(ctx context.Context, each func(Received) error) error {
	res, err := c.request(ctx, http.MethodGet, "/api/v1/events", nil)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, 16<<20)
	var e Received
	for lines.Scan() {
		switch field, value, _ := strings.Cut(lines.Text(), ": "); field {
		case "event":
			e.Type = value
		case "data":
			e.Data = json.RawMessage(value)
		case "":
			if e.Type != "" && value == "" {
				if err := each(e); err != nil {
					return err
				}
			}
			e = Received{}
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%w at %s: the event stream broke: %w", ErrUnreachable, c.base, err)
	}
	return fmt.Errorf("%w at %s: the event stream ended", ErrUnreachable, c.base)
}
