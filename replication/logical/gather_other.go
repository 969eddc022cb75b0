//go:build !linux

package logical

import (
	"net"
	"time"
)

// gatherer would wait for many messages at once; elsewhere than on Linux it doesn't.
type gatherer struct{}

func newGatherer(net.Conn) *gatherer { return nil }

func (*gatherer) wait(time.Duration) error { return nil }

func (*gatherer) took(int) {}
