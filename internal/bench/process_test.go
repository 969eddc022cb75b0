package bench

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// ticks is USER_HZ, in which Linux counts CPU time in /proc on every architecture (proc(5), times(2)).
const ticks = 100

// cpu returns the seconds of user and system time that a process has used, 0 if it is gone.
func cpu(pid int) float64 {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11]) // the kernel writes numbers
	system, _ := strconv.Atoi(f[12])
	return float64(user+system) / ticks
}

// peak returns the greatest resident size that a process has had, in bytes (VmHWM).
func peak(pid int) int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kb << 10
		}
	}
	return 0
}

// freshMemory is what freshen takes, in bytes: more than any drain at scale 1 writes.
const freshMemory = 2 << 30

// freshen writes to free memory and gives it back. A virtual machine's kernel may hand memory that nobody uses over to its host (free page
// reporting); the first write to such a page then waits for the host, 10 µs instead of 1.6 where this was found. A write-ahead log of hundreds of
// megabytes goes to such pages, so a drain's time would say how long the machine has rested before it.
func freshen(b *testing.B) {
	b.Helper()
	m, err := unix.Mmap(-1, 0, freshMemory, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_POPULATE)
	if err != nil {
		b.Fatalf("take %d MB of memory: %v", freshMemory>>20, err)
	}
	if err := unix.Munmap(m); err != nil {
		b.Fatal(err)
	}
}
