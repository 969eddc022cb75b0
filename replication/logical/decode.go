package logical

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"replicator/replication"
)

// message is a cursor over one pgoutput message ("Logical Replication Message Formats" in the PostgreSQL documentation). Every read
// past the end sets bad and returns zero, so that callers check once.
type message struct {
	data []byte
	bad  bool
}

func (m *message) take(n int) []byte {
	if n < 0 || n > len(m.data) {
		m.bad, m.data = true, nil
		return nil
	}
	out := m.data[:n]
	m.data = m.data[n:]
	return out
}

func (m *message) uint8() byte {
	if b := m.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (m *message) uint16() uint16 {
	if b := m.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (m *message) uint32() uint32 {
	if b := m.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (m *message) uint64() uint64 {
	if b := m.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (m *message) string() string {
	for i, c := range m.data {
		if c == 0 {
			s := string(m.data[:i])
			m.data = m.data[i+1:]
			return s
		}
	}
	m.bad, m.data = true, nil
	return ""
}

var postgresEpoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func (m *message) time() time.Time {
	return postgresEpoch.Add(time.Duration(int64(m.uint64())) * time.Microsecond)
}

var errTruncated = errors.New("message ends early")

func (m *message) err(kind byte) error {
	if m.bad {
		return fmt.Errorf("decode pgoutput message %q: %w", kind, errTruncated)
	}
	return nil
}

// begin is the Begin message: Commit is the LSN of the commit record, XID the top-level transaction.
type begin struct {
	Commit uint64
	At     time.Time
	XID    uint32
}

func decodeBegin(m *message) (begin, error) {
	b := begin{Commit: m.uint64(), At: m.time(), XID: m.uint32()}
	return b, m.err('B')
}

// commit is the Commit message; End is the position after the commit record.
type commit struct {
	Commit, End uint64
	At          time.Time
}

func decodeCommit(m *message) (commit, error) {
	m.uint8() // flags, unused
	c := commit{Commit: m.uint64(), End: m.uint64(), At: m.time()}
	return c, m.err('C')
}

func decodeRelation(m *message) (*replication.Relation, error) {
	r := &replication.Relation{OID: m.uint32()}
	r.Name.Schema = m.string()
	if r.Name.Schema == "" && !m.bad {
		r.Name.Schema = "pg_catalog"
	}
	r.Name.Name = m.string()
	r.ReplicaIdentity = replication.ReplicaIdentity(m.uint8())
	n := int(m.uint16())
	if m.bad || n > len(m.data) {
		return nil, fmt.Errorf("decode pgoutput message %q: %w", 'R', errTruncated)
	}
	r.Columns = make([]replication.RelationColumn, n)
	for i := range r.Columns {
		flags := m.uint8()
		r.Columns[i] = replication.RelationColumn{Key: flags&1 != 0, Name: m.string(), TypeOID: m.uint32(), TypeMod: int32(m.uint32())}
	}
	return r, m.err('R')
}

// typeName is the Type message: the name of a type that isn't built in.
type typeName struct {
	OID          uint32
	Schema, Name string
}

func decodeType(m *message) (typeName, error) {
	t := typeName{OID: m.uint32(), Schema: m.string(), Name: m.string()}
	if t.Schema == "" {
		t.Schema = "pg_catalog"
	}
	return t, m.err('Y')
}

// decodeTuple reads a TupleData into values of batch b. With key set, columns outside the identity are Absent.
func decodeTuple(m *message, r *replication.Relation, b *replication.Batch, key bool) ([]replication.Value, error) {
	n := int(m.uint16())
	if m.bad {
		return nil, errTruncated
	}
	if n != len(r.Columns) {
		return nil, fmt.Errorf("tuple of %d columns for %s, which has %d", n, r.Name, len(r.Columns))
	}
	out := b.Values(n)
	data := m.data
	for i := range out {
		if len(data) == 0 {
			return nil, errTruncated
		}
		kind := replication.ValueKind(data[0])
		switch kind {
		case replication.Null, replication.Unchanged:
			out[i].Kind = kind
			data = data[1:]
		case replication.Text, replication.Binary:
			if len(data) < 5 {
				return nil, errTruncated
			}
			end := 5 + int64(int32(binary.BigEndian.Uint32(data[1:])))
			if end < 5 || end > int64(len(data)) {
				return nil, errTruncated
			}
			if !key || r.Columns[i].Key {
				out[i] = replication.Value{Kind: kind, Data: data[5:end:end]}
			}
			data = data[end:]
			continue
		default:
			return nil, fmt.Errorf("value of unknown kind %q in %s", byte(kind), r.Name)
		}
		if key && !r.Columns[i].Key {
			out[i] = replication.Value{}
		}
	}
	m.data = data
	return out, nil
}

// decodeRow reads an Insert, Update or Delete, without its leading type byte. The values alias m's memory.
func decodeRow(kind byte, m *message, relations map[uint32]*replication.Relation, b *replication.Batch) (replication.Change, error) {
	var c replication.Change
	oid := m.uint32()
	r := relations[oid]
	if m.bad {
		return c, m.err(kind)
	}
	if r == nil {
		return c, fmt.Errorf("decode pgoutput message %q: relation %d was not described before", kind, oid)
	}
	c.Op, c.Relation = replication.Op(kind), r
	for len(m.data) > 0 {
		part := m.uint8()
		values, err := decodeTuple(m, r, b, part == 'K')
		if err != nil {
			return c, fmt.Errorf("decode pgoutput message %q: %w", kind, err)
		}
		switch {
		case part == 'N' && kind != 'D' && c.New == nil:
			c.New = values
		case (part == 'K' || part == 'O') && kind != 'I' && c.Old == nil && c.New == nil:
			c.Old = values
		default:
			return c, fmt.Errorf("decode pgoutput message %q: unexpected part %q", kind, part)
		}
	}
	if (c.New == nil) != (kind == 'D') || (kind == 'D' && c.Old == nil) {
		return c, fmt.Errorf("decode pgoutput message %q: a row of %s is missing", kind, r.Name)
	}
	return c, nil
}

func decodeTruncate(m *message, relations map[uint32]*replication.Relation) (replication.Change, error) {
	c := replication.Change{Op: replication.Truncate}
	n := int(m.uint32())
	options := m.uint8()
	c.Cascade, c.RestartIdentity = options&1 != 0, options&2 != 0
	if m.bad || n*4 != len(m.data) || n == 0 {
		return c, fmt.Errorf("decode pgoutput message %q: %w", 'T', errTruncated)
	}
	for range n {
		oid := m.uint32()
		r := relations[oid]
		if r == nil {
			return c, fmt.Errorf("decode pgoutput message %q: relation %d was not described before", 'T', oid)
		}
		c.Truncated = append(c.Truncated, r)
	}
	c.Relation = c.Truncated[0]
	return c, m.err('T')
}
