package main

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

var indexes = regexp.MustCompile(`\[\d+\]`)

// allKeys returns the paths of every key that the configuration may have, without indexes.
func allKeys(t reflect.Type, path string) []string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t == reflect.TypeFor[Secret]() {
		return nil
	}
	var keys []string
	for i := range t.NumField() {
		at := strings.TrimPrefix(path+"."+t.Field(i).Tag.Get("yaml"), ".")
		keys = append(append(keys, at), allKeys(t.Field(i).Type, at)...)
	}
	return keys
}

// dropEmpty returns the value as maps and lists in which empty lists are left out and secrets are revealed.
func dropEmpty(v reflect.Value) any {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return nil
		}
		return dropEmpty(v.Elem())
	case reflect.Slice:
		var out []any
		for i := range v.Len() {
			out = append(out, dropEmpty(v.Index(i)))
		}
		return out
	case reflect.Map:
		out := map[string]any{}
		for _, k := range v.MapKeys() {
			out[k.String()] = dropEmpty(v.MapIndex(k))
		}
		return out
	case reflect.Struct:
		if s, ok := v.Interface().(Secret); ok {
			return s.Reveal()
		}
		out := map[string]any{}
		for i := range v.NumField() {
			out[v.Type().Field(i).Name] = dropEmpty(v.Field(i))
		}
		return out
	}
	return fmt.Sprint(v.Interface())
}

// TestEveryKeyIsDocumented requires each key in docs/config.md's table.
func TestEveryKeyIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/config.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9_.\\[\\]]+)` \\|").FindAllStringSubmatch(string(text), -1) {
		documented[strings.ReplaceAll(m[1], "[]", "")] = true
	}
	known := map[string]bool{}
	for _, key := range allKeys(reflect.TypeFor[Config](), "") {
		known[key] = true
	}
	for key := range documented {
		if !known[key] {
			t.Errorf("docs/config.md documents %s, which doesn't exist", key)
		}
	}
	for key := range known {
		parent := false
		for other := range known {
			parent = parent || strings.HasPrefix(other, key+".")
		}
		side := regexp.MustCompile(`\.target\.`).ReplaceAllString(key, ".source.")
		if !parent && !documented[key] && !documented[side] {
			t.Errorf("docs/config.md lacks %s", key)
		}
	}
	for _, v := range environmentVariables {
		if !strings.Contains(string(text), "`"+v.name+"`") {
			t.Errorf("docs/config.md lacks the variable %s", v.name)
		}
	}
}
