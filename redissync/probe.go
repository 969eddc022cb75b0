package redissync

import (
	"context"
	"fmt"
	"time"
)

// probeTime bounds the wait for the probes that prove a feed.
const probeTime = 5 * time.Second

// probeKeys are written for an instant to prove that a feed is alive: one on each primary that holds slots.
func (o Options) probeKeys(l *layout) []string {
	if !l.cluster {
		return []string{o.own("probe:" + o.Name)}
	}
	keys := make([]string, len(l.nodes))
	for slot, shard := range l.owner {
		if shard >= 0 && keys[shard] == "" {
			keys[shard] = fmt.Sprintf("%s{%s}:%s:probe:%s", ownPrefix, slotTags()[slot], o.Migration, o.Name)
		}
	}
	var out []string
	for _, k := range keys {
		if k != "" {
			out = append(out, k)
		}
	}
	return out
}

// probeFeeds proves that the feeds report changes on every primary of the flow's origin.
func (f *flow) probeFeeds(ctx context.Context) error {
	p := f.pair
	s := &session{endpoint: f.origin.endpoint, name: p.o.connectionName(f.role("probe"))}
	defer s.close()
	l, err := s.layout(ctx)
	if err != nil {
		return fmt.Errorf("prove the way back: %w", err)
	}
	timer := time.NewTimer(probeTime)
	defer timer.Stop()
	for _, key := range p.o.probeKeys(l) {
		seen := f.expectProbe(key)
		if _, err := s.do(ctx, "PSETEX", key, "60000", "1"); err != nil {
			return fmt.Errorf("prove the way back: %w", err)
		}
		select {
		case <-seen:
		case <-timer.C:
			return fmt.Errorf("prove the way back: the %s doesn't report its changes: check that its user may use CLIENT TRACKING", f.origin.name)
		case <-ctx.Done():
			return ctx.Err()
		}
		if _, err := s.do(ctx, "UNLINK", key); err != nil {
			return fmt.Errorf("prove the way back: %w", err)
		}
	}
	return nil
}

func (f *flow) expectProbe(key string) <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.probe[key]
	if c == nil {
		c = make(chan struct{})
		if f.probe == nil {
			f.probe = map[string]chan struct{}{}
		}
		f.probe[key] = c
	}
	return c
}
