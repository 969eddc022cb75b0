package main

import "replicator/cutover"

// hooks makes the configured hooks. Validation has found every mistake that can be told beforehand.
func (c CutoverConfig) hooks() ([]cutover.Hook, error) {
	configs := make([]cutover.HookConfig, len(c.Hooks))
	for i, h := range c.Hooks {
		configs[i].At = cutover.Moment(h.At)
		if w := h.Webhook; w != nil {
			configs[i].Webhook = &cutover.WebhookConfig{URL: w.URL.Reveal(), Secret: w.Secret.Reveal(), Timeout: w.Timeout}
		}
		if e := h.Exec; e != nil {
			configs[i].Exec = &cutover.ExecConfig{Command: e.Command, Timeout: e.Timeout}
			if len(e.Env) > 0 {
				configs[i].Exec.Env = map[string]string{}
			}
			for name, value := range e.Env {
				configs[i].Exec.Env[name] = value.Reveal()
			}
		}
	}
	return cutover.NewHooks(configs)
}
