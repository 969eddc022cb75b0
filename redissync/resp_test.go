package redissync

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
)

func TestReadReplies(t *testing.T) {
	for in, want := range map[string]value{
		"+OK\r\n":                      {kind: '+', str: "OK"},
		"-ERR no\r\n":                  {kind: '-', str: "ERR no"},
		":-12\r\n":                     {kind: ':', num: -12},
		"$5\r\na\r\nbc\r\n":            {kind: '$', str: "a\r\nbc"},
		"$-1\r\n":                      {kind: '$', null: true},
		"*-1\r\n":                      {kind: '*', null: true},
		"_\r\n":                        {kind: '_', null: true},
		"#t\r\n":                       {kind: '#', num: 1},
		",1.5\r\n":                     {kind: ',', str: "1.5"},
		"=7\r\ntxt:abc\r\n":            {kind: '=', str: "abc"},
		"%1\r\n$1\r\na\r\n:1\r\n":      {kind: '%', items: []value{{kind: '$', str: "a"}, {kind: ':', num: 1}}},
		"|1\r\n+a\r\n+b\r\n:7\r\n":     {kind: ':', num: 7},
		">2\r\n$1\r\na\r\n*1\r\n_\r\n": {kind: '>', items: []value{{kind: '$', str: "a"}, {kind: '*', items: []value{{kind: '_', null: true}}}}},
	} {
		got, err := newReader(strings.NewReader(in)).read()
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v, want %+v", in, got, err, want)
		}
	}
}

func TestReadRefusesMalformedReplies(t *testing.T) {
	for _, in := range []string{
		"\r\n", "x\r\n", "$5\r\nab", "$2\r\nabcd\r\n", ":x\r\n", "$-2\r\n", "%-1\r\n", "*99999999999\r\n", "$99999999999\r\n", "+a\n", "#x\r\n", "_x\r\n", ">-1\r\n",
		strings.Repeat("*1\r\n", 100), "+" + strings.Repeat("a", 1<<17),
	} {
		if v, err := newReader(strings.NewReader(in)).read(); err == nil {
			t.Errorf("%.40q was read as %+v", in, v)
		}
	}
	if _, err := newReader(strings.NewReader("$5\r\nab")).read(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a cut reply gave %v", err)
	}
}

func FuzzReader(f *testing.F) {
	for _, s := range []string{"+OK\r\n", ">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n", "$1000000000\r\nab", "*200000000\r\n", "%2\r\n+a\r\n:1\r\n+b\r\n_\r\n", ">2\r\n$10\r\ninvalidate\r\n_\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r := newReader(bytes.NewReader(in))
		total := 0
		for {
			v, err := r.read()
			if err != nil {
				return
			}
			if total += size(v); total > len(in) {
				t.Fatalf("read %d bytes of content out of %d", total, len(in))
			}
		}
	})
}

func size(v value) int {
	n := 1
	if v.kind != kindMap {
		n += len(v.str)
	}
	for _, it := range v.items {
		n += size(it)
	}
	return n
}

func TestCommandsRoundTrip(t *testing.T) {
	args := []string{"SET", "k\r\n", "", "\x00\xff"}
	v, err := newReader(bytes.NewReader(appendCommand(nil, args))).read()
	if err != nil || !reflect.DeepEqual(v.strings(), args) {
		t.Fatalf("%q, %v", v.strings(), err)
	}
}
