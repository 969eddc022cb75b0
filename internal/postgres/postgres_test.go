package postgres

import (
	"strings"
	"testing"
)

func TestNoPasswordInErrors(t *testing.T) {
	for _, dsn := range []string{
		"postgres://u:s3cret@h:notaport/db",
		"postgres://u:s3c ret%zz@h/db",
		"postgres://u:s3cret@h/db?sslmode=bogus",
		"host=h password=s3cret port=x",
		"host=h password='s3cret is long' sslmode=bogus",
	} {
		_, err := Config(dsn, Identity{}, "test")
		if err == nil {
			t.Errorf("%s: no error", dsn)
			continue
		}
		if strings.Contains(err.Error(), "s3c") {
			t.Errorf("%s: the error shows the password: %v", dsn, err)
		}
	}
}

func TestRedact(t *testing.T) {
	for _, dsn := range []string{"postgres://u:s3cret@h/db", "host=h password=s3cret", "host=h password='s3cret x'", "postgres://u@h/db?password=s3cret"} {
		if got := Redact(dsn); strings.Contains(got, "s3cret") || !strings.Contains(got, "h") {
			t.Errorf("Redact(%q) = %q", dsn, got)
		}
	}
}

func TestNamesKeepTheEpochAndFit(t *testing.T) {
	id := Identity{Migration: strings.Repeat("Shop ü", 20), Pair: "main", Epoch: 1234}
	if n := id.ApplicationName("apply"); len(n) > 63 || !strings.HasSuffix(n, "/apply/e1234") {
		t.Errorf("application name %q", n)
	}
	if n := id.ObjectName("reverse"); len(n) > 63 || !strings.HasSuffix(n, "_reverse") || strings.Trim(n, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
		t.Errorf("object name %q", n)
	}
}
