package shop

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Hook is the body of replicator's webhook.
type Hook struct {
	Migration string    `json:"migration"`
	Attempt   string    `json:"attempt"`
	Event     string    `json:"event"`
	Direction string    `json:"direction"`
	DryRun    bool      `json:"dry_run"`
	At        time.Time `json:"at"`
}

// Switch receives replicator's signed webhook and repoints the application. It is an http.Handler.
type Switch struct {
	// Secret is the key of the signature.
	Secret string
	// Source and Target are the two sides.
	Source, Target Endpoint
	// Use repoints the application; it is called for each delivery anew, so it does nothing the second time.
	Use func(context.Context, Endpoint) error
	// Refuse, if set, makes a hook fail with its error: for trying out what replicator does then.
	Refuse func(Hook) error

	mu        sync.Mutex
	delivered []string
}

// maxSignatureAge bounds replays of a recorded hook.
const maxSignatureAge = 5 * time.Minute

// ServeHTTP answers 401 to a bad signature, 400 to a body it doesn't understand, 503 if the application couldn't be repointed.
func (s *Switch) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if err := VerifySignature(r.Header.Get("X-Replicator-Signature"), s.Secret, body, time.Now()); err != nil {
		http.Error(w, err.Error(), http.StatusUnauthorized)
		return
	}
	var hook Hook
	if err := json.Unmarshal(body, &hook); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if err := s.handle(r.Context(), hook); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	s.mu.Lock()
	s.delivered = append(s.delivered, r.Header.Get("X-Replicator-Delivery"))
	s.mu.Unlock()
	w.WriteHeader(http.StatusNoContent)
}

func (s *Switch) handle(ctx context.Context, hook Hook) error {
	if s.Refuse != nil {
		if err := s.Refuse(hook); err != nil {
			return err
		}
	}
	if hook.DryRun || hook.Event != "switch" {
		return nil
	}
	switch hook.Direction {
	case "forward":
		return s.Use(ctx, s.Target)
	case "reverse":
		return s.Use(ctx, s.Source)
	}
	return fmt.Errorf("unknown direction %q", hook.Direction)
}

// Delivered returns the ids of the deliveries that were answered with success, repeats included.
func (s *Switch) Delivered() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.delivered...)
}

// VerifySignature checks a header of the form t=UNIX,v1=HEX, where HEX is the HMAC-SHA256 of "t.body".
func VerifySignature(header, secret string, body []byte, now time.Time) error {
	var stamp, sum string
	for part := range strings.SplitSeq(header, ",") {
		switch name, value, _ := strings.Cut(strings.TrimSpace(part), "="); name {
		case "t":
			stamp = value
		case "v1":
			sum = value
		}
	}
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil {
		return fmt.Errorf("the signature has no time")
	}
	if age := now.Sub(time.Unix(seconds, 0)); age > maxSignatureAge || age < -maxSignatureAge {
		return fmt.Errorf("the signature is %s old", age.Round(time.Second))
	}
	got, err := hex.DecodeString(sum)
	if err != nil {
		return fmt.Errorf("the signature isn't hexadecimal")
	}
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(stamp + "."))
	mac.Write(body)
	if !hmac.Equal(got, mac.Sum(nil)) {
		return fmt.Errorf("the signature doesn't match the body: is the secret the same on both sides?")
	}
	return nil
}
