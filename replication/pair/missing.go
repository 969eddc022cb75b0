package pair

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"replicator/internal/postgres"
	"replicator/internal/preflight"
)

// foreignKeyProblem names a foreign key that isn't back, or that doesn't hold for all rows.
func (p *Pair) foreignKeyProblem(s *side, n *foreignKeyNow, why string) preflight.Finding {
	message, statement := fmt.Sprintf("%s is not back: %s", n, why), n.add()
	if n.valid != nil {
		message, statement = fmt.Sprintf("%s holds for new rows, but could not be validated: %s", n, why), n.validation()
	}
	return p.finding("foreign-key-missing", preflight.Warning, s.name, message, "mend what the message names, then on the "+s.name+": "+statement)
}

// showForeignKeys replaces what Status says of a side's foreign keys.
func (p *Pair) showForeignKeys(s *side, missing []preflight.Finding) {
	p.mu.Lock()
	defer p.mu.Unlock()
	kept := slices.DeleteFunc(slices.Clone(p.status.foreign), func(f preflight.Finding) bool { return f.Side == s.name })
	p.status.foreign = append(kept, missing...)
}

// missingForeignKeys are those that Status names.
func (p *Pair) missingForeignKeys() []preflight.Finding {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.status.foreign)
}

// validate validates the foreign keys that leaveReplica has added; readers and writers go on meanwhile. One that rows violate is named in Status.
func (p *Pair) validate(ctx context.Context, s *side) error {
	notes, err := p.foreignKeyNotes(ctx, s)
	if err != nil {
		return err
	}
	var steps []postgres.LockedStep
	refused := map[string]string{}
	notes = slices.DeleteFunc(notes, func(n *foreignKeyNow) bool { return n.gone || n.valid == nil })
	for _, n := range notes {
		if n.Validated && !*n.valid {
			steps = append(steps, postgres.LockedStep{OID: n.oid, Name: n.String(), Statements: []string{n.validation()}})
		}
	}
	if err := p.calmly(ctx, s, "validate", steps, postgres.ShareUpdateExclusive, func(step postgres.LockedStep, err error) error {
		if postgres.Code(err) == "" {
			return fmt.Errorf("%s: validate %s: %w", s.name, step.Name, err)
		}
		refused[step.Name] = err.Error()
		return nil
	}); err != nil {
		return err
	}
	for _, n := range notes {
		if why := refused[n.String()]; why != "" {
			p.log.Error("a foreign key could not be validated", "side", s.name, "object", n.String(), "reason", why, "statement", n.validation())
			if n.Refused != "" {
				continue // noted already
			}
			n.Refused = why
			if err := p.note(ctx, s, undoForeignKey, n.Table, fmt.Sprintf("%s#%d refused", n.Constraint, n.oid), n.foreignKeyNote); err != nil {
				return err
			}
		}
		if err := p.stored.Undone(ctx, n.undo); err != nil {
			return err
		}
	}
	return p.checkForeignKeys(ctx, s)
}

// checkForeignKeys brings up to date what Status says of the foreign keys of a side that is written to, and forgets those that are as they were.
func (p *Pair) checkForeignKeys(ctx context.Context, s *side) error {
	notes, err := p.foreignKeyNotes(ctx, s)
	if err != nil {
		return err
	}
	var missing []preflight.Finding
	known := p.missingForeignKeys()
	for _, n := range notes {
		switch {
		case n.valid == nil && !n.gone:
			f := p.foreignKeyProblem(s, n, "the log of that time says why")
			if i := slices.IndexFunc(known, func(k preflight.Finding) bool {
				return k.Side == s.name && strings.HasPrefix(k.Message, n.String()+" is not back: ")
			}); i >= 0 {
				f.Message = known[i].Message
			}
			missing = append(missing, f)
			continue
		case !n.gone && n.Validated && !*n.valid:
			if n.Refused != "" {
				missing = append(missing, p.foreignKeyProblem(s, n, n.Refused))
			}
			continue
		}
		if err := p.stored.Undone(ctx, n.undo); err != nil {
			return err
		}
	}
	p.showForeignKeys(s, missing)
	return nil
}
