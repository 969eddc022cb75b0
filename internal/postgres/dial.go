package postgres

import (
	"context"
	"net"
	"time"
)

// silence is how long a peer may leave what we have sent unacknowledged, or our probes unanswered. A cut that nobody announces would
// otherwise be noticed only when TCP gives up, after about a quarter of an hour.
const silence = 45 * time.Second

func dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Control: bound, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: silence / 3, Interval: silence / 9, Count: 6}}
	return d.DialContext(ctx, network, address)
}
