package redistest

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Slots is the number of a cluster's hash slots.
const Slots = 16384

// Cluster is a running cluster.
type Cluster struct {
	// Primaries were given equal ranges of slots in order; those that AddPrimary added have none at first.
	Primaries []*Server
	Replicas  []*Server
	ca        string
}

// StartCluster starts a cluster that is killed at the end of the test; it takes two or three seconds. Failing to start fails the test.
func StartCluster(t TB, primaries int, o Options) *Cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := &Cluster{}
	if o.TLS { // the nodes talk to each other by it as well, and so share an authority
		dir := t.TempDir()
		ca, err := makeCertificate(dir)
		if err != nil {
			t.Fatalf("make a certificate: %v", err)
		}
		c.ca = ca
		settings := map[string]string{"tls-cluster": "yes", "tls-ca-cert-file": ca, "tls-cert-file": filepath.Join(dir, "server.crt"), "tls-key-file": filepath.Join(dir, "server.key")}
		for k, v := range o.Settings {
			settings[k] = v
		}
		o.Settings = settings
	}
	for range primaries {
		c.Primaries = append(c.Primaries, StartNode(t, o))
	}
	if err := c.form(ctx); err != nil {
		t.Fatalf("form a cluster: %v", err)
	}
	return c
}

// StartNode starts a server in cluster mode that belongs to no cluster yet.
func StartNode(t TB, o Options) *Server {
	t.Helper()
	settings := map[string]string{"cluster-enabled": "yes", "cluster-config-file": "nodes.conf", "cluster-node-timeout": "1000", "cluster-replica-validity-factor": "0"}
	if o.Version != "redis-6.0" { // its bus port is the port and 10000
		port, err := freePort()
		if err != nil {
			t.Fatalf("find a port for the cluster bus: %v", err)
		}
		settings["cluster-port"] = strconv.Itoa(port)
		settings["cluster-allow-replica-migration"] = "no" // a primary that gives its last slot away stays one
	}
	for k, v := range o.Settings {
		settings[k] = v
	}
	o.Settings = settings
	return Start(t, o)
}

// URL is that of the first primary.
func (c *Cluster) URL() string { return c.Primaries[0].URL() }

// CAFile holds the authorities of all nodes of a TLS cluster.
func (c *Cluster) CAFile() string { return c.ca }

// Nodes returns all servers.
func (c *Cluster) Nodes() []*Server {
	return append(append([]*Server(nil), c.Primaries...), c.Replicas...)
}

func (c *Cluster) form(ctx context.Context) error {
	n := len(c.Primaries)
	for i, s := range c.Primaries {
		slots := []string{"CLUSTER", "ADDSLOTS"}
		for slot := i * Slots / n; slot < (i+1)*Slots/n; slot++ {
			slots = append(slots, strconv.Itoa(slot))
		}
		for _, cmd := range [][]string{{"CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i + 1)}, slots} {
			if _, err := s.Do(ctx, cmd...); err != nil {
				return err
			}
		}
	}
	for _, s := range c.Nodes()[1:] {
		if err := c.Meet(ctx, s); err != nil {
			return err
		}
	}
	return c.Settle(ctx)
}

// AddReplica starts a replica of a primary and returns when it is in step.
func (c *Cluster) AddReplica(t TB, of *Server, o Options) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	r := StartNode(t, o)
	c.Replicas = append(c.Replicas, r)
	id, err := of.Do(ctx, "CLUSTER", "MYID")
	if err == nil {
		err = c.Meet(ctx, r)
	}
	if err == nil {
		err = until(ctx, func() bool { _, err := r.Do(ctx, "CLUSTER", "REPLICATE", id); return err == nil })
	}
	if err == nil {
		err = until(ctx, func() bool {
			info, _ := r.Do(ctx, "INFO", "replication")
			return strings.Contains(info, "master_link_status:up")
		})
	}
	if err == nil {
		err = c.Settle(ctx)
	}
	if err != nil {
		t.Fatalf("add a replica: %v", err)
	}
	return r
}

// AddPrimary starts a primary without slots.
func (c *Cluster) AddPrimary(t TB, o Options) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	s := StartNode(t, o)
	err := c.Meet(ctx, s)
	c.Primaries = append(c.Primaries, s)
	if err == nil {
		err = c.Settle(ctx)
	}
	if err != nil {
		t.Fatalf("add a primary: %v", err)
	}
	return s
}

// Remove makes the cluster forget a primary that has no slots left, and ends it.
func (c *Cluster) Remove(ctx context.Context, s *Server) error {
	id, err := s.Do(ctx, "CLUSTER", "MYID")
	if err != nil {
		return err
	}
	c.Primaries = slices.DeleteFunc(c.Primaries, func(x *Server) bool { return x == s })
	for _, n := range c.Nodes() {
		if n.Pid() == 0 {
			continue
		}
		if _, err := n.Do(ctx, "CLUSTER", "FORGET", id); err != nil {
			return err
		}
	}
	return s.Kill()
}

