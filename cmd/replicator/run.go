package main

import (
	"context"
	"errors"
	"log/slog"
)

// runDaemon replicates as configured until ctx ends.
func runDaemon(context.Context, Config, *slog.Logger) error {
	return errors.New("the daemon is not wired yet")
}
