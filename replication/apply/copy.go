package apply

import (
	"encoding/binary"

	"replicator/replication"
)

// copyFrom is from how many rows on inserts are sent as COPY.
const copyFrom = 10

// copySize is about how much goes into one CopyData message.
const copySize = 64 << 10

// copySignature begins the binary form ("COPY", "Binary Format", in the PostgreSQL documentation), with no flags and no extension.
const copySignature = "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// copyRows appends the data of a COPY in binary form; false where a value has none that we know, and nothing is appended.
func (w *wire) copyRows(p *plan, rows []row, order []int32) bool {
	start := len(w.b)
	at := w.message('d')
	w.b = append(w.b, copySignature...)
	for _, i := range order {
		if len(w.b)-at > copySize {
			w.finish(at)
			at = w.message('d')
		}
		values := rows[i].values
		w.uint16(len(values))
		for n := range values {
			v := &values[n]
			switch v.Kind {
			case replication.Null:
				w.uint32(0xffffffff)
			case replication.Text:
				e := p.elements[n]
				if e.raw {
					w.uint32(uint32(len(v.Data)))
					w.b = append(w.b, v.Data...)
					continue
				}
				from := w.param()
				var ok bool
				if w.b, ok = e.put(w.b, v.Data); !ok {
					w.b = w.b[:start]
					return false
				}
				w.paramEnd(from)
			default:
				w.b = w.b[:start]
				return false
			}
		}
	}
	w.uint16(0xffff)
	w.finish(at)
	w.finish(w.message('c'))
	return true
}

// copyText appends the data of a COPY in text form; false where there is a value of which the batch doesn't hold the text.
func (w *wire) copyText(rows []row, order []int32) bool {
	start := len(w.b)
	at := w.message('d')
	for _, i := range order {
		if len(w.b)-at > copySize {
			w.finish(at)
			at = w.message('d')
		}
		for n := range rows[i].values {
			v := &rows[i].values[n]
			if n > 0 {
				w.b = append(w.b, '\t')
			}
			switch v.Kind {
			case replication.Null:
				w.b = append(w.b, '\\', 'N')
			case replication.Text:
				w.escaped(v.Data)
			default:
				w.b = w.b[:start]
				return false
			}
		}
		w.b = append(w.b, '\n')
	}
	w.finish(at)
	w.finish(w.message('c'))
	return true
}

// escaped appends a value as COPY's text form has it.
func (w *wire) escaped(v []byte) {
	from := 0
	for i, c := range v {
		var as byte
		switch c {
		case '\\':
			as = '\\'
		case '\t':
			as = 't'
		case '\n':
			as = 'n'
		case '\r':
			as = 'r'
		default:
			continue
		}
		w.b = append(append(w.b, v[from:i]...), '\\', as)
		from = i + 1
	}
	w.b = append(w.b, v[from:]...)
}

// array appends the binary form of a one-dimensional array (array_recv in the PostgreSQL sources: dimensions, a flag for nulls, the
// element type, length and lower bound, then each element's length and bytes) as a parameter. It returns false, with nothing appended,
// where a value isn't of the element's plain form, or no value at all.
func (w *wire) array(e *element, rows []row, order []int32, column int, key bool) bool {
	start := len(w.b)
	at := w.param()
	w.uint32(1)
	w.uint32(1)
	w.uint32(e.oid)
	w.uint32(uint32(len(order)))
	w.uint32(1)
	b := w.b
	for _, i := range order {
		v := rows[i].value(column, key)
		switch v.Kind {
		case replication.Null:
			b = binary.BigEndian.AppendUint32(b, 0xffffffff)
		case replication.Text:
			if e.raw {
				b = binary.BigEndian.AppendUint32(b, uint32(len(v.Data)))
				b = append(b, v.Data...)
				continue
			}
			from := len(b)
			b = append(b, 0, 0, 0, 0)
			var ok bool
			if b, ok = e.put(b, v.Data); !ok {
				w.b = b[:start]
				return false
			}
			binary.BigEndian.PutUint32(b[from:], uint32(len(b)-from-4))
		default:
			w.b = b[:start]
			return false
		}
	}
	w.b = b
	w.paramEnd(at)
	return true
}

// value is a column of the row's new values, or of its key.
func (r *row) value(column int, key bool) *replication.Value {
	if key {
		return &r.key[column]
	}
	return &r.values[column]
}
