package schema

import (
	"os"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestTokens(t *testing.T) {
	for _, c := range []struct{ sql, want string }{
		{`SELECT 'a;''b' , E'c\'d' || "e""f;" FROM g.h`, `SELECT|'a;''b'|,|E'c\'d'|||||"e""f;"|FROM|g|.|h`},
		{"AS $$ it's $x$ $$ ; x", "AS|$$ it's $x$ $$|;|x"},
		{"$a$ $b$ $A$ $a$b$", "$a$ $b$ $A$ $a$|b$"},
		{"a$b$c d", "a$b$c|d"},
		{"$1 + $2", "$|1|+|$|2"},
		{"/* a /* b */ ; -- */ x -- y\nz", "x|z"},
		{"'a'\n  -- c\n 'b' E'\\''\n'\\'' z", "'a'\n  -- c\n 'b'|E'\\''\n'\\''|z"},
		{"'a' 'b'", "'a'|'b'"},
		{`U&"d\0061t" U&'\' x'\' B'0' N'n'`, `U&"d\0061t"|U&'\'|x'\'|B'0'|N'n'`},
		{"\\restrict abc 'def\nSELECT 1", "SELECT|1"},
		{`"größe" größe`, `"größe"|größe`},
	} {
		if got := strings.Join(tokens(c.sql), "|"); got != c.want {
			t.Errorf("%s\n got %s\nwant %s", c.sql, got, c.want)
		}
	}
}

func TestUnterminated(t *testing.T) {
	for _, sql := range []string{"'a", `"a`, "$$a$", "$a$ $b$", "/* /* */", `E'\'`, "'a'\n'b"} {
		l := lexer{src: sql}
		var err error
		for ok := true; ok && err == nil; {
			_, ok, err = l.next()
		}
		if err == nil {
			t.Errorf("%q: no error", sql)
		}
	}
}

func head(typ, schema, name string) string {
	return "--\n-- Name: " + name + "; Type: " + typ + "; Schema: " + schema + "; Owner: -\n--\n\n"
}

func TestSplit(t *testing.T) {
	fake := head("TABLE", "public", "fake")
	dump := "--\n-- PostgreSQL database dump\n--\n\n\\restrict x\n\nSET client_encoding = 'UTF8';\nSELECT pg_catalog.set_config('search_path', '', false);\n\n" +
		head("FUNCTION", "app", "f(text)") + "CREATE FUNCTION app.f(text) RETURNS text LANGUAGE sql AS $_$" + fake + "\\connect x\nSET default_table_access_method = no;$_$;\n\n\n" +
		head("COMMENT", "app", "FUNCTION f(text)") + "COMMENT ON FUNCTION app.f(text) IS 'a\n" + fake + "';\n\n\n" +
		"SET default_tablespace = '';\n\nSET default_table_access_method = columnar;\n\n" +
		head("TABLE", `x; Schema: y`, `odd; Type: VIEW; Schema: z; Owner: me`) + `CREATE TABLE "x; Schema: y"."odd` + "\n" + fake + `" (i integer);` + "\nALTER TABLE a ALTER b SET STORAGE main;\n\n\n" +
		"SET default_table_access_method = heap;\n\n" + head("TABLE", "app", "t") + "CREATE TABLE app.t (i integer);\n\n\n" +
		head("INDEX", "app", "i") + "CREATE INDEX i ON app.t USING btree (i);\n\n\n" + head("VIEW", "app", "late") + "CREATE VIEW app.late AS SELECT 1;\n\n\n" +
		head("SCHEMA", "-", "public") + "-- *not* creating schema, since initdb creates it\n\n\n--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict x\n\n"
	entries, err := splitDump(dump)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Section+" "+e.Type+" "+e.Schema+" "+e.Name)
	}
	want := []string{"pre-data FUNCTION app f(text)", "pre-data COMMENT app FUNCTION f(text)", "pre-data TABLE x; Schema: y odd; Type: VIEW; Schema: z; Owner: me",
		"pre-data TABLE app t", "post-data INDEX app i", "post-data VIEW app late"}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Fatalf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if !strings.HasPrefix(entries[2].SQL, "SET LOCAL default_table_access_method = columnar;\nCREATE TABLE") || !strings.HasSuffix(entries[2].SQL, "SET STORAGE main;") {
		t.Errorf("table: %s", entries[2].SQL)
	}
	if entries[3].SQL != "CREATE TABLE app.t (i integer);" || !strings.Contains(entries[0].SQL, "SET default_table_access_method = no;$_$;") {
		t.Errorf("got %q and %q", entries[3].SQL, entries[0].SQL)
	}
	if _, err := splitDump(dump[:strings.Index(dump, "$_$;")]); err == nil {
		t.Error("a dump that breaks off inside a function: no error")
	}
}

// Whatever a literal, a name or a comment holds, the statements around it are cut in the same places.
func TestLiteralsHideTheirContents(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		inner := rapid.SliceOf(rapid.SampledFrom([]string{"'", `"`, "$$", "$a$", "\n--\n-- Name: x; Type: TABLE; Schema: y; Owner: -\n--\n", ";", "/*", "*/", "--", "\\", "\n\\connect\n", "e", " ", "\n", "E'", "ü"})).Draw(t, "inner")
		text := strings.Join(inner, "")
		var quoted string
		switch rapid.IntRange(0, 3).Draw(t, "form") {
		case 0:
			quoted = "'" + strings.ReplaceAll(text, "'", "''") + "'"
		case 1:
			quoted = "E'" + strings.ReplaceAll(strings.ReplaceAll(text, `\`, `\\`), "'", `\'`) + "'"
		case 2:
			quoted = `"` + strings.ReplaceAll(text, `"`, `""`) + `"`
		case 3:
			tag := "$_"
			for strings.Contains(text, tag) {
				tag += "X"
			}
			quoted = tag + "$" + text + tag + "$"
		}
		dump := head("A", "s", "one") + "SELECT " + quoted + ";\n\n" + head("B", "s", "two") + "SELECT 2;\n"
		entries, err := splitDump(dump)
		if err != nil || len(entries) != 2 || entries[0].SQL != "SELECT "+quoted+";" || entries[1].SQL != "SELECT 2;" {
			t.Fatalf("%q: %v %q", quoted, err, entries)
		}
	})
}

// FuzzSplit: no input makes the lexer loop, panic or lose its place.
func FuzzSplit(f *testing.F) {
	everything, err := os.ReadFile("schematest/everything.sql")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(everything))
	f.Add(head("TABLE", "a", "b") + "CREATE TABLE a.b ();" + head("INDEX", "a", "c") + "x $$ ' $$ E'\\'' /* /* */ */ \"")
	f.Fuzz(func(t *testing.T, s string) {
		l := lexer{src: s}
		end := 0
		for {
			tok, ok, err := l.next()
			if err != nil || !ok {
				break
			}
			if tok.start < end || tok.end <= tok.start || tok.end > len(s) {
				t.Fatalf("token %v after %d of %d", tok, end, len(s))
			}
			end = tok.end
		}
		entries, err := splitDump(s)
		if err != nil {
			return
		}
		NewPlan(finishEntries(entries, nil))
	})
}
