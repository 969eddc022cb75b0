package arrows

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "replicator/"

// foundations may be imported by every package but those that are foundations themselves.
var foundations = []string{"internal/preflight", "internal/retry", "internal/postgres", "internal/strictyaml", "metrics"}

// rooms are the rows: a package is covered by the row with the longest path that it equals or lies below. It may import what its
// row allows (that path or anything below it), and itself and packages below itself.
var rooms = []struct {
	path  string
	may   []string
	tests []string // what its tests may import besides, pgtest and redistest apart, which all tests may
}{
	{path: "cmd/replicator", may: []string{"internal", "cutover", "replication", "redissync", "metrics"}},

	{path: "internal/admin", may: with("cutover")},
	{path: "cutover", may: with()},
	{path: "redissync", may: with()},

	// The root of the Postgres half holds its types and contracts. What implements them stands below it, side by side; their tests
	// may put pieces together.
	{path: "replication", may: with(), tests: []string{"replication"}},
	{path: "replication/apply", may: with("replication="), tests: []string{"replication"}},
	{path: "replication/gate", may: with("replication="), tests: []string{"replication"}},
	{path: "replication/logical", may: with("replication="), tests: []string{"replication"}},
	// The one place where the pieces become a pipeline that runs: a pair is what cmd/replicator makes and the coordinator drives.
	{path: "replication/pair", may: with("replication"), tests: []string{"replication"}},
	{path: "replication/probe", may: with("replication="), tests: []string{"replication"}},
	{path: "replication/schema", may: with("replication="), tests: []string{"replication"}},
	{path: "replication/snapshot", may: with("replication="), tests: []string{"replication"}},
	{path: "replication/state", may: with("replication="), tests: []string{"replication"}},
	{path: "replication/trigger", may: with("replication="), tests: []string{"replication"}},
	{path: "replication/verify", may: with("replication="), tests: []string{"replication"}},

	{path: "metrics"},
	{path: "internal/preflight"},
	{path: "internal/retry"},
	{path: "internal/strictyaml"},
	{path: "internal/postgres", may: []string{"internal/preflight", "internal/retry"}},

	// The demo is an application and its servers. It sees replicator as a user does: by its binary, its API and its metrics.
	{path: "internal/demo", may: with("internal/pgtest", "internal/redistest")},
	// The end-to-end tests see no more than that: the demo's servers, shop and daemon.
	{path: "internal/e2e", tests: []string{"internal/demo"}},
	{path: "internal/e2e", may: with(), tests: []string{"internal/demo"}},
	// The benchmarks put pairs to work beside native replication.
	{path: "internal/bench", may: with(), tests: []string{"replication"}},
	{path: "internal/pgtest"},
	{path: "internal/redistest"},
	{path: "internal/arrows"},
	{path: "docs"},
	{path: "deploy", tests: []string{"metrics"}},
}

func with(more ...string) []string { return append(slices.Clone(foundations), more...) }

// imports are one package's imports: of packages of this module by its code and by its tests, and of other modules' packages.
type imports struct{ code, tests, foreign map[string]bool }

