package redissync

import (
	"errors"
	"net"
	"strings"
	"time"

	"replicator/internal/preflight"
)

// Phase is where a pair stands, in the words of the status document.
type Phase string

// The phases of a Redis pair.
const (
	Starting  Phase = "starting"  // no feed yet
	Copying   Phase = "copying"   // the first two-way reconcile runs; live changes are copied as well
	Streaming Phase = "streaming" // the target follows the source
	Frozen    Phase = "frozen"    // a cutover holds the origin's writes
	Reversed  Phase = "reversed"  // the target takes writes and the source follows it
	Finished  Phase = "finished"  // everything of ours is removed
	Stopped   Phase = "stopped"   // paused by the operator, or ended
)

// Status is a reading of a pair.
type Status struct {
	Name  string
	Phase Phase
	// LagSeconds is the age of the oldest change that isn't on the destination; 0 if there is none, nil while unknown.
	LagSeconds *float64
	// DirtyKeys counts the keys that wait to be copied or are being copied.
	DirtyKeys int64
	// KeysCopied counts the copies since the process started; KeysScanned and KeysTotal tell how far the present scan is.
	KeysCopied, KeysScanned, KeysTotal int64
	// Gaps counts the interruptions of the feed since the process started; each was followed by a two-way reconcile.
	Gaps     int64
	Problems []preflight.Finding
}

// Status returns the present reading. It never blocks on a server.
func (p *Pair) Status() Status {
	p.mu.Lock()
	f, finished, paused, running := p.active, p.finished, p.paused, p.running
	frozen := p.frozen != nil && time.Now().Before(p.frozen.deadline)
	s := Status{Name: p.o.Name, Phase: Starting, KeysCopied: p.copied.Load(), Gaps: p.gaps.Load()}
	now := time.Now()
	for k, x := range p.problems {
		if !x.until.IsZero() && now.After(x.until) {
			delete(p.problems, k)
			continue
		}
		s.Problems = append(s.Problems, x.finding)
	}
	p.mu.Unlock()
	sortFindings(s.Problems)
	if f == nil {
		if finished {
			s.Phase = Finished
		} else if !running && p.ended.Load() {
			s.Phase = Stopped
		}
		return s
	}
	f.mu.Lock()
	up, reconciled := f.feed != nil, f.reconciled
	s.KeysTotal = f.total
	f.mu.Unlock()
	s.KeysScanned = f.scanned.Load()
	s.LagSeconds = f.lag()
	s.DirtyKeys = int64(f.queue.state().pending)
	switch {
	case finished:
		s.Phase = Finished
	case paused:
		s.Phase = Stopped
	case frozen:
		s.Phase = Frozen
	case f.reverse:
		s.Phase = Reversed
	case reconciled:
		s.Phase = Streaming
	case up:
		s.Phase = Copying
	}
	return s
}

type shown struct {
	finding preflight.Finding
	until   time.Time
}

// problem shows a finding in the status until solved.
func (p *Pair) problem(key string, f preflight.Finding) { p.problemFor(key, f, 0) }

// problemFor shows a finding for a while; zero means until solved.
func (p *Pair) problemFor(key string, f preflight.Finding, d time.Duration) {
	f.Pair = p.o.Name
	x := shown{finding: f}
	if d > 0 {
		x.until = time.Now().Add(d)
	}
	p.mu.Lock()
	_, had := p.problems[key]
	p.problems[key] = x
	p.mu.Unlock()
	if !had {
		p.log.Warn(f.Message, "code", f.Code, "side", f.Side, "hint", f.Hint)
	}
}

// solved takes a problem off the status.
func (p *Pair) solved(side, key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.problems, side+" "+key)
}

// problemOf makes a finding of an error and gives it the key under which solved finds it.
func problemOf(err error, at side, key string) (string, preflight.Finding) {
	code, hint := classify(err, at)
	return at.name + " " + key, preflight.Finding{Code: code, Severity: preflight.Error, Side: at.name, Message: err.Error(), Hint: hint}
}

// classify names the kind of an error and what to do about it.
func classify(err error, at side) (code, hint string) {
	var h *preflight.Hinted
	if errors.As(err, &h) {
		return h.Code, h.Hint
	}
	var r replyError
	if errors.As(err, &r) {
		word, _, _ := strings.Cut(string(r), " ")
		switch word {
		case "WRONGPASS", "NOAUTH":
			return "redis-auth", "check user and password in the " + at.name + "'s URL"
		case "NOPERM":
			return "redis-permission", "give the " + at.name + "'s user the command or key that is named (ACL SETUSER)"
		case "OOM":
			return "redis-out-of-memory", "give the " + at.name + " more memory (maxmemory); replicator tries again by itself"
		case "READONLY":
			return "redis-not-primary", "give the address of the primary, as the provider's primary endpoint does"
		case "LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MISCONF":
			return "redis-busy", "the " + at.name + " can't serve writes at the moment; replicator tries again by itself"
		case "MOVED", "ASK", "CROSSSLOT":
			return "redis-cluster", "see CLUSTER NODES on the " + at.name + " for who holds its slots; replicator follows redirections by itself"
		}
		if isAuth(err) {
			return "redis-auth", "check user and password in the " + at.name + "'s URL"
		}
		if strings.Contains(string(r), "unknown command") || strings.Contains(string(r), "unknown subcommand") {
			return "redis-command-missing", "the " + at.name + " must be Redis 6.2 or newer, or Valkey, with this command enabled"
		}
		return "redis-refused", "see the " + at.name + " server's message; replicator tries again by itself"
	}
	if strings.Contains(err.Error(), "TLS handshake") {
		return "redis-tls", "check that the server speaks TLS (rediss://), and trust its certificate by a CA file or a pin"
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return "redis-unreachable", "check the host name in the " + at.name + "'s URL"
	}
	return "redis-unreachable", "check that the " + at.name + " runs and can be reached from here; replicator tries again by itself"
}
