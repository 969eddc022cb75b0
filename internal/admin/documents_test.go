package admin

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// TestFieldsAreDocumented requires every JSON field of the documents in docs/json.md.
func TestFieldsAreDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	var look func(t reflect.Type, seen map[reflect.Type]bool) []string
	look = func(t reflect.Type, seen map[reflect.Type]bool) []string {
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct || seen[t] || t.PkgPath() == "time" {
			return nil
		}
		seen[t] = true
		var names []string
		for i := range t.NumField() {
			name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
			names = append(append(names, name), look(t.Field(i).Type, seen)...)
		}
		return names
	}
	seen := map[reflect.Type]bool{}
	for _, doc := range []any{Status{}, Verification{}, ProblemDocument{}, PhaseChange{}, CutoverAccepted{}, Done{}} {
		for _, name := range look(reflect.TypeOf(doc), seen) {
			if name == "" || (!strings.Contains(text, "`"+name) && !strings.Contains(text, "… "+name+"`") && !strings.Contains(text, "."+name+"`") && !strings.Contains(text, `"`+name+`"`)) {
				t.Errorf("docs/json.md lacks %q of %T", name, doc)
			}
		}
	}
	for _, r := range (&api{}).routes() {
		if !strings.Contains(text, r.path) {
			t.Errorf("docs/json.md lacks %s", r.path)
		}
	}
}
