package pgtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

var (
	errPortTaken = errors.New("the port is taken")
	errInUse     = errors.New("an earlier server still holds the data directory")
)

// process is one life of a server.
type process struct {
	pid  int
	done chan struct{} // closed when it has ended
}

// Start starts a server again that Stop or Kill has ended, on the same port, and returns when it accepts connections. ctx bounds
// the wait, crash recovery included.
func (s *Server) Start(ctx context.Context) error {
	s.lifecycle.Lock()
	defer s.lifecycle.Unlock()
	if s.running() != nil {
		return errors.New("the server is running already")
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := s.spawn(ctx)
		if !errors.Is(err, errPortTaken) && !errors.Is(err, errInUse) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Stop shuts the server down in PostgreSQL's fast mode, which ends sessions and writes a checkpoint, but waits for the receivers
// of logical slots; when ctx ends first it shuts down in the immediate mode. Stopping a stopped server does nothing.
func (s *Server) Stop(ctx context.Context) error {
	s.lifecycle.Lock()
	defer s.lifecycle.Unlock()
	return s.end(ctx, syscall.SIGINT)
}

// Kill ends every process of the server by SIGKILL, as a crash of the machine would, but for the kernel's cache of its files.
// Killing a stopped server does nothing.
func (s *Server) Kill() error {
	s.lifecycle.Lock()
	defer s.lifecycle.Unlock()
	p := s.running()
	if p == nil {
		return nil
	}
	// Stopped first, the postmaster can neither start further children nor restart those that die.
	if err := syscall.Kill(p.pid, syscall.SIGSTOP); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("stop the postmaster %d: %w", p.pid, err)
	}
	family := append([]int{p.pid}, children(p.pid)...)
	for _, pid := range family {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill the server process %d: %w", pid, err)
		}
	}
	<-p.done
	deadline := time.Now().Add(10 * time.Second)
	for _, pid := range family[1:] {
		for alive(pid) {
			if time.Now().After(deadline) {
				return fmt.Errorf("the server process %d outlived SIGKILL by 10 s", pid)
			}
			time.Sleep(time.Millisecond)
		}
	}
	return nil
}

// Pid returns the postmaster's process id, 0 while it is stopped.
func (s *Server) Pid() int {
	if p := s.running(); p != nil {
		return p.pid
	}
	return 0
}

func (s *Server) running() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return nil
	}
	select {
	case <-s.process.done:
		return nil
	default:
		return s.process
	}
}

// end sends the signal and escalates to immediate shutdown when ctx ends, and to SIGKILL 10 s later.
func (s *Server) end(ctx context.Context, signal syscall.Signal) error {
	if s.ownSocket {
		defer os.RemoveAll(s.socketDir)
	}
	p := s.running()
	if p == nil {
		return nil
	}
	if err := syscall.Kill(p.pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal the server %d: %w", p.pid, err)
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
	}
	_ = syscall.Kill(p.pid, syscall.SIGQUIT) // it may have ended just now
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
		<-p.done
	}
	return nil
}

// spawn starts the postmaster on s.port and waits until it accepts connections. On any error nothing runs.
func (s *Server) spawn(ctx context.Context) error {
	log, err := os.OpenFile(s.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open the server's log: %w", err)
	}
	defer log.Close()
	info, err := log.Stat()
	if err != nil {
		return fmt.Errorf("look at the server's log: %w", err)
	}
	if err := os.MkdirAll(s.socketDir, 0o755); err != nil {
		return fmt.Errorf("make the socket's directory: %w", err)
	}
	if err := s.as.give(s.socketDir); err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(s.BinDir(), "postgres"), "-D", s.DataDir(), "-p", strconv.Itoa(s.port))
	cmd.Dir = "/"
	cmd.Env = environment()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = s.as.attributes()

	p := &process{done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// The parent-death signal comes when the starting *thread* ends (prctl(2)), so it is held until the server has ended.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		p.pid = cmd.Process.Pid
		started <- nil
		_ = cmd.Wait() // how it ended stands in its log
		close(p.done)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("run the server: %w", err)
	}
	s.mu.Lock()
	s.process = p
	s.mu.Unlock()
	if err := s.awaitReady(ctx, p, info.Size()); err != nil {
		stopped, cancel := context.WithCancel(context.Background())
		cancel()
		return errors.Join(err, s.end(stopped, syscall.SIGQUIT))
	}
	return nil
}

// awaitReady polls the status line of postmaster.pid (PostgreSQL documentation, "Database File Layout"; pg_ctl waits likewise).
func (s *Server) awaitReady(ctx context.Context, p *process, logStart int64) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-p.done:
			log := s.logFrom(logStart)
			switch {
			case bytes.Contains(log, []byte("Address already in use")):
				return errPortTaken
			case bytes.Contains(log, []byte("is still in use")), bytes.Contains(log, []byte("lock file \"postmaster.pid\" already exists")):
				return fmt.Errorf("%w:\n%s", errInUse, log)
			}
			return fmt.Errorf("the server ended at once:\n%s", log)
		case <-ctx.Done():
			return fmt.Errorf("wait for the server to accept connections: %w\n%s", ctx.Err(), s.logFrom(logStart))
		case <-tick.C:
		}
		status, err := os.ReadFile(filepath.Join(s.DataDir(), "postmaster.pid"))
		if err != nil {
			continue
		}
		lines := strings.Split(string(status), "\n")
		if len(lines) >= 8 && strings.TrimSpace(lines[0]) == strconv.Itoa(p.pid) && strings.TrimSpace(lines[7]) == "ready" {
			return nil
		}
	}
}

func (s *Server) logFrom(offset int64) []byte {
	log, err := os.ReadFile(s.LogFile())
	if err != nil || int64(len(log)) < offset {
		return nil
	}
	return log[offset:]
}

// children lists the processes whose parent is pid, by /proc (proc(5)).
func children(pid int) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var out []int
	for _, e := range entries {
		child, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if f := procStat(child); len(f) > 1 && f[1] == strconv.Itoa(pid) {
			out = append(out, child)
		}
	}
	return out
}

// alive reports whether the process exists and isn't merely waiting to be reaped.
func alive(pid int) bool {
	f := procStat(pid)
	return len(f) > 0 && f[0] != "Z" && f[0] != "X"
}

// procStat returns the fields of /proc/PID/stat after the command: state, parent, …
func procStat(pid int) []string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	return strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
}
