package snapshot

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"replicator/replication"
)

// Types whose binary form names objects by OID, which differ between databases (the reg* family), or which have none.
var notBinary = map[uint32]bool{
	24: true, 2202: true, 2203: true, 2204: true, 2205: true, 2206: true, 3734: true, 3769: true, 4089: true, 4096: true, 4191: true, // reg*
	1008: true, 2207: true, 2208: true, 2209: true, 2210: true, 2211: true, 3735: true, 3770: true, 4090: true, 4097: true, 4192: true, // their arrays
	1033: true, 1034: true, // aclitem
}

// firstUserOID bounds the types that every server of a major version knows under the same OID.
const firstUserOID = 10000

const columnTypesSQL = `SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped AND attgenerated = ''`

// format chooses binary where all of the table's types are built in and alike on both sides, text otherwise.
func format(ctx context.Context, target *pgx.Conn, t replication.Table) (string, error) {
	rows, err := target.Query(ctx, columnTypesSQL, t.Name.Quoted())
	if err != nil {
		return "", fmt.Errorf("read the target's columns of %s: %w", t.Name, err)
	}
	types := map[string]string{}
	var name, typ string
	if _, err := pgx.ForEachRow(rows, []any{&name, &typ}, func() error { types[name] = typ; return nil }); err != nil {
		return "", fmt.Errorf("read the target's columns of %s: %w", t.Name, err)
	}
	for _, c := range t.Stored() {
		if c.TypeOID >= firstUserOID || notBinary[c.TypeOID] || types[c.Name] != c.Type {
			return "text", nil
		}
	}
	return "binary", nil
}
