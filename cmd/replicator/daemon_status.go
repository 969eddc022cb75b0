package main

import (
	"strings"

	"replicator/cutover"
	"replicator/internal/admin"
	"replicator/internal/preflight"
	"replicator/replication/pair"
)

// status is the leader's document.
func (t *term) status() admin.Status {
	t.mu.Lock()
	out := admin.Status{Paused: t.paused}
	finished := t.finished
	t.mu.Unlock()
	var problems []preflight.Finding
	for _, p := range t.postgres {
		s := p.Status()
		out.Postgres = append(out.Postgres, postgresStatus(s))
		problems = append(problems, s.Problems...)
	}
	for _, p := range t.redis {
		s := p.Status()
		dirty := s.DirtyKeys
		total := s.KeysTotal
		r := admin.RedisStatus{Name: s.Name, Feed: "broadcast", Phase: admin.Phase(s.Phase), LagSeconds: s.LagSeconds, DirtyKeys: &dirty,
			Keys: admin.Keys{Copied: s.KeysCopied, Total: &total}, Gaps: s.Gaps}
		out.Redis = append(out.Redis, r)
		problems = append(problems, s.Problems...)
	}
	if finished {
		for i := range out.Redis {
			out.Redis[i].Phase = admin.Finished
		}
	} else {
		out.Cutover = cutoverStatus(t.coordinator.Status())
	}
	for _, f := range problems {
		out.Problems = append(out.Problems, t.d.problem(f))
	}
	return out
}

func postgresStatus(s pair.Status) admin.PostgresStatus {
	out := admin.PostgresStatus{
		Name: s.Name, Capture: s.Capture, CaptureReason: s.CaptureReason, Phase: admin.Phase(s.Phase), LagBytes: s.LagBytes, LagSeconds: s.LagSeconds, RetainedBytes: s.RetainedBytes,
		Tables:              admin.Tables{Total: s.TablesTotal, Copied: s.TablesCopied},
		Copy:                admin.Copy{Rows: s.CopyRows, Bytes: s.CopyBytes, TotalBytes: s.CopyExpected, BytesPerSecond: s.CopyRate, ETASeconds: s.CopyETA},
		AppliedTransactions: s.Applied, SourcePosition: s.OriginPosition, AppliedPosition: s.DurablePosition, WaitingFor: s.Waiting,
	}
	return out
}

func cutoverStatus(s cutover.Status) admin.CutoverStatus {
	out := admin.CutoverStatus{
		Phase: s.Phase.String(), DryRun: s.DryRun, FreezeBudgetSeconds: s.Budget.Seconds(), PredictedFreezeSeconds: s.Predicted,
		Outcome: string(s.Outcome), WaitingFor: strings.Join(s.WaitingFor, "; "), Findings: s.Findings, Direction: "forward",
	}
	if s.Attempt != "" {
		out.Attempt = &s.Attempt
	}
	if s.Reverse {
		out.Direction = "reverse"
	}
	if s.FreezeSeconds > 0 {
		out.FreezeSeconds = &s.FreezeSeconds
	}
	if !s.Started.IsZero() {
		out.StartedAt = &s.Started
	}
	if !s.Ended.IsZero() {
		out.EndedAt = &s.Ended
	}
	if s.Error != "" {
		out.Problem = &admin.Problem{Code: s.Code, Severity: preflight.Error, Message: s.Error, Hint: s.Hint}
	}
	for _, step := range s.Steps {
		c := admin.CutoverStep{Name: step.Step.String()}
		if !step.Ended.IsZero() {
			seconds := step.Ended.Sub(step.Started).Seconds()
			c.Seconds = &seconds
		}
		out.Steps = append(out.Steps, c)
	}
	return out
}
