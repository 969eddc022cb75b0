package apply

import "encoding/binary"

// wire is a run of messages for the server ("Message Formats" in the PostgreSQL documentation) that is sent as a whole.
type wire struct{ b []byte }

// message begins one and returns where its length stands, which finish fills in.
func (w *wire) message(kind byte) int {
	w.b = append(w.b, kind, 0, 0, 0, 0)
	return len(w.b) - 4
}

// finish ends a message that counts its length field.
func (w *wire) finish(at int) { binary.BigEndian.PutUint32(w.b[at:], uint32(len(w.b)-at)) }

func (w *wire) string(s string) { w.b = append(append(w.b, s...), 0) }
func (w *wire) uint16(n int)    { w.b = binary.BigEndian.AppendUint16(w.b, uint16(n)) }
func (w *wire) uint32(n uint32) { w.b = binary.BigEndian.AppendUint32(w.b, n) }

// parse makes a prepared statement.
func (w *wire) parse(name, sql string, types []uint32) {
	at := w.message('P')
	w.string(name)
	w.string(sql)
	w.uint16(len(types))
	for _, t := range types {
		w.uint32(t)
	}
	w.finish(at)
}

// The formats of parameters.
const (
	textFormat   = 0
	binaryFormat = 1
)

// bind begins a Bind of that many parameters, all of one format. Each parameter is then appended between param and its end, and bound ends it.
func (w *wire) bind(name string, params, format int) int {
	at := w.message('B')
	w.string("") // the portal
	w.string(name)
	w.uint16(1)
	w.uint16(format)
	w.uint16(params)
	return at
}

// param begins a parameter; its length follows when it is known.
func (w *wire) param() int {
	w.uint32(0)
	return len(w.b)
}

func (w *wire) paramEnd(at int) { binary.BigEndian.PutUint32(w.b[at-4:], uint32(len(w.b)-at)) }

// text appends a whole parameter, NULL where it is nil.
func (w *wire) text(v []byte) {
	if v == nil {
		w.uint32(0xffffffff)
		return
	}
	w.uint32(uint32(len(v)))
	w.b = append(w.b, v...)
}

// bound ends the Bind and has its portal executed.
func (w *wire) bound(at int) {
	w.uint16(0) // results as text
	w.finish(at)
	at = w.message('E')
	w.string("")
	w.uint32(0) // all rows
	w.finish(at)
}

// sync ends a run: whatever fails in it, the server goes on after this.
func (w *wire) sync() { w.finish(w.message('S')) }
