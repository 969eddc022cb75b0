package redissync

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"
)

// feeds are the feeds of all primaries of one side; a single server has one. They stand and fall together: what any of them may have
// missed is found by the same reconcile.
type feeds struct {
	all  []*feed
	sign string // of the layout that they cover
}

// errLayout ends feeds that don't cover the cluster any more.
var errLayout = errors.New("the cluster's primaries or their slots have changed")

// openFeeds subscribes on every primary; when it returns, every later change will be reported.
func openFeeds(ctx context.Context, e endpoint, name string, notifications bool) (*feeds, error) {
	s := &session{endpoint: e, name: name}
	defer s.close()
	l, err := s.relearn(ctx)
	if err != nil {
		return nil, err
	}
	fs := &feeds{sign: l.sign}
	endpoints := []endpoint{e}
	if l.cluster {
		endpoints = endpoints[:0]
		for _, n := range l.nodes {
			endpoints = append(endpoints, e.at(n.address))
		}
	}
	for _, e := range endpoints {
		f, err := openFeed(ctx, e, name, notifications)
		if err != nil {
			fs.close()
			if e.topology != nil {
				e.topology.doubt()
			}
			return nil, err
		}
		fs.all = append(fs.all, f)
	}
	// A primary that joined meanwhile has no feed.
	if now, err := s.relearn(ctx); err != nil || now.sign != l.sign {
		fs.close()
		return nil, errors.Join(errLayout, err)
	}
	return fs, nil
}

// listen reads all feeds until one breaks or ctx ends; then it closes all. h is called by several goroutines.
func (fs *feeds) listen(ctx context.Context, h feedHandler) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, f := range fs.all {
		g.Go(func() error { return f.listen(ctx, h) })
	}
	return g.Wait()
}

// ping returns once everything that any primary had reported before the call has been handled.
func (fs *feeds) ping(ctx context.Context) error {
	if len(fs.all) == 1 {
		return fs.all[0].ping(ctx)
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, f := range fs.all {
		g.Go(func() error { return f.ping(ctx) })
	}
	return g.Wait()
}

func (fs *feeds) close() {
	for _, f := range fs.all {
		f.close()
	}
}

// covers closes feeds that were opened for another layout than this one, which makes a gap.
func (f *flow) covers(l *layout) {
	f.mu.Lock()
	fd := f.feed
	f.mu.Unlock()
	if fd != nil && fd.sign != l.sign {
		f.log.Info("the cluster has changed: its feeds are opened anew", "side", f.origin.name)
		fd.close()
	}
}
