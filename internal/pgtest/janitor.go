package pgtest

import (
	"io"
	"os"
	"os/exec"
	"syscall"
)

// janitor removes a server's directory when this process ends, whatever ends it: a child that waits for the end of a pipe, which
// closes with us, then for the server.
type janitor struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
}

// The word "done" says that there is nothing left to do; the end of the pipe without it that we died.
const janitorScript = `
read -r word
[ "$word" = done ] && exit 0
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
if [ -n "$pid" ]; then
	kill -QUIT "$pid" 2>/dev/null
	for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do
		kill -0 "$pid" 2>/dev/null || break
		sleep 0.2
	done
	kill -KILL "$pid" 2>/dev/null
fi
rm -rf -- "$1"
`

func newJanitor(dir string) (*janitor, error) {
	cmd := exec.Command("/bin/sh", "-c", janitorScript, "janitor", dir)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a Ctrl-C on the terminal mustn't reach it
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdin = read
	err = cmd.Start()
	read.Close()
	if err != nil {
		write.Close()
		return nil, err
	}
	return &janitor{cmd: cmd, pipe: write}, nil
}

// dismiss ends the janitor without work.
func (j *janitor) dismiss() {
	_, _ = io.WriteString(j.pipe, "done\n") // a janitor that has died needs no dismissal
	_ = j.pipe.Close()
	_ = j.cmd.Wait()
}
