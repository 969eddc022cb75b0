package apply

import (
	"encoding/binary"
	"encoding/hex"
	"math"
	"strconv"
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
	// raw: both forms are the same.
	raw bool
	// integer: the order of values is that of whole numbers.
	integer bool
}

// textElement is what a value of any type can be sent as in an array, from which the server makes the type; in a COPY, only text is text.
var textElement = &element{oid: 25, array: 1009, name: "text", put: putRaw, raw: true}

func putRaw(b, text []byte) ([]byte, bool) { return append(b, text...), true }

// binaryElements are the types that are sent in binary form; their OIDs are the same on every server.
var binaryElements = []*element{
	{oid: 16, array: 1000, name: "boolean", put: putBool},
	{oid: 21, array: 1005, name: "smallint", integer: true, put: func(b, text []byte) ([]byte, bool) {
		n, ok := integer(text, 16)
		return binary.BigEndian.AppendUint16(b, uint16(n)), ok
	}},
	{oid: 23, array: 1007, name: "integer", integer: true, put: func(b, text []byte) ([]byte, bool) {
		n, ok := integer(text, 32)
		return binary.BigEndian.AppendUint32(b, uint32(n)), ok
	}},
	{oid: 20, array: 1016, name: "bigint", integer: true, put: func(b, text []byte) ([]byte, bool) {
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
	{oid: 1082, array: 1182, name: "date", put: putDate},
	{oid: 1700, array: 1231, name: "numeric", put: putNumeric},
	{oid: 701, array: 1022, name: "double precision", put: func(b, text []byte) ([]byte, bool) {
		f, ok := float(text, 64)
		return binary.BigEndian.AppendUint64(b, math.Float64bits(f)), ok
	}},
	{oid: 700, array: 1021, name: "real", put: func(b, text []byte) ([]byte, bool) {
		f, ok := float(text, 32)
		return binary.BigEndian.AppendUint32(b, math.Float32bits(float32(f))), ok
	}},
	textElement,
	{oid: 1043, array: 1015, name: "character varying", put: putRaw, raw: true},
	{oid: 1042, array: 1014, name: "bpchar", put: putRaw, raw: true},
	{oid: 114, array: 199, name: "json", put: putRaw, raw: true},
	{oid: 3802, array: 3807, name: "jsonb", put: func(b, text []byte) ([]byte, bool) { return append(append(b, 1), text...), true }},
	{oid: 17, array: 1001, name: "bytea", put: func(b, text []byte) ([]byte, bool) {
		if len(text) < 2 || text[0] != '\\' || text[1] != 'x' {
			return b, false
		}
		b, err := hex.AppendDecode(b, text[2:])
		return b, err == nil
	}},
}

// elementOf chooses the form for a column: binary where both sides mean the same built-in type. known is false where that isn't so, and
// the element is text's.
func elementOf(oid uint32, c targetColumn) (e *element, known bool) {
	for _, e := range binaryElements {
		if e.oid == oid && e.name == c.cast {
			return e, true
		}
	}
	return textElement, false
}

// integer reads a number as the server writes it.
func integer(text []byte, bits int) (int64, bool) {
	digits := text
	negative := len(text) > 0 && text[0] == '-'
	if negative {
		digits = text[1:]
	}
	if len(digits) == 0 || len(digits) > 18 {
		n, err := strconv.ParseInt(string(text), 10, bits)
		return n, err == nil
	}
	var n int64
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	if negative {
		n = -n
	}
	return n, n<<(64-bits)>>(64-bits) == n
}

// float reads a finite number as the server writes it.
func float(text []byte, bits int) (float64, bool) {
	for _, c := range text {
		if (c < '0' || c > '9') && c != '-' && c != '+' && c != '.' && c != 'e' {
			return 0, false // an infinity, or not a number, of which there are several
		}
	}
	f, err := strconv.ParseFloat(string(text), bits) // the conversion doesn't allocate
	return f, err == nil
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

// postgresDays is the day that dates count from, since 1970.
const postgresDays = 10957

// putDate understands YYYY-MM-DD.
func putDate(b, text []byte) ([]byte, bool) {
	d, ok := days(text)
	return binary.BigEndian.AppendUint32(b, uint32(int32(d-postgresDays))), ok && len(text) == len("0000-00-00")
}

// days counts the days from 1970 to the date YYYY-MM-DD that the text begins with, in the Gregorian calendar of all times ("Date/Time
// Types" in the PostgreSQL documentation); the calculation is the one known as days_from_civil.
func days(text []byte) (int, bool) {
	if len(text) < 10 || text[4] != '-' || text[7] != '-' {
		return 0, false
	}
	for _, i := range [...]int{0, 1, 2, 3, 5, 6, 8, 9} {
		if text[i] < '0' || text[i] > '9' {
			return 0, false
		}
	}
	y, m, d := two(text, 0)*100+two(text, 2), two(text, 5), two(text, 8)
	if m < 1 || m > 12 || d < 1 || d > 31 {
		return 0, false
	}
	if m <= 2 {
		y--
		m += 12
	}
	// Years are counted from 400 years before, so that divisions round down.
	y += 400
	return y*365 + y/4 - y/100 + y/400 + (153*(m-3)+2)/5 + d - 1 - 719468 - 146097, true
}

func two(text []byte, i int) int { return int(text[i]-'0')*10 + int(text[i+1]-'0') }

// putNumeric understands digits with a sign and a point (numeric_recv in the PostgreSQL sources: the number of digits of base 10,000, the
// weight of the first, the sign, the digits after the point that are shown, then the digits).
func putNumeric(b, text []byte) ([]byte, bool) {
	sign := uint16(0)
	if len(text) > 0 && text[0] == '-' {
		sign, text = 0x4000, text[1:]
	}
	point := len(text)
	for i, c := range text {
		if c == '.' && point == len(text) {
			point = i
		} else if c < '0' || c > '9' {
			return b, false
		}
	}
	whole, fraction := text[:point], text[min(point+1, len(text)):]
	if len(whole) == 0 || len(text) > 10000 || (point < len(text) && len(fraction) == 0) {
		return b, false
	}
	at := len(b)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	weight := (len(whole)+3)/4 - 1
	last := at + 8 // behind the last digit that isn't 0
	digit := func(n int) {
		if n == 0 && len(b) == at+8 {
			weight-- // a leading zero
			return
		}
		b = append(b, byte(n>>8), byte(n))
		if n != 0 {
			last = len(b)
		}
	}
	n := 0
	for i, c := range whole {
		n = n*10 + int(c-'0')
		if (len(whole)-1-i)%4 == 0 {
			digit(n)
			n = 0
		}
	}
	for i := 0; i < len(fraction); i += 4 {
		for j := i; j < i+4; j++ {
			n *= 10
			if j < len(fraction) {
				n += int(fraction[j] - '0')
			}
		}
		digit(n)
		n = 0
	}
	b = b[:last]
	if last == at+8 {
		weight, sign = 0, 0
	}
	binary.BigEndian.PutUint16(b[at:], uint16((last-at-8)/2))
	binary.BigEndian.PutUint16(b[at+2:], uint16(int16(weight)))
	binary.BigEndian.PutUint16(b[at+4:], sign)
	binary.BigEndian.PutUint16(b[at+6:], uint16(len(fraction)))
	return b, true
}

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
	d, ok := days(text)
	seconds := int64(d-postgresDays)*86400 + int64(two(text, 11)*3600+two(text, 14)*60+two(text, 17))
	return binary.BigEndian.AppendUint64(b, uint64(seconds*1e6+int64(micros))), ok
}
