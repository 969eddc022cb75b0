package shop

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

func TestSwitch(t *testing.T) {
	var used []string
	s := &Switch{Secret: "k", Source: Endpoint{Name: "source"}, Target: Endpoint{Name: "target"}, Use: func(_ context.Context, at Endpoint) error {
		used = append(used, at.Name)
		return nil
	}}
	sign := func(body []byte, secret string, at time.Time) string {
		mac := hmac.New(sha256.New, []byte(secret))
		fmt.Fprintf(mac, "%d.%s", at.Unix(), body)
		return fmt.Sprintf("t=%d,v1=%x", at.Unix(), mac.Sum(nil))
	}
	now := time.Now()
	cases := []struct {
		name   string
		hook   Hook
		secret string
		at     time.Time
		status int
		used   string
	}{
		{"forward", Hook{Event: "switch", Direction: "forward"}, "k", now, 204, "target"},
		{"reverse", Hook{Event: "switch", Direction: "reverse"}, "k", now, 204, "source"},
		{"dry run", Hook{Event: "switch", Direction: "forward", DryRun: true}, "k", now, 204, ""},
		{"another event", Hook{Event: "after", Direction: "forward"}, "k", now, 204, ""},
		{"unknown direction", Hook{Event: "switch", Direction: "up"}, "k", now, 503, ""},
		{"wrong secret", Hook{Event: "switch", Direction: "forward"}, "x", now, 401, ""},
		{"replayed later", Hook{Event: "switch", Direction: "forward"}, "k", now.Add(-time.Hour), 401, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			used = nil
			body, err := json.Marshal(c.hook)
			if err != nil {
				t.Fatal(err)
			}
			r := httptest.NewRequest(http.MethodPost, "/switch", bytes.NewReader(body))
			r.Header.Set("X-Replicator-Signature", sign(body, c.secret, c.at))
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			if w.Code != c.status || fmt.Sprint(used) != fmt.Sprint([]string{c.used}) && c.used != "" || c.used == "" && used != nil {
				t.Errorf("status %d, used %v: %s", w.Code, used, w.Body)
			}
		})
	}
	if n := len(s.Delivered()); n != 4 {
		t.Errorf("%d deliveries counted, want 4", n)
	}
	s.Refuse = func(Hook) error { return errors.New("not now") }
	body, _ := json.Marshal(Hook{Event: "switch", Direction: "forward"})
	r := httptest.NewRequest(http.MethodPost, "/switch", bytes.NewReader(body))
	r.Header.Set("X-Replicator-Signature", sign(body, "k", now))
	w := httptest.NewRecorder()
	if s.ServeHTTP(w, r); w.Code != 503 {
		t.Errorf("a refused hook got %d", w.Code)
	}
	for _, header := range []string{"", "t=1", "v1=00", "t=x,v1=00", "t=1,v1=zz"} {
		if err := VerifySignature(header, "k", nil, now); err == nil {
			t.Errorf("%q was accepted", header)
		}
	}
}
