package cutover

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Moment is when a hook is called; its value stands in the configuration's `at` and the delivery's `event`.
type Moment string

// The moments: before anything is frozen, at the switch, after it is done, after an attempt was given up.
const (
	AtBefore Moment = "before"
	AtSwitch Moment = "switch"
	AtAfter  Moment = "after"
	AtAbort  Moment = "abort"
)

// moments in the order in which an attempt meets them.
var moments = []Moment{AtBefore, AtSwitch, AtAfter, AtAbort}

// Delivery is what a hook is told. Repeats of one delivery carry the same ID.
type Delivery struct {
	Migration string
	Attempt   string
	Event     Moment
	Direction Direction
	DryRun    bool
	At        time.Time
	// N is the hook's place, from 1, among the hooks of its moment.
	N int
}

// ID returns ATTEMPT/EVENT/N, by which a receiver recognises a repeat.
func (d Delivery) ID() string { return fmt.Sprintf("%s/%s/%d", d.Attempt, d.Event, d.N) }

// deliveryDocument is the JSON form that receivers rely on.
type deliveryDocument struct {
	Migration string    `json:"migration"`
	Attempt   string    `json:"attempt"`
	Event     Moment    `json:"event"`
	Direction Direction `json:"direction"`
	DryRun    bool      `json:"dry_run"`
	At        time.Time `json:"at"`
}

func (d Delivery) document() deliveryDocument {
	return deliveryDocument{d.Migration, d.Attempt, d.Event, d.Direction, d.DryRun, d.At.UTC()}
}

// Means is how a hook reaches what it tells: a webhook, a program, a platform's API.
type Means interface {
	// Call delivers once and returns when it is acknowledged, within the means' own timeout. Delivery is at least once: Call must bear being
	// repeated with the same Delivery.ID. An error that repeating can't mend is marked by retry.Stop. With
	// DryRun nothing may be changed at the receiver beyond noting the rehearsal.
	Call(ctx context.Context, d Delivery) error
	// String names the hook for people, without secrets.
	String() string
}

// Hook is one call to make at one moment. Hooks of the same moment run in their order, in both directions.
type Hook struct {
	At    Moment
	Means Means
}

// HookConfig is one hook as configured: a moment and exactly one means.
type HookConfig struct {
	At      Moment         `yaml:"at"`
	Webhook *WebhookConfig `yaml:"webhook,omitempty"`
	Exec    *ExecConfig    `yaml:"exec,omitempty"`
}

// NewHooks checks the configuration and makes the hooks. The error joins every problem found (errors.Join), each beginning with
// its place, such as `hooks[1].webhook.url`.
func NewHooks(configs []HookConfig) ([]Hook, error) {
	var hooks []Hook
	var problems []error
	for i, c := range configs {
		place := fmt.Sprintf("hooks[%d]", i)
		problems = append(problems, c.checkMoment(place)...)
		means, errs := c.means(place)
		problems = append(problems, errs...)
		hooks = append(hooks, Hook{At: c.At, Means: means})
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return hooks, nil
}

func (c HookConfig) checkMoment(place string) []error {
	for _, m := range moments {
		if c.At == m {
			return nil
		}
	}
	return []error{fmt.Errorf("%s.at: %q is not a moment: use before, switch, after or abort", place, string(c.At))}
}

// means builds the one means that is configured.
func (c HookConfig) means(place string) (means Means, problems []error) {
	count := 0
	if c.Webhook != nil {
		count++
		m, errs := newWebhook(*c.Webhook, place+".webhook")
		means, problems = m, append(problems, errs...)
	}
	if c.Exec != nil {
		count++
		m, errs := newProgram(*c.Exec, place+".exec")
		means, problems = m, append(problems, errs...)
	}
	if count != 1 {
		problems = append(problems, fmt.Errorf("%s: has %d of webhook and exec: give exactly one", place, count))
	}
	return means, problems
}

// defaultHookTimeout bounds one call where the configuration gives no timeout.
const defaultHookTimeout = 10 * time.Second

// hookTimeout returns the configured timeout or the default.
func hookTimeout(d time.Duration, place string) (time.Duration, []error) {
	switch {
	case d < 0:
		return 0, []error{fmt.Errorf("%s.timeout: %s is negative: give a duration such as 5s", place, d)}
	case d == 0:
		return defaultHookTimeout, nil
	}
	return d, nil
}
