package preflight

import (
	"fmt"
	"log/slog"
)

// Severity says what a finding means for going on.
type Severity int

// The severities, mildest first: OK (probed and good), Info (worth knowing), Warning (go on with open eyes), Error (nothing is
// changed until it is mended).
const (
	OK Severity = iota
	Info
	Warning
	Error
)

var severityNames = [...]string{"ok", "info", "warning", "error"}

// String returns the severity's stable lower-case name, as it stands in JSON.
func (s Severity) String() string {
	if s < OK || s > Error {
		return fmt.Sprintf("severity(%d)", int(s))
	}
	return severityNames[s]
}

// MarshalText implements encoding.TextMarshaler.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Severity) UnmarshalText(b []byte) error {
	for i, n := range severityNames {
		if n == string(b) {
			*s = Severity(i)
			return nil
		}
	}
	return fmt.Errorf("unknown severity %q: use ok, info, warning or error", b)
}

// Finding is one thing that a probe found, or one problem that a running pair has.
type Finding struct {
	// Code is the stable, kebab-case name of the kind of finding, for scripts and the runbook.
	Code string `json:"code"`
	// Severity decides whether the migration may go on.
	Severity Severity `json:"severity"`
	// Pair is the pair's name, empty where the finding concerns the whole migration.
	Pair string `json:"pair,omitempty"`
	// Side is "source", "target" or empty.
	Side string `json:"side,omitempty"`
	// Message says what was found. It never carries a secret.
	Message string `json:"message"`
	// Hint says what to do about it; empty for OK.
	Hint string `json:"hint,omitempty"`
}

// Worst returns the highest severity among the findings, OK if there are none.
func Worst(findings []Finding) Severity {
	worst := OK
	for _, f := range findings {
		worst = max(worst, f.Severity)
	}
	return worst
}

// Hinted is an error that carries what the operator should do, and the stable code of the problem.
type Hinted struct {
	Code string
	Err  error
	Hint string
}

// Error returns the cause followed by the hint.
func (h *Hinted) Error() string {
	if h.Hint == "" {
		return h.Err.Error()
	}
	return h.Err.Error() + ": " + h.Hint
}

// Unwrap returns the cause.
func (h *Hinted) Unwrap() error { return h.Err }

// LogValue implements slog.LogValuer.
func (h *Hinted) LogValue() slog.Value {
	return slog.GroupValue(slog.String("code", h.Code), slog.String("message", h.Err.Error()), slog.String("hint", h.Hint))
}