// read parses the source tree rather than asking the go command: go test caches results by the files that a test itself opened.
func read(t *testing.T) map[string]imports {
	t.Helper()
	root := filepath.Join("..", "..")
	all := map[string]imports{}
	err := filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if name := entry.Name(); name == "testdata" || name == "bin" || name == "node_modules" || strings.HasPrefix(name, ".") && name != ".." {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(file, ".go") {
			return nil
		}
		dir, err := filepath.Rel(root, filepath.Dir(file))
		if err != nil {
			return err
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		if all[dir].code == nil {
			all[dir] = imports{code: map[string]bool{}, tests: map[string]bool{}, foreign: map[string]bool{}}
		}
		into := all[dir].code
		if strings.HasSuffix(file, "_test.go") {
			into = all[dir].tests
		}
		for _, spec := range parsed.Imports {
			imported := strings.Trim(spec.Path.Value, `"`)
			if own, ours := strings.CutPrefix(imported, module); ours {
				into[own] = true
			} else if host, _, _ := strings.Cut(imported, "/"); strings.Contains(host, ".") {
				all[dir].foreign[imported] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("read the source tree: %v", err)
	}
	return all
}

// below reports whether path is dir or lies below it; a dir that ends in "=" means itself only.
func below(path, dir string) bool {
	if exact, found := strings.CutSuffix(dir, "="); found {
		return path == exact
	}
	return path == dir || strings.HasPrefix(path, dir+"/")
}

// verdict returns why the package at path may not import the one at imported, or "".
func verdict(path, imported string, test bool) string {
	room := -1
	for i, r := range rooms {
		if below(path, r.path) && (room < 0 || len(r.path) > len(rooms[room].path)) {
			room = i
		}
	}
	if room < 0 || path != rooms[room].path && rooms[room].path == "replication" {
		return "no row of the table in internal/arrows covers it: decide where it belongs and add one"
	}
	r := rooms[room]
	allowed := slices.Clone(r.may)
	if r.path != "replication" {
		allowed = append(allowed, r.path)
	}
	if test {
		allowed = append(allowed, r.path, "internal/pgtest", "internal/redistest")
		allowed = append(allowed, r.tests...)
	}
	for _, dir := range allowed {
		if below(imported, dir) {
			return ""
		}
	}
	return "may import " + strings.Join(allowed, ", ") + ": declare an interface where it is needed, and let cmd/replicator pass the implementation"
}

func TestImportsPointOneWay(t *testing.T) {
	packages := read(t)
	if _, found := packages["internal/preflight"]; !found {
		t.Fatalf("the source tree was not found: %d packages", len(packages))
	}
	for path, p := range packages {
		if why := verdict(path, path, true); strings.HasPrefix(why, "no row") {
			t.Errorf("%s: %s", path, why)
			continue
		}
		for _, side := range []struct {
			imports map[string]bool
			test    bool
		}{{p.code, false}, {p.tests, true}} {
			for imported := range side.imports {
				if why := verdict(path, imported, side.test); imported != path && why != "" {
					t.Errorf("%s imports %s: %s", path, imported, why)
				}
			}
		}
	}
}

func TestEveryDependencyHasItsReason(t *testing.T) {
	const page = "docs/adr/0005-dependencies.md"
	text, err := os.ReadFile(filepath.Join("..", "..", page))
	if err != nil {
		t.Fatal(err)
	}
	var modules []string
	for line := range strings.Lines(string(text)) {
		if cells := strings.Split(line, "|"); len(cells) == 4 && strings.Contains(cells[1], "/") {
			modules = append(modules, strings.TrimSpace(cells[1]))
		}
	}
	for path, p := range read(t) {
		for imported := range p.foreign {
			if !slices.ContainsFunc(modules, func(m string) bool { return below(imported, m) }) {
				t.Errorf("%s imports %s, of a module for which %s gives no reason", path, imported, page)
			}
		}
	}
}

func TestTheTableRefusesWhatItShould(t *testing.T) {
	for _, c := range []struct {
		from, to string
		test, ok bool
	}{
		{"cmd/replicator", "redissync", false, true},
		{"internal/admin", "cutover", false, true},
		{"cutover", "internal/admin", false, false},
		{"cutover", "replication", false, false},
		{"cutover", "replication/state", true, false},
		{"replication", "cutover", false, false},
		{"replication", "replication/apply", false, false},
		{"replication", "replication/apply", true, true},
		{"replication/apply", "replication", false, true},
		{"replication/apply", "replication/state", false, false},
		{"replication/apply", "replication/apply/inner", false, true},
		{"replication/unheard", "replication", false, false},
		{"redissync", "replication", false, false},
		{"redissync", "internal/pgtest", false, false},
		{"redissync", "internal/redistest", true, true},
		{"replication/gate", "internal/pgtest", false, false},
		{"replication/gate", "internal/pgtest", true, true},
		{"internal/pgtest", "internal/postgres", false, false},
		{"metrics", "replication", false, false},
		{"replicationist", "metrics", false, false},
	} {
		if why := verdict(c.from, c.to, c.test); (why == "") != c.ok {
			t.Errorf("%s → %s (test %v): %q, want allowed: %v", c.from, c.to, c.test, why, c.ok)
		}
	}
}
