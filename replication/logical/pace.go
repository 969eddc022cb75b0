package logical

import (
	"io"
	"sync/atomic"
	"time"
)

// rest is how long the reader of a stream leaves what arrives to the kernel while nobody could use it yet.
const rest = 500 * time.Microsecond

// pace reads the stream in large pieces. The server sends every message by itself, and a reader that takes each of them at once wakes
// up, and makes the server wake it, once a message: that costs both sides more than the messages do. So while the applier is busy
// anyway, the reader rests before it looks for more. While the applier waits, it never does.
type pace struct {
	from io.Reader
	busy *atomic.Bool
	buf  []byte
	data []byte // of buf, not read yet
	// scarce: the last look found less than half a buffer.
	scarce bool
}

func newPace(from io.Reader, busy *atomic.Bool) *pace {
	return &pace{from: from, busy: busy, buf: make([]byte, 128<<10)}
}

// Read implements io.Reader.
func (p *pace) Read(b []byte) (int, error) {
	if len(p.data) == 0 {
		if p.scarce && p.busy.Load() {
			time.Sleep(rest)
		}
		n, err := p.from.Read(p.buf)
		p.data, p.scarce = p.buf[:n], n < len(p.buf)/2
		if n == 0 {
			return 0, err
		}
		// An error that came with data comes again with the next look.
	}
	n := copy(b, p.data)
	p.data = p.data[n:]
	return n, nil
}
