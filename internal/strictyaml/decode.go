package strictyaml

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// Problem is one thing that is wrong with a file.
type Problem struct {
	// Line counts from 1; 0 where there is none.
	Line int
	// Path names the value, as in postgres[0].source.url; empty for the whole file.
	Path string
	// Message says what is wrong and what to write instead.
	Message string
}

// Lines tells on which line each path of the file stands.
type Lines map[string]int

// Of returns the line of a path, or of the nearest one around it that the file has, for a value that is missing.
func (l Lines) Of(path string) int {
	for {
		if n, ok := l[path]; ok {
			return n
		}
		cut := strings.LastIndexAny(path, ".[")
		if cut < 0 {
			return l[""]
		}
		path = path[:cut]
	}
}

// Decode reads src into the struct that into points to, over the values it already has (the defaults). Elements of slices start
// from what element returns for their path with indexes left out ("postgres"), or from zero if element is nil or returns nil.
// expand replaces the references in a scalar; its error is reported as a problem. All problems are returned, in the file's order.
func Decode(src []byte, into any, expand func(string) (string, error), element func(path string) any) (Lines, []Problem) {
	d := decoder{lines: Lines{"": 1}, expand: expand, element: element}
	dec := yaml.NewDecoder(bytes.NewReader(src))
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return d.lines, nil
		}
		return d.lines, []Problem{syntax(err)}
	}
	var more yaml.Node
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		if err != nil {
			return d.lines, []Problem{syntax(err)}
		}
		return d.lines, []Problem{{Line: more.Line, Message: "a second document begins here: keep one document in the file"}}
	}
	d.value(doc.Content[0], reflect.ValueOf(into).Elem(), "")
	return d.lines, d.problems
}

// syntax turns the parser's error into a problem; the parser gives the position in its text only.
func syntax(err error) Problem {
	p := Problem{Message: strings.TrimPrefix(err.Error(), "yaml: ")}
	if i := strings.Index(p.Message, "line "); i >= 0 {
		digits := p.Message[i+len("line "):]
		if end := strings.IndexFunc(digits, func(r rune) bool { return r < '0' || r > '9' }); end > 0 {
			p.Line, _ = strconv.Atoi(digits[:end])
		}
	}
	p.Message = "not valid YAML: " + p.Message
	return p
}

type decoder struct {
	lines    Lines
	problems []Problem
	expand   func(string) (string, error)
	element  func(string) any
}

func (d *decoder) problem(n *yaml.Node, path, format string, args ...any) {
	d.problems = append(d.problems, Problem{Line: n.Line, Path: path, Message: fmt.Sprintf(format, args...)})
}

func (d *decoder) value(n *yaml.Node, v reflect.Value, path string) {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	d.lines[path] = n.Line
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return // a key without a value keeps its default
	}
	if _, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok || scalar(v) {
		d.scalar(n, v, path)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		fresh := reflect.New(v.Type().Elem())
		if d.element != nil {
			if start := d.element(withoutIndexes(path)); start != nil {
				fresh.Elem().Set(reflect.ValueOf(start))
			}
		}
		d.value(n, fresh.Elem(), path)
		v.Set(fresh)
	case reflect.Struct:
		d.mapping(n, v, path)
	case reflect.Slice:
		d.sequence(n, v, path)
	case reflect.Map:
		d.anyKeys(n, v, path)
	default:
		d.problem(n, path, "this program can't read a value of type %s: please report it", v.Type())
	}
}

// anyKeys reads a mapping whose keys are the operator's.
func (d *decoder) anyKeys(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.MappingNode {
		d.problem(n, path, "%s where keys are expected: write NAME: VALUE, one a line", kindName(n))
		return
	}
	out := reflect.MakeMap(v.Type())
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		at := path + "." + key.Value
		k := reflect.ValueOf(key.Value)
		if key.Kind != yaml.ScalarNode || out.MapIndex(k).IsValid() {
			d.problem(key, at, "not a name, or one that is given twice")
			continue
		}
		value := reflect.New(v.Type().Elem()).Elem()
		d.value(n.Content[i+1], value, at)
		out.SetMapIndex(k, value)
	}
	v.Set(out)
}

