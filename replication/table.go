package replication

import (
	"cmp"
	"fmt"
	"strings"
)

// TableName is a table's schema and name, unquoted.
type TableName struct {
	Schema string `json:"schema"`
	Name   string `json:"name"`
}

// String returns schema.name as people write it, without quotes.
func (n TableName) String() string { return n.Schema + "." + n.Name }

// ParseTableName reads schema.name as String writes it; a name without a dot is in schema public. A schema's name that holds a dot itself
// can't be written so.
func ParseTableName(s string) (TableName, error) {
	schema, name, ok := strings.Cut(s, ".")
	if !ok {
		schema, name = "public", s
	}
	if schema == "" || name == "" {
		return TableName{}, fmt.Errorf("%q is not the name of a table", s)
	}
	return TableName{Schema: schema, Name: name}, nil
}

// Quoted returns the name as SQL, both parts quoted.
func (n TableName) Quoted() string { return QuoteIdent(n.Schema) + "." + QuoteIdent(n.Name) }

// Compare orders names by schema, then name.
func (n TableName) Compare(m TableName) int {
	return cmp.Or(cmp.Compare(n.Schema, m.Schema), cmp.Compare(n.Name, m.Name))
}

// QuoteIdent returns the identifier quoted for SQL.
func QuoteIdent(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

// QuoteLiteral returns the string as an SQL literal that reads the same whatever standard_conforming_strings says.
func QuoteLiteral(s string) string {
	if strings.Contains(s, `\`) {
		return ` E'` + strings.ReplaceAll(strings.ReplaceAll(s, `\`, `\\`), `'`, `''`) + `'`
	}
	return `'` + strings.ReplaceAll(s, `'`, `''`) + `'`
}

// Column is one live column of a table, in attnum order.
type Column struct {
	Name    string `json:"name"`
	TypeOID uint32 `json:"type_oid"`
	TypeMod int32  `json:"type_mod"`
	// Type is format_type's spelling, schema-qualified where it isn't in pg_catalog.
	Type    string `json:"type"`
	NotNull bool   `json:"not_null"`
	// Generated columns (STORED or VIRTUAL) are neither copied nor streamed: the target computes them.
	Generated bool `json:"generated"`
	// Identity is 'a' (ALWAYS), 'd' (BY DEFAULT) or 0.
	Identity byte `json:"identity"`
}

// ReplicaIdentity is pg_class.relreplident: what UPDATE and DELETE carry of the old row.
type ReplicaIdentity byte

// The replica identities (PostgreSQL documentation, ALTER TABLE … REPLICA IDENTITY).
const (
	IdentityDefault ReplicaIdentity = 'd'
	IdentityNothing ReplicaIdentity = 'n'
	IdentityFull    ReplicaIdentity = 'f'
	IdentityIndex   ReplicaIdentity = 'i'
)

// Table is an ordinary table or partition leaf whose rows are replicated. Partitioned roots hold no rows and are not Tables.
type Table struct {
	Name    TableName `json:"name"`
	OID     uint32    `json:"oid"`
	Columns []Column  `json:"columns"`
	// Key holds indexes into Columns of the columns of the key that identifies a row: the primary key, else the replica identity
	// index, else the first unique, non-deferrable, non-partial index over NOT NULL columns. Empty: the table has no key.
	Key []int `json:"key"`
	// ReplicaIdentity is the setting found; HasPrimaryKey tells whether IdentityDefault carries a key.
	ReplicaIdentity ReplicaIdentity `json:"replica_identity"`
	HasPrimaryKey   bool            `json:"has_primary_key"`
	Unlogged        bool            `json:"unlogged"`
	// Pages is pg_class.relpages as measured now (size / block size), Rows the planner's estimate (-1: unknown).
	Pages int64 `json:"pages"`
	Bytes int64 `json:"bytes"` // including TOAST, without indexes
	Rows  int64 `json:"rows"`
	// IndexBytes is the size of its indexes.
	IndexBytes int64 `json:"index_bytes"`
}

// Stored returns the columns that are copied and streamed: all but the generated ones.
func (t Table) Stored() []Column {
	out := make([]Column, 0, len(t.Columns))
	for _, c := range t.Columns {
		if !c.Generated {
			out = append(out, c)
		}
	}
	return out
}
