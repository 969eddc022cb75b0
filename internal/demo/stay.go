package demo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"replicator/internal/demo/shop"
)

// stay keeps everything running until ctx ends, then lets the application rest and checks its ledger on the side in use.
func (s *stage) stay(ctx context.Context, rest func()) error {
	var r Result
	if err := s.awaitStreaming(ctx, &r); err != nil {
		return errors.Join(ctx.Err(), err)
	}
	s.console.say("%s", s.tour())
	for wait(ctx, time.Second) {
		s.console.ticker(fmt.Sprintf("on the %s: %s", s.writers.At().Name, s.lagNote()))
	}
	rest()
	proving, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	select {
	case <-s.resting:
	case <-proving.Done():
		return proving.Err()
	}
	at := s.writers.At()
	report, err := shop.Audit(proving, s.ledger, at)
	if err != nil {
		return err
	}
	s.console.say("the application's ledger against the %s: %v", at.Name, report)
	if !report.Good() {
		return ErrFailed
	}
	return nil
}

// tour tells what there is to try.
func (s *stage) tour() string {
	return fmt.Sprintf(`
Both sides run, and the shop is being written to. Look and try, in another terminal:

  status page   %[1]s   (token %[2]s)
  log           %[3]s/replicator.log

  export REPLICATOR_ADDR=%[1]s REPLICATOR_TOKEN=%[2]s
  %[4]s status --watch
  %[4]s verify --wait
  %[4]s cutover start --dry-run --wait
  %[4]s cutover start --wait      # the application follows
  %[4]s rollback --wait           # and back again
  kill -9 %[5]d                   # the daemon: it is started again and resumes

  psql '%[6]s'    # the source
  psql '%[7]s'    # the target

Ctrl-C ends the demo and checks the application's ledger.
`, s.api.Address, s.api.Token, s.dir, s.o.Executable, s.daemon.Pid(), s.servers.Source.PostgresURL, s.servers.Target.PostgresURL)
}
