package demo

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Result is what `demo --auto --json` prints.
type Result struct {
	Capture string `json:"capture"`
	// RowsCopied and KeysCopied are what replicator says it copied, before and besides the stream.
	RowsCopied int64 `json:"rows_copied"`
	KeysCopied int64 `json:"keys_copied"`
	// Transactions and RedisWrites are those that the application had acknowledged, on both sides.
	Transactions int64 `json:"transactions"`
	RedisWrites  int64 `json:"redis_writes"`
	// LagSeconds and RedisLagSeconds run from a write's acknowledgement on the source until it can be read on the target.
	LagSeconds      Quantiles `json:"lag_seconds"`
	RedisLagSeconds Quantiles `json:"redis_lag_seconds"`
	// FreezeSeconds is the longest time without an acknowledged write that the application saw around the switch, in the store
	// where it was longer; ReportedFreezeSeconds is what replicator says.
	FreezeSeconds         float64  `json:"freeze_seconds"`
	ReportedFreezeSeconds *float64 `json:"reported_freeze_seconds"`
	// FailedWrites are those on which the application gave up, after retries.
	FailedWrites int64 `json:"failed_writes"`
	// LostWrites, DuplicatedWrites and PhantomWrites compare the application's ledger with the target.
	LostWrites       int64 `json:"lost_writes"`
	DuplicatedWrites int64 `json:"duplicated_writes"`
	PhantomWrites    int64 `json:"phantom_writes"`
	// Mismatches are rows and keys that differ between the sides, by `replicator verify` and by the demo's own comparison.
	Mismatches int64 `json:"mismatches"`
	// Seconds is how long the whole demo took.
	Seconds float64 `json:"seconds"`
	// Faults names the first few of all that is wrong.
	Faults []string `json:"faults"`
}

// Good says whether all is as it has to be.
func (r Result) Good() bool {
	return r.FailedWrites == 0 && r.LostWrites == 0 && r.DuplicatedWrites == 0 && r.PhantomWrites == 0 && r.Mismatches == 0 && len(r.Faults) == 0
}

func (r Result) writeJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

func (r Result) writeTable(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(what, value, note string) { fmt.Fprintf(t, "%s\t%s\t%s\n", what, value, note) }
	fmt.Fprintln(t)
	line("capture", r.Capture, "")
	line("rows copied", thousands(r.RowsCopied), "")
	line("keys copied", thousands(r.KeysCopied), "")
	line("transactions", thousands(r.Transactions), "acknowledged to the application, on both sides")
	line("redis writes", thousands(r.RedisWrites), "likewise")
	line("lag, Postgres", r.LagSeconds.String(), "acknowledged on the source until readable on the target")
	line("lag, Redis", r.RedisLagSeconds.String(), "likewise")
	reported := "replicator reports none"
	if r.ReportedFreezeSeconds != nil {
		reported = fmt.Sprintf("longest gap that the application saw; replicator reports %.3f s", *r.ReportedFreezeSeconds)
	}
	line("freeze", fmt.Sprintf("%.3f s", r.FreezeSeconds), reported)
	line("failed writes", thousands(r.FailedWrites), "given up by the application")
	line("lost writes", thousands(r.LostWrites), "acknowledged, but not on the target: by the application's own ledger")
	line("duplicated writes", thousands(r.DuplicatedWrites), "on the target more than once")
	if r.PhantomWrites > 0 {
		line("phantom writes", thousands(r.PhantomWrites), "on the target, but never written")
	}
	line("mismatches", thousands(r.Mismatches), "rows and keys that differ between the sides at the end")
	line("whole demo", fmt.Sprintf("%.0f s", r.Seconds), "")
	if err := t.Flush(); err != nil {
		return err
	}
	var b strings.Builder
	for _, f := range r.Faults {
		fmt.Fprintf(&b, "  %s\n", f)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// String writes the quantiles in milliseconds.
func (q Quantiles) String() string {
	if q.P50 == nil {
		return "not measured"
	}
	return fmt.Sprintf("p50 %.1f ms, p99 %.1f ms, max %.1f ms", *q.P50*1e3, *q.P99*1e3, *q.Max*1e3)
}
