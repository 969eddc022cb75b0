package strictyaml

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

type level int

func (l *level) UnmarshalText(b []byte) error {
	if string(b) != "high" {
		return errors.New("use high")
	}
	*l = 9
	return nil
}

type inner struct {
	URL   string        `yaml:"url"`
	Wait  time.Duration `yaml:"wait"`
	Level level         `yaml:"level"`
}

type outer struct {
	Name  string           `yaml:"name"`
	On    bool             `yaml:"on"`
	Count int              `yaml:"count"`
	Words []string         `yaml:"words"`
	Items []inner          `yaml:"items"`
	Maybe *inner           `yaml:"maybe"`
	Env   map[string]level `yaml:"env"`
}

func expand(s string) (string, error) {
	if strings.Contains(s, "${MISSING}") {
		return "", errors.New("${MISSING} is not set")
	}
	return strings.ReplaceAll(s, "${SECRET}", `a: "b" #{c}`), nil
}

func element(path string) any {
	if path == "items" || path == "maybe" {
		return inner{Wait: time.Second}
	}
	return nil
}

func TestDecode(t *testing.T) {
	got := outer{Name: "default", Count: 7}
	src := `
on: true
words: [x, "y z"]
items:
  - url: ${SECRET}
  - {url: u, wait: 2m, level: high}
maybe: {url: m}
name:
env: {A: high}
`
	lines, problems := Decode([]byte(src), &got, expand, element)
	if len(problems) != 0 {
		t.Fatalf("problems %v", problems)
	}
	want := outer{Name: "default", On: true, Count: 7, Words: []string{"x", "y z"},
		Items: []inner{{URL: `a: "b" #{c}`, Wait: time.Second}, {URL: "u", Wait: 2 * time.Minute, Level: 9}}, Maybe: &inner{URL: "m", Wait: time.Second}, Env: map[string]level{"A": 9}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	for path, line := range map[string]int{"items[0].url": 5, "items[1].level": 6, "items[1].missing.deeper": 6, "absent": 2} {
		if lines.Of(path) != line {
			t.Errorf("line of %s is %d, want %d", path, lines.Of(path), line)
		}
	}
}

func TestDecodeReportsEverything(t *testing.T) {
	src := `name: [a]
on: yes
count: many
cuont: 1
words: w
items:
  - url: ${MISSING}
    wait: 30
    level: low
    url: again
  - text
maybe: {colour: red}
env: {A: high, B: low, A: high}
`
	var got outer
	_, problems := Decode([]byte(src), &got, expand, nil)
	var b strings.Builder
	for _, p := range problems {
		fmt.Fprintf(&b, "%d %s: %s\n", p.Line, p.Path, p.Message)
	}
	want := `1 name: a list where a single value is expected
2 on: "yes" is neither true nor false
3 count: "many" is not a whole number
4 cuont: unknown key: did you mean "count"?
5 words: a single value where a list is expected: write [a, b], or one item a line, each after a dash
7 items[0].url: ${MISSING} is not set
8 items[0].wait: "30" is not a duration: write a number with its unit, as in 500ms, 30s or 2m
9 items[0].level: use high
10 items[0].url: given twice, first on line 7: remove one
11 items[1]: a single value where keys are expected: write one of url, wait, level
12 maybe.colour: unknown key: known here are url, wait, level
13 env.B: use high
13 env.A: not a name, or one that is given twice
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestDecodeSyntax(t *testing.T) {
	for src, line := range map[string]int{"a: b\n c: d: e\n": 2, "name: x\n---\nname: y\n": 2} {
		_, problems := Decode([]byte(src), &outer{}, nil, nil)
		if len(problems) != 1 || problems[0].Line < line {
			t.Errorf("%q: problems %v, want one on line %d or after", src, problems, line)
		}
	}
	if _, problems := Decode(nil, &outer{}, nil, nil); len(problems) != 0 {
		t.Errorf("an empty file: %v, want nothing: validation says what is missing", problems)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("name: x\nitems: [{url: a}]\n")
	f.Add("a: &x [*x]\n")
	f.Add("items: &a [*a]\n")
	f.Add("? [a]\n: b\n")
	f.Fuzz(func(_ *testing.T, src string) { Decode([]byte(src), &outer{}, expand, element) })
}
