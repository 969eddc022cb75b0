package demo

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// console tells people how far things are: a bar that is redrawn on a terminal, a plain line now and then elsewhere.
type console struct {
	w        io.Writer
	terminal bool
	every    time.Duration // between plain progress lines

	mu   sync.Mutex
	open bool // a bar stands on the present line
	last time.Time
}

func newConsole(w io.Writer) *console {
	c := &console{w: w, every: 2 * time.Second}
	if f, ok := w.(*os.File); ok {
		info, err := f.Stat()
		c.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
	}
	return c
}

// say prints a line of its own.
func (c *console) say(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closeBar()
	fmt.Fprintf(c.w, format+"\n", args...)
}

const barWidth = 30

// ticker shows a line that changes all the time.
func (c *console) ticker(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.terminal:
		fmt.Fprintf(c.w, "\r\x1b[K%s", text)
		c.open = true
	case time.Since(c.last) >= 5*c.every:
		c.last = time.Now()
		fmt.Fprintln(c.w, text)
	}
}

// progress shows how much of total is done.
func (c *console) progress(label string, done, total int64, note string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	share := 0.0
	if total > 0 {
		share = min(1, float64(done)/float64(total))
	}
	if c.terminal {
		full := int(share * barWidth)
		bar := strings.Repeat("█", full) + strings.Repeat("░", barWidth-full)
		fmt.Fprintf(c.w, "\r\x1b[K%-10s %s %3.0f%%  %s", label, bar, share*100, note)
		c.open = true
		return
	}
	if time.Since(c.last) < c.every {
		return
	}
	c.last = time.Now()
	fmt.Fprintf(c.w, "%s: %.0f%%, %s\n", label, share*100, note)
}

// end closes a bar that still stands.
func (c *console) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closeBar()
	c.last = time.Time{}
}

func (c *console) closeBar() {
	if c.open {
		fmt.Fprintln(c.w)
		c.open = false
	}
}

// thousands writes a number with its digits in groups of three.
func thousands(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
