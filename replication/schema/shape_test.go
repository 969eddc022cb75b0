package schema

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestShape(t *testing.T) {
	for _, c := range []struct{ sql, want string }{
		{"", ""},
		{"SELECT 1", "SELECT ?"},
		{"update users\n\tset name = 's3cret', age=42 where id = $1", "update users set name = ?, age=? where id = $1"},
		{`UPDATE "users" SET "pass word" = E'it\'s s3cret' WHERE x = U&'\0041s3cret' UESCAPE '!'`, `UPDATE "users" SET "…" = ? WHERE x = ? UESCAPE ?`},
		{"SELECT $$s3cret$$, $a$ it's $$ s3cret $a$, b'101', X'53', N's3cret'", "SELECT ?, ?, ?, ?, ?"},
		{"SELECT 1.5e-3, .5, 0xFF, 1_000, 12s3cret", "SELECT ?.?-?, .?, ?, ?, ?"},
		{"SELECT 'a' -- s3cret\n 's3cret' /* s3cret /* s3cret */ s3cret */ FROM t", "SELECT ? ? FROM t"},
		{"SELECT 'it''s s3cret'", "SELECT ?"},
		{`SELECT "joe@s3cret.example", "a""s3cret"`, `SELECT "…", "…"`},
		{"SELECT $4111111111111111", "SELECT $?"},
		{"SELECT '\\'s3cret' FROM t", "SELECT …"},
		{"SELECT 's3cret", "SELECT …"},
		{"/* s3cret */ insert into t values ($x$s3cret", "INSERT …"},
		{"COPY t FROM STDIN; /* s3cret", "COPY …"},
		{"s3cret 'x", "…"},
		{"\\s3cret", "…"},
		{"SELECT 1\n\\ ' s3cret\n", "SELECT …"},
		{"SELECT \x1b[31m, \u009b31m, a\u202eb, \xff", "SELECT ?[?, ?, ?, ?"},
		{"SELECT " + strings.Repeat("s3cret", 20), "SELECT ?"},
		{"SELECT " + strings.Repeat("column_name, ", 20), "SELECT " + strings.Repeat("column_name, ", 8) + "…"},
		{"SELECT " + strings.Repeat("column_name, ", 20) + "'s3cret", "SELECT " + strings.Repeat("column_name, ", 8) + "…"},
	} {
		if got := Shape(c.sql); got != c.want {
			t.Errorf("of %q\n\tis shown %q\n\twant     %q", c.sql, got, c.want)
		}
	}
}

// What is shown has a bound and one line, and shows none of the literals, however the text is cut.
func FuzzShape(f *testing.F) {
	for _, s := range []string{"SELECT 'x'", "a $b$c$b$ \\", "U&\"x\" E'\\'", "/* /* */", "\x1b[1m\n-- x\r'", "$1 $a", "'a'\n'b'"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		const secret = "zqsecretqz"
		quoted := "'" + strings.NewReplacer("'", "''", "\\", "").Replace(b) + secret + "'"
		whole := "SELECT " + quoted + ", $" + "q$" + secret + "$q$, E'" + secret + "\\'" + secret + "' -- " + secret
		for _, sql := range []string{a, a + b, whole, whole[:len(whole)-len(secret)/2], whole[:len(whole)-len(secret)-5]} {
			got := Shape(sql)
			if utf8.RuneCountInString(got) > shapeLength+2 || !utf8.ValidString(got) {
				t.Errorf("%q is shown as %q", sql, got)
			}
			for _, r := range got {
				if !unicode.IsPrint(r) {
					t.Errorf("%q is shown as %q", sql, got)
				}
			}
			if sql != a && sql != a+b && strings.Contains(got, secret) {
				t.Errorf("%q shows a literal: %q", sql, got)
			}
		}
	})
}
