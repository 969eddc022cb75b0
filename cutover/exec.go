package cutover

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"replicator/internal/retry"
)

// ExecConfig is a hook that is a program: the delivery as JSON on its standard input, exit status 0 is success.
type ExecConfig struct {
	Command []string `yaml:"command"`
	// Env is added to the program's environment, which otherwise holds only names like PATH and HOME and REPLICATOR_DELIVERY:
	// the daemon's own environment holds the databases' passwords.
	Env     map[string]string `yaml:"env,omitempty"`
	Timeout time.Duration     `yaml:"timeout,omitempty"`
}

// String shows the program's path alone; its arguments may hold a secret.
func (c ExecConfig) String() string {
	if len(c.Command) == 0 {
		return "exec (no command)"
	}
	return "exec " + c.Command[0]
}

// LogValue implements slog.LogValuer.
func (c ExecConfig) LogValue() slog.Value { return slog.StringValue(c.String()) }

// inherited are the variables that a program needs to work at all and that hold no secrets.
var inherited = []string{"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "SSL_CERT_FILE",
	"SSL_CERT_DIR", "HOSTNAME", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"}

type program struct{ config ExecConfig }

func newProgram(c ExecConfig, place string) (*program, []error) {
	var problems []error
	if len(c.Command) == 0 || c.Command[0] == "" {
		problems = append(problems, fmt.Errorf(`%s.command: is missing: give a list such as ["/etc/replicator/notify.sh"]`, place))
	}
	for name := range maps.Keys(c.Env) {
		if name == "" || strings.ContainsAny(name, "=\x00") {
			problems = append(problems, fmt.Errorf("%s.env: %q is not a variable's name", place, name))
		}
	}
	timeout, errs := hookTimeout(c.Timeout, place)
	c.Timeout = timeout
	return &program{config: c}, append(problems, errs...)
}

// String implements Means.
func (p *program) String() string { return p.config.String() }

// outputTail is how much of a failed program's output its error shows, in bytes.
const outputTail = 1000

// Call implements Means. A program that outlives its timeout is killed with all that it started.
func (p *program) Call(ctx context.Context, d Delivery) error {
	input, err := json.Marshal(d.document())
	if err != nil {
		return retry.Stop(fmt.Errorf("encode the delivery: %w", err))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, p.config.Timeout, fmt.Errorf("did not end within %s and was killed", p.config.Timeout))
	defer cancel()
	cmd := exec.CommandContext(ctx, p.config.Command[0], p.config.Command[1:]...)
	output := &tail{limit: outputTail}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(append(input, '\n')), output, output
	cmd.Env = p.environment(d)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		// ErrWaitDelay: it exited with 0, and left a child behind that holds its output open.
		return nil
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case errors.As(err, &exit):
		err = fmt.Errorf("ended with %s", exit.ProcessState)
	default:
		return retry.Stop(fmt.Errorf("start: %w", err))
	}
	if text := printable(output.bytes()); text != "" {
		return fmt.Errorf("%w: %s", err, text)
	}
	return err
}

func (p *program) environment(d Delivery) []string {
	var env []string
	for _, name := range inherited {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	env = append(env, "REPLICATOR_DELIVERY="+d.ID(), "REPLICATOR_EVENT="+string(d.Event), "REPLICATOR_DIRECTION="+d.Direction.String(),
		"REPLICATOR_DRY_RUN="+strconv.FormatBool(d.DryRun))
	for _, name := range slices.Sorted(maps.Keys(p.config.Env)) {
		env = append(env, name+"="+p.config.Env[name])
	}
	return env
}

// tail keeps the last bytes written to it.
type tail struct {
	limit   int
	kept    []byte
	dropped bool
}

// Write implements io.Writer; os/exec calls it from one goroutine when standard output and error are the same writer.
func (t *tail) Write(b []byte) (int, error) {
	t.kept = append(t.kept, b...)
	if over := len(t.kept) - t.limit; over > 0 {
		t.kept, t.dropped = slices.Clone(t.kept[over:]), true
	}
	return len(b), nil
}

func (t *tail) bytes() []byte {
	if t.dropped {
		return append([]byte("…"), t.kept...)
	}
	return t.kept
}
