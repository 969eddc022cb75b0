package redissync

import (
	"net"
	"testing"
)

// TestALatePongAfterTheEnd: a reply may have been read before the feed was closed by another.
func TestALatePongAfterTheEnd(t *testing.T) {
	here, there := net.Pipe()
	defer there.Close()
	done := make(chan struct{})
	f := &feed{link: &link{conn: here}, pongs: map[string]chan struct{}{"replicator-1": done}}
	f.close()
	f.pong("replicator-1")
	f.close()
	<-done
}
