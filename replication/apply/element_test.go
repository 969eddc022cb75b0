package apply

import (
	"bytes"
	"context"
	"testing"
	"time"

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
	values["date"] = []string{"2000-01-01", "1999-12-31", "1970-01-01", "0001-01-01", "0001-02-28", "0001-03-01", "9999-12-31", "2024-02-29", "2100-02-28", "infinity", "10000-01-01", "0044-03-15 BC"}
	values["numeric"] = []string{"0", "0.00", "1", "-1", "10000", "9999", "12345678.9", "0.0001", "0.00001", "-0.000000000000000000001", "1000000000000000000000000000000", "100000000.0001", "1.10", "15.15",
		"1616161616.16", "-99.999", "10000.0000", "00012.5", "123400000000", "NaN", "Infinity"}
	values["double precision"] = []string{"0", "-0", "0.1", "1e-310", "1e+300", "1.7976931348623157e+308", "5e-324", "123456.789", "NaN", "-Infinity"}
	values["real"] = []string{"0", "-0", "0.1", "3.4e+38", "1e-45", "16777216", "NaN"}
	values["text"] = []string{"", "a"}
	values["character varying"] = []string{"", "é"}
	values["bpchar"] = []string{"", "ab    "}
	values["json"] = []string{"{\"a\":  1}", "null"}
	values["jsonb"] = []string{"{\"a\": 1.10}", "[]"}
	values["bytea"] = []string{"\\x", "\\x00ff5c27"}
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
	if plain < 70 {
		t.Errorf("only %d values were of a plain form", plain)
	}
}

func TestElementsRefuseWhatTheyDoNotUnderstand(t *testing.T) {
	for _, e := range binaryElements {
		if e.raw || e.name == "jsonb" {
			continue
		}
		for _, v := range []string{"", " ", "x", "infinity", "Infinity", "NaN", ".", "-", "1.", ".5", "1e", "1.0.0", "--1", "+1", "0x1p-2", "1_0", "0001-01-0", "0001-13-01", "2024-01-01 00:00:00.", "2024-01-01 00:00:00.1234567",
			"2024-01-01T00:00:00", "2024-01-01 00:00:00-01", "2024-01-01 00:00:00 BC", "2024-01-01 BC", "true", "a0eebc999c0b4ef8bb6d6bb9bd380a11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1g", "\\x0", "\\x0g"} {
			number := e.name == "real" || e.name == "double precision"
			if got, ok := e.put(nil, []byte(v)); ok && (!number || (v != "1." && v != ".5" && v != "+1")) {
				t.Errorf("%s: %q is taken for %x", e.name, v, got)
			}
		}
	}
}

// Dates are counted as the standard library counts them.
func TestDays(t *testing.T) {
	for at := time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC); at.Year() < 10000; at = at.AddDate(0, 0, 17) {
		if got, ok := days([]byte(at.Format(time.DateOnly))); !ok || int64(got) != at.Unix()/86400-b2i(at.Unix()%86400 < 0) {
			t.Fatalf("%s is day %d (%v), want %d", at.Format(time.DateOnly), got, ok, at.Unix()/86400)
		}
	}
}

func b2i(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
