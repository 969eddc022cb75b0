package redissync

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"unsafe"
)

// The first bytes of RESP2 and RESP3 replies (Redis documentation, "Redis serialization protocol specification").
const (
	kindSimple   = '+'
	kindError    = '-'
	kindInt      = ':'
	kindBulk     = '$'
	kindArray    = '*'
	kindNull     = '_'
	kindBool     = '#'
	kindDouble   = ','
	kindBigInt   = '('
	kindBulkErr  = '!'
	kindVerbatim = '='
	kindMap      = '%'
	kindSet      = '~'
	kindAttr     = '|'
	kindPush     = '>'
)

// Bounds of what a server may send: Redis' own bulk limit, and what no reply of ours nests or counts beyond.
const (
	maxBulk  = 1 << 30
	maxItems = 1 << 28
	maxDepth = 16
	growStep = 1 << 20
)

// value is one decoded reply. Maps are flattened into items (key, value, key, value); doubles and big integers stay text.
type value struct {
	kind  byte
	null  bool
	str   string
	num   int64
	items []value
}

// replyError is an error reply of the server's, told apart from a broken connection.
type replyError string

func (e replyError) Error() string { return string(e) }

// err returns the error that the value is, or nil.
func (v value) err() error {
	if v.kind == kindError || v.kind == kindBulkErr {
		return replyError(v.str)
	}
	return nil
}

// isReplyError tells whether err is an answer of the server's and the connection is therefore still in step.
func isReplyError(err error) bool {
	var r replyError
	return errors.As(err, &r)
}

// strings returns the items as strings.
func (v value) strings() []string {
	out := make([]string, len(v.items))
	for i, it := range v.items {
		out[i] = it.str
		if it.kind == kindInt {
			out[i] = strconv.FormatInt(it.num, 10)
		}
	}
	return out
}

// field returns the value that follows name in a flattened map, RESP2 array or RESP3 map alike.
func (v value) field(name string) (value, bool) {
	for i := 0; i+1 < len(v.items); i += 2 {
		if v.items[i].str == name {
			return v.items[i+1], true
		}
	}
	return value{}, false
}

// reader decodes replies. It trusts no length that it was told: memory grows only with bytes that have really come.
type reader struct{ r *bufio.Reader }

func newReader(r io.Reader) *reader { return &reader{r: bufio.NewReaderSize(r, 64<<10)} }

// read returns the next value. Any error leaves the stream out of step: the connection must be closed.
func (r *reader) read() (value, error) { return r.readDepth(0) }

func (r *reader) readDepth(depth int) (value, error) {
	if depth > maxDepth {
		return value{}, errors.New("read reply: nested too deep")
	}
	line, err := r.line()
	if err != nil {
		return value{}, err
	}
	v := value{kind: line[0]}
	body := line[1:]
	switch v.kind {
	case kindSimple:
		v.str = simple(body)
	case kindError, kindDouble, kindBigInt:
		v.str = string(body)
	case kindInt:
		if v.num, err = strconv.ParseInt(string(body), 10, 64); err != nil {
			return value{}, fmt.Errorf("read reply: integer %q", clip(body))
		}
	case kindBool:
		if len(body) != 1 || body[0] != 't' && body[0] != 'f' {
			return value{}, fmt.Errorf("read reply: boolean %q", clip(body))
		}
		if body[0] == 't' {
			v.num = 1
		}
	case kindNull:
		if len(body) != 0 {
			return value{}, errors.New("read reply: null with a body")
		}
		v.null = true
	case kindBulk, kindBulkErr, kindVerbatim:
		n, err := length(body, maxBulk)
		if err != nil {
			return value{}, err
		}
		if n < 0 {
			if v.kind != kindBulk {
				return value{}, errors.New("read reply: negative length")
			}
			v.null = true
			return v, nil
		}
		if v.str, err = r.bulk(n); err != nil {
			return value{}, err
		}
		if v.kind == kindVerbatim && len(v.str) >= 4 && v.str[3] == ':' {
			v.str = v.str[4:]
		}
	case kindArray, kindSet, kindPush, kindMap, kindAttr:
		n, err := length(body, maxItems)
		if err != nil {
			return value{}, err
		}
		if n < 0 {
			if v.kind != kindArray {
				return value{}, errors.New("read reply: negative length")
			}
			v.null = true
			return v, nil
		}
		if v.kind == kindMap || v.kind == kindAttr {
			n *= 2
		}
		v.items = make([]value, 0, min(n, 64))
		for range n {
			it, err := r.readDepth(depth + 1)
			if err != nil {
				return value{}, err
			}
			v.items = append(v.items, it)
		}
		if v.kind == kindAttr { // attributes precede the reply that they describe; nothing of ours needs them
			return r.readDepth(depth + 1)
		}
	default:
		return value{}, fmt.Errorf("read reply: unknown type %q", v.kind)
	}
	return v, nil
}

// line returns the next line without its CRLF, at least one byte long; valid until the next read.
func (r *reader) line() ([]byte, error) {
	line, err := r.r.ReadSlice('\n')
	if err != nil {
		if errors.Is(err, bufio.ErrBufferFull) {
			return nil, errors.New("read reply: line too long")
		}
		if errors.Is(err, io.EOF) && len(line) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	if len(line) < 3 || line[len(line)-2] != '\r' {
		return nil, fmt.Errorf("read reply: malformed line %q", clip(line))
	}
	return line[:len(line)-2], nil
}

// simple returns a status reply; those of nearly every command take no memory of their own.
func simple(body []byte) string {
	switch string(body) {
	case "OK":
		return "OK"
	case "QUEUED":
		return "QUEUED"
	}
	return string(body)
}

func (r *reader) bulk(n int) (string, error) {
	if n+2 <= r.r.Size() { // nearly every reply: one copy out of the buffer
		b, err := r.r.Peek(n + 2)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return "", err
		}
		if b[n] != '\r' || b[n+1] != '\n' {
			return "", errors.New("read reply: bulk string without its end")
		}
		s := string(b[:n])
		_, err = r.r.Discard(n + 2)
		return s, err
	}
	buf := make([]byte, 0, min(n+2, growStep))
	for len(buf) < n+2 {
		step := min(n+2-len(buf), max(growStep, len(buf)))
		at := len(buf)
		if cap(buf) < at+step {
			grown := make([]byte, at, at+step)
			copy(grown, buf)
			buf = grown
		}
		buf = buf[:at+step]
		if _, err := io.ReadFull(r.r, buf[at:]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return "", err
		}
	}
	if buf[n] != '\r' || buf[n+1] != '\n' {
		return "", errors.New("read reply: bulk string without its end")
	}
	return unsafe.String(unsafe.SliceData(buf), n), nil // nobody else has the buffer
}

func length(body []byte, limit int64) (int, error) {
	n, err := strconv.ParseInt(string(body), 10, 64)
	if err != nil || n < -1 || n > limit {
		return 0, fmt.Errorf("read reply: length %q", clip(body))
	}
	return int(n), nil
}

func clip(b []byte) []byte { return b[:min(len(b), 32)] }

// appendCommand appends a command in RESP form.
func appendCommand(buf []byte, args []string) []byte {
	buf = append(buf, kindArray)
	buf = strconv.AppendInt(buf, int64(len(args)), 10)
	buf = append(buf, '\r', '\n')
	for _, a := range args {
		buf = append(buf, kindBulk)
		buf = strconv.AppendInt(buf, int64(len(a)), 10)
		buf = append(buf, '\r', '\n')
		buf = append(buf, a...)
		buf = append(buf, '\r', '\n')
	}
	return buf
}
