package redistest

import (
	"os/exec"
	"runtime"
	"sync"
)

// launcher starts processes from one locked thread: the kernel sends the parent-death signal when the *thread* that started a
// process ends (prctl(2), PR_SET_PDEATHSIG), and Go ends threads when it likes.
var launcher launchThread

type launchThread struct {
	once sync.Once
	work chan func()
}

func (l *launchThread) start(cmd *exec.Cmd) error {
	l.once.Do(func() {
		l.work = make(chan func())
		go func() {
			runtime.LockOSThread()
			for f := range l.work {
				f()
			}
		}()
	})
	err := make(chan error)
	l.work <- func() { err <- cmd.Start() }
	return <-err
}
