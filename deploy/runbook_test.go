package deploy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

var heading = regexp.MustCompile("(?m)^#+ +`?([A-Za-z][A-Za-z0-9-]*)`?$")

// sections returns the one-word headings of the runbook, as anchors.
func sections(t *testing.T) map[string]bool {
	t.Helper()
	text, err := os.ReadFile("../docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(string(text), -1) {
		anchor := strings.ToLower(m[1])
		if found[anchor] {
			t.Errorf("docs/runbook.md has two sections %s", m[1])
		}
		found[anchor] = true
	}
	return found
}

func TestEveryAlertIsTestedAndInTheRunbook(t *testing.T) {
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert               string
				Labels, Annotations map[string]string
			}
		}
	}
	readYAML(t, "alerts/replicator.rules.yml", &rules)
	var tests struct {
		Tests []struct {
			Cases []struct {
				Alertname string
				Expected  []any `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	readYAML(t, "alerts/replicator.rules.test.yml", &tests)
	fires := map[string]bool{}
	for _, test := range tests.Tests {
		for _, c := range test.Cases {
			fires[c.Alertname] = fires[c.Alertname] || len(c.Expected) > 0
		}
	}
	known := sections(t)
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if !fires[r.Alert] {
				t.Errorf("no test shows that %s fires", r.Alert)
			}
			if want := "docs/runbook.md#" + strings.ToLower(r.Alert); r.Annotations["runbook_url"] != want {
				t.Errorf("%s links to %q, want %q", r.Alert, r.Annotations["runbook_url"], want)
			}
			if !known[strings.ToLower(r.Alert)] {
				t.Errorf("docs/runbook.md has no section %q", "### "+r.Alert)
			}
			if s := r.Labels["severity"]; s != "warning" && s != "critical" {
				t.Errorf("%s has the severity %q", r.Alert, s)
			}
		}
	}
}

// TestEveryProblemCodeIsInTheRunbook reads the codes out of the source: Code fields of findings and hinted errors, what is passed to a
// function of the same package for a parameter called code, and what functions return that return a code and a hint.
func TestEveryProblemCodeIsInTheRunbook(t *testing.T) {
	known := sections(t)
	codes := problemCodes(t)
	if len(codes) < 10 {
		t.Errorf("only %d problem codes found in the source: the search for them is broken", len(codes))
	}
	for code, where := range codes {
		if !known[code] {
			t.Errorf("docs/runbook.md has no section %q, the problem of %s", "### "+code, where)
		}
	}
}

var kebab = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*$`)

func problemCodes(t *testing.T) map[string]token.Position {
	t.Helper()
	packages := map[string][]*ast.File{}
	fset := token.NewFileSet()
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != ".." && (strings.HasPrefix(d.Name(), ".") || strings.HasSuffix(d.Name(), "test") || d.Name() == "testdata" || d.Name() == "node_modules") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		packages[filepath.Dir(path)] = append(packages[filepath.Dir(path)], file)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	codes := map[string]token.Position{}
	for _, files := range packages {
		takers := codeTakers(files)
		collect := func(e ast.Expr) {
			if lit, ok := e.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if code, err := strconv.Unquote(lit.Value); err == nil && kebab.MatchString(code) {
					codes[code] = fset.Position(lit.Pos())
				}
			}
		}
		for _, file := range files {
			ast.Inspect(file, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.CompositeLit:
					for _, element := range n.Elts {
						if kv, ok := element.(*ast.KeyValueExpr); ok {
							if key, ok := kv.Key.(*ast.Ident); ok && key.Name == "Code" {
								collect(kv.Value)
							}
						}
					}
				case *ast.FuncDecl:
					if returnsCodeAndHint(n) {
						ast.Inspect(n, func(inner ast.Node) bool {
							if r, ok := inner.(*ast.ReturnStmt); ok && len(r.Results) == 2 {
								collect(r.Results[0])
							}
							return true
						})
					}
				case *ast.CallExpr:
					if at, ok := takers[called(n.Fun)]; ok && at < len(n.Args) {
						collect(n.Args[at])
					}
				}
				return true
			})
		}
	}
	return codes
}

// codeTakers returns the functions that have a parameter called code, and which one it is.
func codeTakers(files []*ast.File) map[string]int {
	takers := map[string]int{}
	for _, file := range files {
		for _, d := range file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			at := 0
			for _, field := range f.Type.Params.List {
				for _, name := range field.Names {
					if name.Name == "code" {
						takers[f.Name.Name] = at
					}
					at++
				}
			}
		}
	}
	return takers
}

// returnsCodeAndHint tells whether a function returns two strings of which the first is named code or the second hint.
func returnsCodeAndHint(f *ast.FuncDecl) bool {
	if f.Type.Results == nil {
		return false
	}
	for _, field := range f.Type.Results.List {
		for _, name := range field.Names {
			if name.Name == "code" || name.Name == "hint" {
				return true
			}
		}
	}
	return false
}

func called(fun ast.Expr) string {
	switch f := fun.(type) {
	case *ast.Ident:
		return f.Name
	case *ast.SelectorExpr:
		return f.Sel.Name
	}
	return ""
}

func readYAML(t *testing.T, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}
