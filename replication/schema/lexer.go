package schema

import (
	"fmt"
	"strings"
)

type tokenKind byte

const (
	tokenWord    tokenKind = iota // an unquoted identifier, key word or number
	tokenQuoted                   // "a quoted identifier", U&"…" included
	tokenString                   // a literal of any form: '…', E'…', $tag$…$tag$
	tokenComment                  // -- to the end of the line, or /* nested */
	tokenSymbol                   // any other single byte
	tokenMeta                     // a psql command: a backslash at the start of a line, to its end
)

// token is a piece of SQL text, src[start:end].
type token struct {
	kind       tokenKind
	start, end int
}

// lexer cuts SQL text into tokens by the rules of "Lexical Structure" in the PostgreSQL documentation, with
// standard_conforming_strings on. It knows just as much as is needed never to mistake the inside of a literal, a quoted name or a
// comment for SQL.
type lexer struct {
	src string
	pos int
}

// next returns the next token; ok is false at the end of the text. An error means that a literal, name or comment never ends.
func (l *lexer) next() (t token, ok bool, err error) {
	for l.pos < len(l.src) && isSpace(l.src[l.pos]) {
		l.pos++
	}
	if l.pos >= len(l.src) {
		return token{}, false, nil
	}
	start := l.pos
	kind, err := l.scan()
	if err != nil {
		return token{}, false, err
	}
	return token{kind, start, l.pos}, true, nil
}

func (l *lexer) scan() (tokenKind, error) {
	rest := l.src[l.pos:]
	switch c := rest[0]; {
	case strings.HasPrefix(rest, "--"):
		l.line()
		return tokenComment, nil
	case strings.HasPrefix(rest, "/*"):
		return tokenComment, l.block()
	case c == '\\' && (l.pos == 0 || l.src[l.pos-1] == '\n'):
		l.line()
		return tokenMeta, nil
	case c == '\'':
		return tokenString, l.quoted('\'', false)
	case c == '"':
		return tokenQuoted, l.quoted('"', false)
	case c == '$':
		if tag := dollarTag(rest); tag != "" {
			end := strings.Index(rest[len(tag):], tag)
			if end < 0 {
				return 0, l.unterminated("dollar-quoted string")
			}
			l.pos += 2*len(tag) + end
			return tokenString, nil
		}
	case (c == 'e' || c == 'E') && len(rest) > 1 && rest[1] == '\'':
		l.pos++
		return tokenString, l.quoted('\'', true)
	case strings.IndexByte("bBxXnN", c) >= 0 && len(rest) > 1 && rest[1] == '\'':
		l.pos++
		return tokenString, l.quoted('\'', false)
	case (c == 'u' || c == 'U') && len(rest) > 2 && rest[1] == '&' && (rest[2] == '\'' || rest[2] == '"'):
		l.pos += 2
		if rest[2] == '"' {
			return tokenQuoted, l.quoted('"', false)
		}
		return tokenString, l.quoted('\'', false)
	case isWordStart(c) || c >= '0' && c <= '9':
		n := 1
		for n < len(rest) && isWordPart(rest[n]) {
			n++
		}
		l.pos += n
		return tokenWord, nil
	}
	l.pos++
	return tokenSymbol, nil
}

// line moves to the end of the line.
func (l *lexer) line() {
	if n := strings.IndexByte(l.src[l.pos:], '\n'); n >= 0 {
		l.pos += n
		return
	}
	l.pos = len(l.src)
}

func (l *lexer) block() error {
	depth, p := 0, l.pos
	for p < len(l.src) {
		switch {
		case strings.HasPrefix(l.src[p:], "/*"):
			depth++
			p += 2
		case strings.HasPrefix(l.src[p:], "*/"):
			depth--
			p += 2
			if depth == 0 {
				l.pos = p
				return nil
			}
		default:
			p++
		}
	}
	return l.unterminated("comment")
}

// quoted moves past a quoted token whose opening quote is at pos. With escapes, a backslash takes the next byte with it. A literal
// goes on after white space that contains a newline and another quote ("String Constants" in the documentation).
func (l *lexer) quoted(quote byte, escapes bool) error {
	p := l.pos + 1
	for p < len(l.src) {
		switch c := l.src[p]; {
		case c == '\\' && escapes:
			p += 2
		case c != quote:
			p++
		case p+1 < len(l.src) && l.src[p+1] == quote:
			p += 2
		default:
			p++
			if quote == '\'' {
				if q := continued(l.src, p); q > 0 {
					p = q
					continue
				}
			}
			l.pos = p
			return nil
		}
	}
	return l.unterminated("quoted " + map[byte]string{'\'': "string", '"': "identifier"}[quote])
}

// continued returns the place after the quote that goes on with a literal that ended at p, 0 if none does.
func continued(src string, p int) int {
	newline := false
	for p < len(src) {
		switch {
		case isSpace(src[p]):
			newline = newline || src[p] == '\n' || src[p] == '\r'
			p++
		case newline && strings.HasPrefix(src[p:], "--"):
			n := strings.IndexByte(src[p:], '\n')
			if n < 0 {
				return 0
			}
			p += n
		case newline && src[p] == '\'':
			return p + 1
		default:
			return 0
		}
	}
	return 0
}

func (l *lexer) unterminated(what string) error {
	return fmt.Errorf("the %s that begins at byte %d never ends", what, l.pos)
}

// dollarTag returns the opening tag of a dollar-quoted string at the start of s, empty if there is none.
func dollarTag(s string) string {
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '$':
			return s[:i+1]
		case isWordStart(c), i > 1 && c >= '0' && c <= '9':
		default:
			return ""
		}
	}
	return ""
}

func isSpace(c byte) bool {
	return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v'
}

func isWordStart(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' || c >= 0x80
}

func isWordPart(c byte) bool { return isWordStart(c) || c >= '0' && c <= '9' || c == '$' }

// tokens returns the significant tokens of a statement's text: no comments, no psql commands. It gives what it could read where the
// text is not whole.
func tokens(sql string) []string {
	l := lexer{src: sql}
	var out []string
	for {
		t, ok, err := l.next()
		if !ok || err != nil {
			return out
		}
		if t.kind != tokenComment && t.kind != tokenMeta {
			out = append(out, sql[t.start:t.end])
		}
	}
}

// unquoteIdent returns the name that an identifier token stands for.
func unquoteIdent(s string) string {
	if len(s) >= 2 && s[0] == '"' {
		return strings.ReplaceAll(s[1:len(s)-1], `""`, `"`)
	}
	return s
}
