package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Where capture is measured, the source and what writes to it share one core, and everything else has the other: what capture costs the
// source can't hide on a core that is free.
const (
	sourceCore = 0
	targetCore = 1
)

func only(core int) *unix.CPUSet {
	var s unix.CPUSet
	s.Set(core)
	return &s
}

// pin keeps a process and its children on one core; those that they start later inherit it (sched_setaffinity(2)).
func pin(b *testing.B, pid, core int) {
	b.Helper()
	for _, p := range append([]int{pid}, offspring(func(f []string) bool { return f[1] == strconv.Itoa(pid) })...) {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", p))
		if err != nil {
			b.Fatal(err)
		}
		for _, t := range threads {
			id, err := strconv.Atoi(filepath.Base(t))
			if err != nil {
				b.Fatal(err)
			}
			if err := unix.SchedSetaffinity(id, only(core)); err != nil && err != unix.ESRCH {
				b.Fatalf("keep process %d on core %d: %v", p, core, err)
			}
		}
	}
}

// on runs f on one core; the processes that f starts stay there.
func on(b *testing.B, core int, f func()) {
	b.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		b.Fatal(err)
	}
	if err := unix.SchedSetaffinity(0, only(core)); err != nil {
		b.Fatalf("run on core %d (this benchmark needs two): %v", core, err)
	}
	defer func() {
		if err := unix.SchedSetaffinity(0, &all); err != nil {
			b.Fatal(err)
		}
	}()
	f()
}

// offspring lists the processes whose fields of /proc/PID/stat after the command (state, parent, group, session, …) are as wanted.
func offspring(want func(fields []string) bool) []int {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is well-formed
	var out []int
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it is gone
		}
		f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(f) > 3 && want(f) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path))) // the kernel writes numbers
			out = append(out, pid)
		}
	}
	return out
}
