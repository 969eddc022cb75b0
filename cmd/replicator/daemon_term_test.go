package main

import (
	"testing"

	"replicator/cutover"
	"replicator/redissync"
	"replicator/replication/pair"
)

// Whenever both sides are compared, a dry run can tell how long the freeze would last, and a step what it waits for.
func TestEveryVerificationPredictsAFreeze(t *testing.T) {
	for _, mode := range []VerifyMode{"frozen", "calm", "off"} {
		d := &daemon{}
		d.cfg.Cutover.Verify = mode
		term := &term{d: d}
		for _, p := range []cutover.Pair{term.checking(pair.New(pair.Options{Name: "main"})), term.checking(redissync.New(redissync.Options{Name: "main"}))} {
			if _, ok := p.(cutover.Predictor); !ok {
				t.Errorf("verify: %s: %T predicts nothing", mode, p)
			}
		}
		if _, ok := term.checking(redissync.New(redissync.Options{Name: "main"})).(cutover.Waiter); !ok {
			t.Errorf("verify: %s: the pair doesn't say what it waits for", mode)
		}
	}
}
