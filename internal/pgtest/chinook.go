package pgtest

import (
	"os"
	"path/filepath"
	"strings"
)

// LoadChinook loads the Chinook sample database (testdata/chinook) into an empty database, as the URL's role, in one transaction.
func LoadChinook(t TB, url string) {
	t.Helper()
	wd, err := os.Getwd()
	if err != nil {
		t.Fatalf("find the source tree: %v", err)
	}
	root, found := sourceRoot(wd)
	if !found {
		t.Fatalf("find testdata/chinook: no source tree of replicator around %s", wd)
	}
	script, err := os.ReadFile(filepath.Join(root, "testdata", "chinook", "chinook.sql"))
	if err != nil {
		t.Fatalf("read the Chinook script: %v", err)
	}
	Exec(t, url, portable(string(script)))
}

// portable leaves out what only psql understands or what concerns the script's own database rather than the caller's.
func portable(script string) string {
	var b strings.Builder
	for line := range strings.Lines(script) {
		if strings.HasPrefix(line, `\`) || strings.HasPrefix(line, "DROP DATABASE ") || strings.HasPrefix(line, "CREATE DATABASE ") {
			continue
		}
		b.WriteString(line)
	}
	return b.String()
}
