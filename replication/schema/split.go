package schema

import (
	"fmt"
	"strings"
)

// Sections of a dump, as pg_dump's --section names them.
const (
	PreData  = "pre-data"
	PostData = "post-data"
)

// Entry is one object of a dump: an entry of pg_dump's table of contents with the SQL that makes it.
type Entry struct {
	Section string `json:"section"` // PreData or PostData
	Type    string `json:"type"`    // pg_dump's word: TABLE, CONSTRAINT, FK CONSTRAINT, INDEX, …
	Schema  string `json:"schema"`
	Name    string `json:"name"` // for people: pg_dump writes newlines in names as spaces
	SQL     string `json:"sql"`  // one or more statements, to be run in one transaction with an empty search_path
	Seq     int    `json:"seq"`  // place in the dump
}

// String names the entry for logs and errors.
func (e Entry) String() string {
	name := e.Name
	if e.Schema != "" && e.Schema != "-" {
		name = e.Schema + "." + name
	}
	return strings.ToLower(e.Type) + " " + name
}

// postDataTypes appear only after the data; the first of them ends the pre-data section. What follows it is post-data whatever its
// type: pg_dump puts functions and views there too if they rest on a primary key.
var postDataTypes = map[string]bool{
	"CONSTRAINT": true, "FK CONSTRAINT": true, "CHECK CONSTRAINT": true, "INDEX": true, "INDEX ATTACH": true, "STATISTICS": true,
	"RULE": true, "TRIGGER": true, "EVENT TRIGGER": true, "POLICY": true, "ROW SECURITY": true,
}

// splitDump cuts pg_dump's plain output into its entries. Nothing inside a literal, a quoted name or a comment of the application's
// is taken for a heading. What pg_dump writes for psql (\restrict, SET, set_config) is left out; a table access method other than
// heap is put before the tables and materialized views that it holds for.
func splitDump(dump string) ([]Entry, error) {
	var out []Entry
	var cur *Entry
	accessMethod, section := "", PreData
	begin := 0 // where the current entry's SQL begins
	var cuts [][2]int
	flush := func(end int) {
		if cur == nil {
			return
		}
		if cur.SQL = cut(dump[begin:end], begin, cuts); cur.SQL != "" {
			if accessMethod != "" && (cur.Type == "TABLE" || cur.Type == "MATERIALIZED VIEW") {
				cur.SQL = "SET LOCAL default_table_access_method = " + accessMethod + ";\n" + cur.SQL
			}
			cur.Seq = len(out)
			out = append(out, *cur)
		}
		cur, cuts = nil, nil
	}
	l := lexer{src: dump}
	atStart := true // between statements
	nextMethod := ""
	for {
		t, ok, err := l.next()
		if err != nil {
			return nil, fmt.Errorf("read pg_dump's output: %w", err)
		}
		if !ok {
			break
		}
		text := dump[t.start:t.end]
		switch {
		case t.kind == tokenComment && atStart:
			if e, ok := heading(text); ok && framed(dump, t) {
				flush(t.start - len("--\n"))
				accessMethod = nextMethod
				if postDataTypes[e.Type] {
					section = PostData
				}
				e.Section, cur, begin = section, &e, t.end
				continue
			}
			cuts = append(cuts, [2]int{t.start, t.end})
		case t.kind == tokenMeta:
			cuts = append(cuts, [2]int{t.start, t.end})
		case t.kind == tokenWord && atStart && text == "SET":
			end, name, value := setting(dump, t.start)
			if name == "default_table_access_method" {
				if nextMethod = value; value == "heap" {
					nextMethod = ""
				}
			}
			cuts = append(cuts, [2]int{t.start, end})
			l.pos = end
		default:
			atStart = text == ";" && t.kind == tokenSymbol
		}
	}
	flush(len(dump))
	return out, nil
}

// heading reads "-- Name: x; Type: TABLE; Schema: public; Owner: -". The names in it are the application's, so it is read from its
// end, and only a type in capitals counts.
func heading(comment string) (Entry, bool) {
	rest, ok := strings.CutPrefix(comment, "-- Name: ")
	if !ok {
		return Entry{}, false
	}
	i := strings.LastIndex(rest, "; Owner: ")
	if i < 0 {
		return Entry{}, false
	}
	rest = rest[:i]
	// A schema's name may itself contain "; Schema: ": go left until what stands before is a type.
	for end := len(rest); ; {
		s := strings.LastIndex(rest[:end], "; Schema: ")
		if s < 0 {
			return Entry{}, false
		}
		t := strings.LastIndex(rest[:s], "; Type: ")
		if t >= 0 {
			if typ := rest[t+len("; Type: ") : s]; typ != "" && strings.Trim(typ, "ABCDEFGHIJKLMNOPQRSTUVWXYZ ") == "" {
				return Entry{Name: rest[:t], Type: typ, Schema: rest[s+len("; Schema: "):]}, true
			}
		}
		end = s
	}
}

// framed tells whether the comment stands between two lines "--", as pg_dump writes its headings.
func framed(dump string, t token) bool {
	return strings.HasSuffix(dump[:t.start], "--\n") && strings.HasPrefix(dump[t.end:], "\n--\n")
}

// setting reads the SET statement at start: its end, and its name and value where the form is plain.
func setting(dump string, start int) (end int, name, value string) {
	l := lexer{src: dump, pos: start}
	var words []string
	for {
		t, ok, err := l.next()
		if !ok || err != nil {
			return len(dump), "", ""
		}
		if text := dump[t.start:t.end]; text != ";" {
			words = append(words, text)
			continue
		}
		if len(words) == 4 && words[2] == "=" {
			return t.end, words[1], words[3]
		}
		return t.end, "", ""
	}
}

// cut returns the text, which begins at offset base of the dump, without the given pieces of the dump.
func cut(text string, base int, pieces [][2]int) string {
	var b strings.Builder
	at := 0
	for _, p := range pieces {
		from, to := p[0]-base, min(p[1]-base, len(text))
		if from < at || from >= len(text) {
			continue
		}
		b.WriteString(text[at:from])
		at = to
	}
	b.WriteString(text[at:])
	return strings.TrimSpace(b.String())
}
