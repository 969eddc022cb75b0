package schema

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// shapeLength bounds a statement's shape, in characters.
const shapeLength = 120

// statementWords begin statements. Only such a word is shown of a text that can't be read.
var statementWords = []string{"ALTER", "ANALYZE", "BEGIN", "CALL", "CLOSE", "CLUSTER", "COMMENT", "COMMIT", "COPY", "CREATE", "DEALLOCATE", "DECLARE", "DELETE", "DO", "DROP",
	"END", "EXECUTE", "EXPLAIN", "FETCH", "GRANT", "INSERT", "LISTEN", "LOCK", "MERGE", "MOVE", "NOTIFY", "PREPARE", "REFRESH", "REINDEX", "RELEASE", "RESET", "REVOKE", "ROLLBACK",
	"SAVEPOINT", "SELECT", "SET", "SHOW", "START", "TABLE", "TRUNCATE", "UPDATE", "VACUUM", "VALUES", "WITH"}

// Shape returns a statement of the application's as it may be shown to people: in one line of bounded length, with ? for every literal, without
// comments, and nothing in it that a terminal would obey. Names stay, unless they look like something else. Where it can't be told what is a
// literal, since the text was cut, is no SQL, or means another thing with standard_conforming_strings off, only its first key word is left.
func Shape(sql string) string {
	sql = strings.ToValidUTF8(sql, "?")
	l := lexer{src: sql}
	var b strings.Builder
	end, length := 0, 0
	var before token
	for {
		t, ok, err := l.next()
		if err != nil {
			return firstWord(sql)
		}
		if !ok {
			return b.String()
		}
		text := sql[t.start:t.end]
		parameter := t.kind == tokenWord && before.kind == tokenSymbol && before.end == t.start && sql[before.start:before.end] == "$" && isParameter(text)
		switch t.kind {
		case tokenComment:
			continue
		case tokenMeta:
			return firstWord(sql)
		case tokenString:
			// A backslash before a quote ends the literal or doesn't, as the session has it. E'…' is certain.
			if text[0] != 'e' && text[0] != 'E' && text[0] != '$' && strings.Contains(text, `\'`) {
				return firstWord(sql)
			}
			text = "?"
		case tokenWord:
			if !parameter && (text[0] >= '0' && text[0] <= '9' || !isPlainName(text)) {
				text = "?"
			}
		case tokenQuoted:
			if name := strings.Trim(text, `"`); !isPlainName(name) {
				text = `"…"`
			}
		case tokenSymbol:
			if text[0] < ' ' || text[0] > '~' {
				text = "?"
			}
		}
		if b.Len() > 0 && t.start > end && text != "," && text != ")" {
			b.WriteByte(' ')
			length++
		}
		before, end = t, t.end
		n := utf8.RuneCountInString(text)
		if length+n >= shapeLength {
			b.WriteString("…")
			return b.String()
		}
		b.WriteString(text)
		length += n
	}
}

// isPlainName tells whether a word looks like a name rather than like a value.
func isPlainName(s string) bool {
	if s == "" || len(s) > 63 || !isWordStart(s[0]) {
		return false
	}
	for _, r := range s {
		if r != '_' && r != '$' && !unicode.IsLetter(r) && !unicode.IsDigit(r) {
			return false
		}
	}
	return true
}

// isParameter tells whether what follows a $ numbers a parameter.
func isParameter(s string) bool {
	return len(s) <= 5 && strings.Trim(s, "0123456789") == ""
}

// firstWord is the key word that a text begins with, if it is one.
func firstWord(sql string) string {
	l := lexer{src: sql}
	for {
		t, ok, err := l.next()
		if err != nil || !ok {
			return "…"
		}
		if t.kind == tokenComment {
			continue
		}
		if word := strings.ToUpper(sql[t.start:t.end]); slices.Contains(statementWords, word) {
			return word + " …"
		}
		return "…"
	}
}