// AwaitPromotion returns when a replica has become a primary and the cluster is whole again.
func (c *Cluster) AwaitPromotion(ctx context.Context, r *Server) error {
	err := until(ctx, func() bool {
		info, _ := r.Do(ctx, "INFO", "replication")
		return strings.Contains(info, "role:master")
	})
	if err != nil {
		return err
	}
	return c.Settle(ctx)
}

// Meet makes a node known to the cluster.
func (c *Cluster) Meet(ctx context.Context, s *Server) error {
	cmd := []string{"CLUSTER", "MEET", "127.0.0.1", strconv.Itoa(s.Port())}
	if bus := s.o.Settings["cluster-port"]; bus != "" {
		cmd = append(cmd, bus)
	}
	_, err := c.Primaries[0].Do(ctx, cmd...)
	return err
}

// Settle returns when every node that runs says that the cluster is whole and knows as many nodes as were started.
func (c *Cluster) Settle(ctx context.Context) error {
	return until(ctx, func() bool {
		for _, s := range c.Nodes() {
			if s.Pid() == 0 {
				continue
			}
			info, err := s.Do(ctx, "CLUSTER", "INFO")
			if err != nil || !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, fmt.Sprintf("cluster_known_nodes:%d", len(c.Nodes()))) {
				return false
			}
		}
		return true
	})
}

// MoveSlot moves one slot with its keys from one primary to another, as redis-cli's resharding does (Redis documentation, "CLUSTER SETSLOT").
// Between is called when the keys are moving: after the first of them, or at once if there are none.
func (c *Cluster) MoveSlot(ctx context.Context, slot int, from, to *Server, between func()) error {
	here, err := from.Do(ctx, "CLUSTER", "MYID")
	if err != nil {
		return err
	}
	there, err := to.Do(ctx, "CLUSTER", "MYID")
	if err != nil {
		return err
	}
	n := strconv.Itoa(slot)
	if _, err := to.Do(ctx, "CLUSTER", "SETSLOT", n, "IMPORTING", here); err != nil {
		return err
	}
	if _, err := from.Do(ctx, "CLUSTER", "SETSLOT", n, "MIGRATING", there); err != nil {
		return err
	}
	for first := true; ; first = false {
		count := "10"
		if first {
			count = "1"
		}
		keys, err := from.list(ctx, "CLUSTER", "GETKEYSINSLOT", n, count)
		if err != nil {
			return err
		}
		if len(keys) > 0 {
			cmd := append([]string{"MIGRATE", "127.0.0.1", strconv.Itoa(to.Port()), "", "0", "5000", "REPLACE", "KEYS"}, keys...)
			if _, err := from.Do(ctx, cmd...); err != nil {
				return err
			}
		}
		if first && between != nil {
			between()
		}
		if len(keys) == 0 {
			break
		}
	}
	for _, s := range append([]*Server{to, from}, c.Primaries...) {
		if _, err := s.Do(ctx, "CLUSTER", "SETSLOT", n, "NODE", there); err != nil {
			return err
		}
	}
	return nil
}

func until(ctx context.Context, cond func() bool) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// Do runs one command and returns its reply as text, "" for an array.
func (s *Server) Do(ctx context.Context, args ...string) (string, error) {
	items, err := s.list(ctx, args...)
	if err != nil || len(items) != 1 {
		return "", err
	}
	return items[0], nil
}

// list runs one command and returns the items of its reply, which must be flat.
func (s *Server) list(ctx context.Context, args ...string) ([]string, error) {
	d := net.Dialer{Timeout: time.Second}
	conn, err := d.DialContext(ctx, "tcp", s.Address())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if s.o.TLS {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	}
	in := bufio.NewReader(conn)
	if s.o.Password != "" {
		if _, err := exchange(conn, in, []string{"AUTH", s.o.Password}); err != nil {
			return nil, err
		}
	}
	items, err := exchange(conn, in, args)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(args[:min(len(args), 3)], " "), err)
	}
	return items, nil
}

func exchange(conn io.Writer, in *bufio.Reader, args []string) ([]string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	if _, err := io.WriteString(conn, b.String()); err != nil {
		return nil, err
	}
	return readReply(in)
}

func readReply(in *bufio.Reader) ([]string, error) {
	line, err := in.ReadString('\n')
	if err != nil {
		return nil, err
	}
	line = strings.TrimSuffix(line, "\r\n")
	if line == "" {
		return nil, errors.New("an empty reply")
	}
	switch line[0] {
	case '-':
		return nil, errors.New(line[1:])
	case '$':
		n, err := strconv.Atoi(line[1:])
		if err != nil || n < 0 {
			return nil, err
		}
		b := make([]byte, n+2)
		if _, err := io.ReadFull(in, b); err != nil {
			return nil, err
		}
		return []string{string(b[:n])}, nil
	case '*':
		n, err := strconv.Atoi(line[1:])
		if err != nil {
			return nil, err
		}
		var all []string
		for range n {
			item, err := readReply(in)
			if err != nil {
				return nil, err
			}
			all = append(all, item...)
		}
		return all, nil
	}
	return []string{line[1:]}, nil
}
