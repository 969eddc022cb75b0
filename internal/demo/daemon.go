package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// Daemon runs replicator as a child process in a process group of its own, so that a terminal's Ctrl-C reaches only us.
type Daemon struct {
	Executable string
	Args       []string
	// Env is added to this process's environment.
	Env []string
	// Log gets the standard output and error of all its runs.
	Log io.Writer

	mu      sync.Mutex
	process *os.Process
	exited  chan struct{} // closed when process has ended
	err     error         // how it ended
	stopped bool          // by Stop: Keep must not start it again
}

// Start starts the process unless it runs already.
func (d *Daemon) Start() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopped || d.running() {
		return nil
	}
	cmd := exec.Command(d.Executable, d.Args...)
	cmd.Env = append(os.Environ(), d.Env...)
	cmd.Stdout, cmd.Stderr = d.Log, d.Log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	exited := make(chan struct{})
	d.process, d.exited = cmd.Process, exited
	go func() { // ends with the process
		err := cmd.Wait()
		d.mu.Lock()
		d.err = err
		d.mu.Unlock()
		close(exited)
	}()
	return nil
}

func (d *Daemon) running() bool {
	if d.process == nil {
		return false
	}
	select {
	case <-d.exited:
		return false
	default:
		return true
	}
}

// Pid returns the process id, 0 if it doesn't run.
func (d *Daemon) Pid() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.running() {
		return 0
	}
	return d.process.Pid
}

// Kill kills the process with SIGKILL and returns when it is gone. It is nothing to do if it doesn't run.
func (d *Daemon) Kill() error {
	d.mu.Lock()
	process, exited, running := d.process, d.exited, d.running()
	d.mu.Unlock()
	if !running {
		return nil
	}
	if err := process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill the daemon: %w", err)
	}
	<-exited
	return nil
}

// Stop ends the process with SIGTERM, and with SIGKILL if it is still there when ctx ends. It stays ended.
func (d *Daemon) Stop(ctx context.Context) error {
	d.mu.Lock()
	d.stopped = true
	process, exited, running := d.process, d.exited, d.running()
	d.mu.Unlock()
	if !running {
		return nil
	}
	if err := process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop the daemon: %w", err)
	}
	select {
	case <-exited:
		return nil
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("the daemon did not stop in time: %w", ctx.Err()), d.Kill())
	}
}

// Exited returns a channel that is closed when the present run has ended; it is nil before the first.
func (d *Daemon) Exited() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.exited
}

// Err returns how the latest run ended; nil while it runs or if it ended well.
func (d *Daemon) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.running() {
		return nil
	}
	return d.err
}

// Keep starts the process, and again whenever it has ended by itself, telling ended, until ctx ends or Stop is called. Runs that
// end at once again and again make it give up with an error.
func (d *Daemon) Keep(ctx context.Context, ended func(error)) error {
	early := 0
	for {
		began := time.Now()
		if err := d.Start(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-d.Exited():
		}
		d.mu.Lock()
		stopped := d.stopped
		d.mu.Unlock()
		if stopped || ctx.Err() != nil {
			return nil
		}
		if early++; time.Since(began) > 5*time.Second {
			early = 0
		}
		if early >= 5 {
			return fmt.Errorf("the daemon ends at once, again and again: %w", d.Err())
		}
		ended(d.Err())
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(500 * time.Millisecond):
		}
	}
}
