package apply

import (
	"bytes"
	"context"
	"testing"

	"replicator/internal/pgtest"
)

// What elements encode is what the server itself sends for the same text; what it can't say that of goes as text.
func TestElementsAreWhatTheServerSends(t *testing.T) {
	conn := pgtest.Connect(t, pgtest.Shared(t).URL("postgres"))
	values := map[string][]string{
		"boolean":  {"t", "f"},
		"smallint": {"0", "-32768", "32767"},
		"integer":  {"0", "-2147483648", "2147483647", "7"},
		"bigint":   {"0", "-9223372036854775808", "9223372036854775807", "-1"},
		"uuid":     {"00000000-0000-0000-0000-000000000000", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "ffffffff-ffff-ffff-ffff-ffffffffffff"},
		"timestamp without time zone": {"2000-01-01 00:00:00", "1999-12-31 23:59:59.999999", "0001-01-01 00:00:00", "9999-12-31 23:59:59.5", "2024-02-29 12:34:56.000001", "1582-10-10 00:00:00",
			"infinity", "-infinity", "10000-01-01 00:00:00", "294276-12-31 23:59:59.999999", "0044-03-15 00:00:00 BC"},
		"timestamp with time zone": {"2000-01-01 00:00:00+00", "1969-07-20 20:17:40.25+00", "0001-01-01 00:00:00.000001+00", "infinity", "20000-01-01 00:00:00+00", "0044-03-15 00:00:00+00 BC",
			"2024-06-01 00:00:00+02", "1900-01-01 00:00:00+00:19:32"},
	}
	plain := 0
	for _, e := range binaryElements {
		if len(values[e.name]) == 0 {
			t.Errorf("no values of type %s", e.name)
		}
		var oid, array uint32
		if err := conn.QueryRow(context.Background(), `SELECT oid, typarray FROM pg_type WHERE oid = $1::text::regtype`, e.name).Scan(&oid, &array); err != nil {
			t.Fatal(err)
		}
		if e.oid != oid || e.array != array {
			t.Errorf("%s has the OID %d and its array %d, not %d and %d", e.name, oid, array, e.oid, e.array)
		}
		for _, v := range values[e.name] {
			got, ok := e.put(nil, []byte(v))
			if !ok {
				continue
			}
			plain++
			r := conn.PgConn().ExecParams(context.Background(), "SELECT '"+v+"'::"+e.name, nil, nil, nil, []int16{1}).Read()
			if r.Err != nil {
				t.Fatal(r.Err)
			}
			if want := r.Rows[0][0]; !bytes.Equal(got, want) {
				t.Errorf("%s %q is encoded as %x, the server sends %x", e.name, v, got, want)
			}
		}
	}
	if plain < 24 {
		t.Errorf("only %d values were of a plain form", plain)
	}
}

func TestElementsRefuseWhatTheyDoNotUnderstand(t *testing.T) {
	for _, e := range binaryElements {
		for _, v := range []string{"", " ", "x", "infinity", "12345678901234567890", "1.0", "0001-01-01", "2024-01-01 00:00:00.", "2024-01-01 00:00:00.1234567", "2024-01-01T00:00:00",
			"2024-01-01 00:00:00-01", "2024-01-01 00:00:00 BC", "true", "a0eebc999c0b4ef8bb6d6bb9bd380a11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1g"} {
			if got, ok := e.put(nil, []byte(v)); ok {
				t.Errorf("%s: %q is taken for %x", e.name, v, got)
			}
		}
	}
}