func scalar(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.String, reflect.Bool, reflect.Int, reflect.Int64:
		return true
	}
	return false
}

func (d *decoder) mapping(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.MappingNode {
		d.problem(n, path, "%s where keys are expected: write one of %s", kindName(n), strings.Join(keys(v.Type()), ", "))
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		name := key.Value
		at := name
		if path != "" {
			at = path + "." + name
		}
		if first, ok := seen[name]; ok {
			d.problem(key, at, "given twice, first on line %d: remove one", first)
			continue
		}
		seen[name] = key.Line
		field := slices.Index(keys(v.Type()), name)
		if key.Kind != yaml.ScalarNode || field < 0 {
			d.problem(key, at, "unknown key: %s", suggestion(name, keys(v.Type())))
			continue
		}
		d.value(value, v.Field(field), at)
		d.lines[at] = key.Line
	}
}

func (d *decoder) sequence(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.SequenceNode {
		d.problem(n, path, "%s where a list is expected: write [a, b], or one item a line, each after a dash", kindName(n))
		return
	}
	out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, item := range n.Content {
		if d.element != nil {
			if start := d.element(withoutIndexes(path)); start != nil {
				out.Index(i).Set(reflect.ValueOf(start))
			}
		}
		d.value(item, out.Index(i), path+"["+strconv.Itoa(i)+"]")
	}
	v.Set(out)
}

func (d *decoder) scalar(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.ScalarNode {
		d.problem(n, path, "%s where a single value is expected", kindName(n))
		return
	}
	text := n.Value
	if d.expand != nil {
		var err error
		if text, err = d.expand(text); err != nil {
			d.problem(n, path, "%s", err)
			return
		}
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if err := u.UnmarshalText([]byte(text)); err != nil {
			d.problem(n, path, "%s", err)
		}
		return
	}
	if v.Type() == reflect.TypeFor[time.Duration]() {
		parsed, err := time.ParseDuration(text)
		if err != nil {
			d.problem(n, path, "%q is not a duration: write a number with its unit, as in 500ms, 30s or 2m", text)
			return
		}
		v.SetInt(int64(parsed))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		switch text {
		case "true":
			v.SetBool(true)
		case "false":
			v.SetBool(false)
		default:
			d.problem(n, path, "%q is neither true nor false", text)
		}
	default:
		parsed, err := strconv.ParseInt(text, 10, v.Type().Bits())
		if err != nil {
			d.problem(n, path, "%q is not a whole number", text)
			return
		}
		v.SetInt(parsed)
	}
}

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "keys"
	case yaml.SequenceNode:
		return "a list"
	}
	return "a single value"
}

// keys returns the names of a struct's fields in the file, in the fields' order.
func keys(t reflect.Type) []string {
	names := make([]string, t.NumField())
	for i := range names {
		names[i] = t.Field(i).Tag.Get("yaml")
	}
	return names
}

// suggestion names the key that was probably meant, or all that exist.
func suggestion(name string, known []string) string {
	best, distance := "", 3
	for _, k := range known {
		if d := editDistance(strings.ToLower(strings.ReplaceAll(name, "-", "_")), k); d < distance {
			best, distance = k, d
		}
	}
	if best != "" {
		return fmt.Sprintf("did you mean %q?", best)
	}
	return "known here are " + strings.Join(known, ", ")
}

// editDistance is Levenshtein's.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}

func withoutIndexes(path string) string {
	var b strings.Builder
	inside := false
	for _, r := range path {
		switch {
		case r == '[':
			inside = true
		case r == ']':
			inside = false
		case !inside:
			b.WriteRune(r)
		}
	}
	return b.String()
}
