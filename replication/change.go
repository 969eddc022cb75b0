package replication

import "fmt"

// Op is the kind of a change.
type Op byte

// The operations, named by pgoutput's message bytes.
const (
	Insert   Op = 'I'
	Update   Op = 'U'
	Delete   Op = 'D'
	Truncate Op = 'T'
	// Upsert is what trigger capture gives for a key whose current row is known and whose earlier existence on the target is not.
	Upsert Op = 'P'
)

// String returns the operation as it stands in metrics: insert, update, delete, truncate, upsert.
func (o Op) String() string {
	switch o {
	case Insert:
		return "insert"
	case Update:
		return "update"
	case Delete:
		return "delete"
	case Truncate:
		return "truncate"
	case Upsert:
		return "upsert"
	}
	return fmt.Sprintf("op(%c)", byte(o))
}

// ValueKind says how a column's value is given ("Logical Replication Message Formats", TupleData).
type ValueKind byte

// The kinds of values.
const (
	Null      ValueKind = 'n'
	Unchanged ValueKind = 'u' // a TOASTed value that the statement left alone; not sent
	Text      ValueKind = 't'
	Binary    ValueKind = 'b'
	Absent    ValueKind = 0 // not part of the tuple (a non-key column of a key tuple)
)

// Value is one column's value in its wire form. Data aliases memory owned by the Batch and is valid until the batch is released.
type Value struct {
	Kind ValueKind
	Data []byte
}

// RelationColumn is a column as the stream describes it.
type RelationColumn struct {
	Name    string
	TypeOID uint32
	TypeMod int32
	Key     bool // part of the replica identity
}

// Relation is a table as the stream described it when the change was made. A new description of the same table is a new *Relation.
type Relation struct {
	OID             uint32
	Name            TableName
	ReplicaIdentity ReplicaIdentity
	Columns         []RelationColumn
}

// Change is one row's change, or a truncation.
type Change struct {
	Op       Op
	Relation *Relation
	// Old is the identity of the row before the change: nil for Insert; for Update nil where the key didn't change and the identity
	// isn't FULL. One Value a column of Relation; columns outside the identity are Absent.
	Old []Value
	// New is the row after the change; nil for Delete and Truncate.
	New []Value
	// Truncated lists the relations of one TRUNCATE; Cascade and RestartIdentity are its options.
	Truncated       []*Relation
	Cascade         bool
	RestartIdentity bool
}

// Position is a place in a source's stream, in the source's own notation (an LSN such as 0/16B3748 for logical capture, a snapshot
// document for trigger capture). It is stored on the destination in the transaction that applies what lies before it. Positions
// are compared only by the Source that made them.
type Position string
