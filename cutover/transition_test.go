package cutover

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"replicator/internal/preflight"
)

func t0() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

// TestTransitions plays testdata/*.txt: a line that begins with "> " is an input, what follows it is the expected record.
func TestTransitions(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, filepath.Base(file), play(t, string(text)))
		})
	}
}

func play(t *testing.T, script string) string {
	t.Helper()
	var b strings.Builder
	var r Record
	now := t0()
	for line := range strings.Lines(script) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") {
			fmt.Fprintln(&b, line)
		}
		input, ok := strings.CutPrefix(line, "> ")
		if !ok {
			continue
		}
		fmt.Fprintln(&b, line)
		words := strings.Fields(input)
		var next Record
		var err error
		switch words[0] {
		case "start":
			next = begin(r, newAttemptID(now, r.Attempt), Request{Reverse: strings.Contains(input, "reverse"), DryRun: strings.Contains(input, "dry-run"), Budget: 30 * time.Second}, "shop", now)
		case "wait":
			d, err := time.ParseDuration(words[1])
			if err != nil {
				t.Fatal(err)
			}
			now = now.Add(d)
			continue
		case "ok":
			next, err = transition(r, event{kind: succeeded}, now)
		case "fail":
			next, err = transition(r, event{kind: failed, problem: &Problem{Code: words[1]}}, now)
		case "delivered":
			next, err = transition(r, event{kind: delivered, moment: Moment(words[1])}, now)
		case "warn":
			next, err = transition(r, event{kind: delivered, moment: Moment(words[1]), findings: []preflight.Finding{{Code: "hook-failed", Severity: preflight.Warning}}}, now)
		case "given-up":
			next, err = transition(r, event{kind: givenUp}, now)
		case "restart":
			next, err = transition(r, event{kind: restarted}, now)
		default:
			t.Fatalf("unknown input %q", input)
		}
		if err != nil {
			fmt.Fprintf(&b, "error: %v\n", err)
			continue
		}
		r = next
		fmt.Fprintln(&b, tell(r))
	}
	return b.String()
}

// tell is a record in one line.
func tell(r Record) string {
	s := fmt.Sprintf("%s (%s) active %s", r.Step, r.Phase, r.Active)
	if r.Touched {
		s += ", touched"
	}
	if !r.FreezeStart.IsZero() && r.FreezeEnd.IsZero() {
		s += fmt.Sprintf(", frozen, deadline +%s", r.Deadline.Sub(r.FreezeStart))
	}
	if !r.FreezeEnd.IsZero() {
		s += fmt.Sprintf(", froze %gs", r.FreezeSeconds)
	}
	for _, m := range moments {
		if n := r.Deliveries[m]; n > 0 {
			s += fmt.Sprintf(", %s hooks %d", m, n)
		}
	}
	if r.Problem != nil {
		s += ", problem " + r.Problem.Code
	}
	for _, f := range r.Findings {
		s += ", finding " + f.Code
	}
	if r.Outcome != "" {
		s += ", outcome " + string(r.Outcome)
	}
	return s
}

// TestEveryStepHasAWay: from every reachable step each kind of event either leads on or is refused, the point of no return is never crossed
// backwards, and every way ends.
func TestEveryStepHasAWay(t *testing.T) {
	type key struct {
		step             Step
		dry, touched, up bool
	}
	seen := map[key]Record{}
	todo := []Record{
		begin(Record{Version: 1}, "a", Request{}, "m", t0()), begin(Record{Version: 1}, "a", Request{DryRun: true}, "m", t0()),
		begin(Record{Version: 1, Active: Reverse}, "a", Request{Reverse: true}, "m", t0()),
	}
	for len(todo) > 0 {
		r := todo[0]
		todo = todo[1:]
		k := key{r.Step, r.DryRun, r.Touched, r.GivenUp}
		if _, ok := seen[k]; ok {
			continue
		}
		seen[k] = r
		if r.Phase != r.Step.Phase() {
			t.Errorf("%s: phase %s, want %s", r.Step, r.Phase, r.Step.Phase())
		}
		if _, err := decodeOf(t, r); err != nil {
			t.Errorf("%s: does not survive the journal: %v", r.Step, err)
		}
		if r.Step.Final() {
			if r.Outcome == "" || r.Ended.IsZero() {
				t.Errorf("%s: final without outcome or end", r.Step)
			}
			continue
		}
		for kind := succeeded; kind <= restarted; kind++ {
			n, err := transition(r, event{kind: kind, problem: &Problem{Code: "x"}, moment: AtSwitch}, t0())
			if err != nil {
				if kind == succeeded || kind == restarted {
					t.Errorf("%s: %v", r.Step, err)
				}
				continue
			}
			passed := func(r Record) bool { return r.Step >= StepOpen && r.Step <= StepComplete && !r.DryRun }
			switch {
			case passed(r) && !passed(n):
				t.Errorf("%s %s → %s crosses the point of no return backwards", r.Step, kind, n.Step)
			case !passed(r) && passed(n) && (r.Step != StepSeal || kind != succeeded):
				t.Errorf("%s %s → %s crosses the point of no return from elsewhere than a seal", r.Step, kind, n.Step)
			case kind == restarted && r.Step.Revocable() && n.Step != StepThaw && n.Step != StepCompensate:
				t.Errorf("%s restarted → %s, want the way back", r.Step, n.Step)
			case passed(n) != (n.Active != n.Direction) && !n.DryRun:
				t.Errorf("%s %s → %s: active %s, direction %s", r.Step, kind, n.Step, n.Active, n.Direction)
			}
			todo = append(todo, n)
		}
	}
	for s := StepCheck; s <= StepAborted; s++ {
		found := false
		for k := range seen {
			found = found || k.step == s
		}
		if !found {
			t.Errorf("step %s is unreachable", s)
		}
	}
}

func decodeOf(t *testing.T, r Record) (Record, error) {
	t.Helper()
	b, err := r.encode()
	if err != nil {
		t.Fatal(err)
	}
	return decode(b)
}

// TestActive reads the direction that pairs must run in from the journal alone.
func TestActive(t *testing.T) {
	if reverse, err := Active(nil); reverse || err != nil {
		t.Errorf("empty journal: %t %v, want forward", reverse, err)
	}
	r := begin(Record{Version: 1}, "a", Request{}, "m", t0())
	for !r.Step.Final() {
		b, err := r.encode()
		if err != nil {
			t.Fatal(err)
		}
		if reverse, err := Active(b); err != nil || reverse != (r.Step >= StepOpen) {
			t.Errorf("at %s: reverse %t, err %v", r.Step, reverse, err)
		}
		if r, err = transition(r, event{kind: succeeded}, t0()); err != nil {
			t.Fatal(err)
		}
	}
}
