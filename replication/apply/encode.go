package apply

import (
	"encoding/binary"
	"fmt"

	"replicator/replication"
)

// textOID and textArrayOID are pg_type's fixed ids of text and text[].
const (
	textOID      = 25
	textArrayOID = 1009
)

// textArray builds the binary form of a one-dimensional text[] (array_recv in the PostgreSQL sources: dimensions, a flag for nulls, the
// element type, length and lower bound, then each element's length and bytes).
func textArray(n int, value func(i int) replication.Value) ([]byte, error) {
	size := 20
	for i := range n {
		size += 4 + len(value(i).Data)
	}
	b := make([]byte, 0, size)
	dims := uint32(1)
	if n == 0 {
		dims = 0
	}
	b = binary.BigEndian.AppendUint32(b, dims)
	b = binary.BigEndian.AppendUint32(b, 1)
	b = binary.BigEndian.AppendUint32(b, textOID)
	if n == 0 {
		return b, nil
	}
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	b = binary.BigEndian.AppendUint32(b, 1)
	for i := range n {
		v := value(i)
		switch v.Kind {
		case replication.Null:
			b = binary.BigEndian.AppendUint32(b, 0xffffffff)
		case replication.Text:
			b = binary.BigEndian.AppendUint32(b, uint32(len(v.Data)))
			b = append(b, v.Data...)
		default:
			return nil, fmt.Errorf("a value of kind %q can't be written", byte(v.Kind))
		}
	}
	return b, nil
}

// textParameter gives a value as a text-format parameter; nil is NULL.
func textParameter(v replication.Value) ([]byte, error) {
	switch v.Kind {
	case replication.Null:
		return nil, nil
	case replication.Text:
		if v.Data == nil {
			return []byte{}, nil
		}
		return v.Data, nil
	}
	return nil, fmt.Errorf("a value of kind %q can't be written", byte(v.Kind))
}
