package pair

import (
	"fmt"
	"time"

	"replicator/internal/preflight"
	"replicator/replication/schema"
	"replicator/replication/trigger"
)

// held is the problem of a change log that can't be emptied, nil where nobody has held it for long.
type held struct {
	who     string
	finding preflight.Finding
}

// holding looks at who holds the log, if it is for longer than the pair's bound.
func (p *Pair) holding(h *trigger.Holder) *held {
	if h == nil || h.Age <= p.o.HorizonWarning {
		return nil
	}
	message := fmt.Sprintf("%s, open for %v", h.Who, h.Age.Round(time.Second))
	if shape := schema.Shape(h.Query); shape != "" {
		message += ", its last statement: " + shape
	}
	hint := "end it if nobody needs it: SELECT pg_terminate_backend(pid)"
	if h.Prepared != "" {
		hint = "COMMIT PREPARED or ROLLBACK PREPARED it, whichever its owner means"
	}
	return &held{who: h.ID, finding: preflight.Finding{Code: "horizon-held", Severity: preflight.Warning, Pair: p.o.Name,
		Message: "an old transaction keeps the change log from being emptied: " + message, Hint: hint}}
}

// tellHeld logs when somebody begins to hold the log for long, and when that has ended; not every second.
func (p *Pair) tellHeld(before, now *held) {
	switch {
	case now != nil && (before == nil || before.who != now.who):
		p.log.Warn(now.finding.Message, "code", now.finding.Code, "hint", now.finding.Hint)
	case now == nil && before != nil:
		p.log.Info("the change log can be emptied again", "held_by", before.who)
	}
}
