//go:build !linux

package logical

import (
	"context"
	"net"
	"time"
)

// gatherer would wait for many messages at once; elsewhere than on Linux it doesn't.
type gatherer struct{}

func newGatherer(net.Conn) *gatherer { return nil }

func (*gatherer) wait(context.Context, net.Conn, time.Duration, bool) error { return nil }

func (*gatherer) close() {}
