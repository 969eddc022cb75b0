package deploy

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestChartKnowsEveryConfigurationKey compares the keys below `config` of the chart's schema with the YAML keys of the program's
// configuration: a key that only one of them knows would be refused by one of them.
func TestChartKnowsEveryConfigurationKey(t *testing.T) {
	text, err := os.ReadFile("helm/replicator/values.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	structs := configStructs(t)
	inSchema := map[string]bool{}
	schemaKeys(schema, dig(schema, "properties", "config"), "", inSchema)
	inProgram := map[string]bool{}
	programKeys(structs, "Config", "", inProgram)

	// The listen addresses are the chart's own.
	for _, key := range []string{"admin.listen", "metrics", "metrics.listen"} {
		if !inProgram[key] {
			t.Errorf("the configuration has no key %s any more", key)
		}
		delete(inProgram, key)
	}
	for _, key := range slices.Sorted(maps.Keys(inProgram)) {
		if !inSchema[key] {
			t.Errorf("values.schema.json does not know config.%s", key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(inSchema)) {
		if !inProgram[key] {
			t.Errorf("values.schema.json knows config.%s, which the program does not", key)
		}
	}
}

func dig(v any, path ...string) map[string]any {
	for _, key := range path {
		v = v.(map[string]any)[key]
	}
	return v.(map[string]any)
}

// schemaKeys gathers the dotted keys that a schema declares; the elements of a list stand for the list.
func schemaKeys(root, s map[string]any, prefix string, into map[string]bool) {
	if ref, ok := s["$ref"].(string); ok {
		s = dig(root, strings.Split(strings.TrimPrefix(ref, "#/"), "/")...)
	}
	if items, ok := s["items"].(map[string]any); ok {
		schemaKeys(root, items, prefix, into)
	}
	properties, _ := s["properties"].(map[string]any)
	for key, child := range properties {
		into[prefix+key] = true
		schemaKeys(root, child.(map[string]any), prefix+key+".", into)
	}
}

// configStructs parses the struct types of cmd/replicator: name → YAML key → type of the field, without pointer or slice.
func configStructs(t *testing.T) map[string]map[string]string {
	t.Helper()
	files, err := filepath.Glob("../cmd/replicator/config*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no configuration found: %v", err)
	}
	structs := map[string]map[string]string{}
	for _, path := range files {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			if s, ok := spec.Type.(*ast.StructType); ok {
				keys := map[string]string{}
				for _, field := range s.Fields.List {
					if field.Tag == nil {
						continue
					}
					tag, err := strconv.Unquote(field.Tag.Value)
					if err != nil {
						t.Fatal(err)
					}
					if key := reflect.StructTag(tag).Get("yaml"); key != "" {
						keys[key] = element(field.Type)
					}
				}
				structs[spec.Name.Name] = keys
			}
			return true
		})
	}
	return structs
}

func element(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.StarExpr:
		return element(e.X)
	case *ast.ArrayType:
		return element(e.Elt)
	}
	return ""
}

func programKeys(structs map[string]map[string]string, name, prefix string, into map[string]bool) {
	for key, kind := range structs[name] {
		into[prefix+key] = true
		programKeys(structs, kind, prefix+key+".", into)
	}
}
