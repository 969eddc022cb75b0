package apply

import (
	"encoding/binary"
	"encoding/hex"
	"strconv"
	"time"

	"replicator/replication"
)

// element is a type in whose arrays values can be sent. Values arrive as text; what the destination needn't parse costs it less, and the
// few types here make up most of what is written.
type element struct {
	// oid and array are pg_type's fixed ids of the type and of its array type; name is format_type's name of it.
	oid, array uint32
	name       string
	// put appends the binary form of a value given in the text form of a session with pinned settings; false where it isn't of the
	// plain form that it understands, such as infinity: the column then goes as text.
	put func(b, text []byte) ([]byte, bool)
}

var textElement = &element{oid: 25, array: 1009, name: "text", put: func(b, text []byte) ([]byte, bool) { return append(b, text...), true }}

// binaryElements are the types that are sent in binary form; their OIDs are the same on every server.
var binaryElements = []*element{
	{oid: 16, array: 1000, name: "boolean", put: putBool},
	{oid: 21, array: 1005, name: "smallint", put: func(b, text []byte) ([]byte, bool) {
		n, ok := integer(text, 16)
		return binary.BigEndian.AppendUint16(b, uint16(n)), ok
	}},
	{oid: 23, array: 1007, name: "integer", put: func(b, text []byte) ([]byte, bool) {
		n, ok := integer(text, 32)
		return binary.BigEndian.AppendUint32(b, uint32(n)), ok
	}},
	{oid: 20, array: 1016, name: "bigint", put: func(b, text []byte) ([]byte, bool) {
		n, ok := integer(text, 64)
		return binary.BigEndian.AppendUint64(b, uint64(n)), ok
	}},
	{oid: 2950, array: 2951, name: "uuid", put: putUUID},
	{oid: 1114, array: 1115, name: "timestamp without time zone", put: func(b, text []byte) ([]byte, bool) { return putTimestamp(b, text) }},
	{oid: 1184, array: 1185, name: "timestamp with time zone", put: func(b, text []byte) ([]byte, bool) {
		local := len(text) - len("+00")
		if local < 0 || string(text[local:]) != "+00" {
			return b, false
		}
		return putTimestamp(b, text[:local])
	}},
}

// elementOf chooses the form for a column: binary where both sides mean the same built-in type.
func elementOf(oid uint32, c targetColumn) *element {
	for _, e := range binaryElements {
		if e.oid == oid && e.name == c.cast {
			return e
		}
	}
	return textElement
}

func integer(text []byte, bits int) (int64, bool) {
	n, err := strconv.ParseInt(string(text), 10, bits) // the conversion doesn't allocate: ParseInt keeps nothing
	return n, err == nil
}

func putBool(b, text []byte) ([]byte, bool) {
	if len(text) != 1 || (text[0] != 't' && text[0] != 'f') {
		return b, false
	}
	if text[0] == 't' {
		return append(b, 1), true
	}
	return append(b, 0), true
}

func putUUID(b, text []byte) ([]byte, bool) {
	if len(text) != 36 || text[8] != '-' || text[13] != '-' || text[18] != '-' || text[23] != '-' {
		return b, false
	}
	var digits [32]byte
	n := copy(digits[:], text[:8])
	n += copy(digits[n:], text[9:13])
	n += copy(digits[n:], text[14:18])
	n += copy(digits[n:], text[19:23])
	copy(digits[n:], text[24:])
	var out [16]byte
	if _, err := hex.Decode(out[:], digits[:]); err != nil {
		return b, false
	}
	return append(b, out[:]...), true
}

// postgresEpoch is what timestamps count microseconds from (timestamp_send in the PostgreSQL sources).
var postgresEpoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Unix()

// putTimestamp understands YYYY-MM-DD HH:MM:SS with up to six digits of a fraction.
func putTimestamp(b, text []byte) ([]byte, bool) {
	const form = "0000-00-00 00:00:00"
	if len(text) < len(form) || len(text) == len(form)+1 || len(text) > len(form)+7 {
		return b, false
	}
	for i := range len(form) {
		if digit := text[i] >= '0' && text[i] <= '9'; digit != (form[i] == '0') || (!digit && text[i] != form[i]) {
			return b, false
		}
	}
	two := func(i int) int { return int(text[i]-'0')*10 + int(text[i+1]-'0') }
	micros := 0
	if len(text) > len(form) {
		if text[len(form)] != '.' {
			return b, false
		}
		unit := 100000
		for _, c := range text[len(form)+1:] {
			if c < '0' || c > '9' {
				return b, false
			}
			micros += int(c-'0') * unit
			unit /= 10
		}
	}
	at := time.Date(two(0)*100+two(2), time.Month(two(5)), two(8), two(11), two(14), two(17), 0, time.UTC).Unix()
	return binary.BigEndian.AppendUint64(b, uint64((at-postgresEpoch)*1e6+int64(micros))), true
}

// encode builds the binary form of a one-dimensional array (array_recv in the PostgreSQL sources: dimensions, a flag for nulls, the
// element type, length and lower bound, then each element's length and bytes). It returns false where a value isn't of the element's plain
// form, or no value at all.
func (e *element) encode(rows []row, order []int32, column int, key bool) ([]byte, bool) {
	size := 20
	for _, i := range order {
		size += 4 + max(len(rows[i].value(column, key).Data), 8)
	}
	b := make([]byte, 0, size)
	b = binary.BigEndian.AppendUint32(b, 1)
	b = binary.BigEndian.AppendUint32(b, 1)
	b = binary.BigEndian.AppendUint32(b, e.oid)
	b = binary.BigEndian.AppendUint32(b, uint32(len(order)))
	b = binary.BigEndian.AppendUint32(b, 1)
	for _, i := range order {
		v := rows[i].value(column, key)
		switch v.Kind {
		case replication.Null:
			b = binary.BigEndian.AppendUint32(b, 0xffffffff)
		case replication.Text:
			at := len(b)
			b = append(b, 0, 0, 0, 0)
			var ok bool
			if b, ok = e.put(b, v.Data); !ok {
				return nil, false
			}
			binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4))
		default:
			return nil, false
		}
	}
	return b, true
}

// value is a column of the row's new values, or of its key.
func (r *row) value(column int, key bool) *replication.Value {
	if key {
		return &r.key[column]
	}
	return &r.values[column]
}
