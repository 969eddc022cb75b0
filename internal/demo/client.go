package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Client calls the daemon's API as an operator's script would, reading only what the documents promise.
type Client struct {
	// Address is http://host:port.
	Address string
	// Token is the operator's.
	Token string
}

// Status is what this package reads of the status document.
type Status struct {
	Phase    string
	Postgres []struct {
		Name, Capture, Phase string
		LagSeconds           *float64 `json:"lag_seconds"`
		Tables               struct{ Total, Copied int }
		Copy                 struct{ Rows, Bytes int64 }
	}
	Redis []struct {
		Name, Phase string
		LagSeconds  *float64 `json:"lag_seconds"`
		DirtyKeys   *int64   `json:"dirty_keys"`
		Keys        struct{ Copied int64 }
		Gaps        int64
	}
	Cutover struct {
		Attempt       string
		Phase         string
		Direction     string
		FreezeSeconds *float64 `json:"freeze_seconds"`
	}
	Problems []struct{ Code, Message, Hint string }
}

// Problem is an error answer.
type Problem struct {
	Status      int
	Title, Hint string
	Detail      string
}

// Error implements error.
func (p Problem) Error() string {
	s := fmt.Sprintf("%d %s", p.Status, p.Title)
	for _, more := range []string{p.Detail, p.Hint} {
		if more != "" {
			s += ": " + more
		}
	}
	return s
}

// Status reads the status document.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.call(ctx, http.MethodGet, "/api/v1/status", nil, &s)
}

// Cutover starts an attempt, the way back if reverse, and returns its name.
func (c *Client) Cutover(ctx context.Context, reverse bool) (attempt string, err error) {
	path := "/api/v1/cutover"
	if reverse {
		path = "/api/v1/rollback"
	}
	var answer struct{ Attempt string }
	return answer.Attempt, c.call(ctx, http.MethodPost, path, struct{}{}, &answer)
}

func (c *Client) call(ctx context.Context, method, path string, body, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var sent io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		sent = bytes.NewReader(b)
	}
	request, err := http.NewRequestWithContext(ctx, method, c.Address+path, sent)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+c.Token)
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode >= 300 {
		p := Problem{Status: response.StatusCode}
		_ = json.NewDecoder(response.Body).Decode(&p) // the status says enough
		p.Status = response.StatusCode
		return p
	}
	return json.NewDecoder(response.Body).Decode(answer)
}

// Await polls the status until good says yes. A daemon that doesn't answer, because it is being started again, is waited for.
func (c *Client) Await(ctx context.Context, good func(Status) bool) (Status, error) {
	last := errors.New("none")
	for {
		s, err := c.Status(ctx)
		if err == nil && good(s) {
			return s, nil
		}
		if err != nil && ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return s, fmt.Errorf("the daemon's status did not become what is awaited, it is %+v (last error %w): %w", s, last, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}
