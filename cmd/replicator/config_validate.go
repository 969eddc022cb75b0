package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"iter"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"replicator/internal/strictyaml"
)

// maxNames bounds migration's and pair's name together, so that the names made of them fit PostgreSQL's 63 bytes unshortened.
const maxNames = 32

var namePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]*$`)

// validation gathers what is wrong with a configuration that could be read.
type validation struct{ problems []strictyaml.Problem }

func (v *validation) add(path, format string, args ...any) {
	v.problems = append(v.problems, strictyaml.Problem{Path: path, Message: fmt.Sprintf(format, args...)})
}

// validate returns every problem that can be told without connecting anywhere; paths are those of the YAML file.
func validate(c Config) []strictyaml.Problem {
	var v validation
	v.name("migration", c.Migration, "")
	if len(c.Postgres)+len(c.Redis) == 0 {
		v.add("", "nothing to replicate: add a pair under postgres or redis")
	}
	names := map[string]string{}
	v.sources(c.Postgres)
	for i, p := range c.Postgres {
		v.postgres(fmt.Sprintf("postgres[%d]", i), c.Migration, p, names)
	}
	for i, p := range c.Redis {
		v.redis(fmt.Sprintf("redis[%d]", i), c.Migration, p, names)
	}
	if c.Cutover.FreezeBudget < time.Second || c.Cutover.FreezeBudget > 10*time.Minute {
		v.add("cutover.freeze_budget", "%v is out of bounds: use 1s to 10m", c.Cutover.FreezeBudget)
	}
	for i, h := range c.Cutover.Hooks {
		v.hook(fmt.Sprintf("cutover.hooks[%d]", i), h)
	}
	v.listen("admin.listen", c.Admin.Listen)
	v.listen("metrics.listen", c.Metrics.Listen)
	if c.Admin.Listen == c.Metrics.Listen && !strings.HasSuffix(c.Admin.Listen, ":0") {
		v.add("metrics.listen", "the same address as admin.listen: give each its own port")
	}
	if t := c.Admin.Tokens; t.Viewer.IsSet() && t.Viewer.Reveal() == t.Operator.Reveal() {
		v.add("admin.tokens.viewer", "the same token as the operator's: give each role its own")
	}
	return v.problems
}

func (v *validation) name(path, name, migration string) bool {
	switch {
	case name == "":
		v.add(path, "missing: give a short name of lower-case letters, digits, - and _")
	case !namePattern.MatchString(name):
		v.add(path, "%q: use lower-case letters, digits, - and _ only, beginning with a letter or digit", name)
	case len(migration)+len(name) > maxNames:
		v.add(path, "%q is too long: a pair's name and the migration's may have %d characters together", name, maxNames)
	default:
		return true
	}
	return false
}

// pairName also keeps pairs apart that would make objects of one name, where - and _ are the same.
func (v *validation) pairName(path, migration, name string, names map[string]string) {
	if !v.name(path+".name", name, migration) {
		return
	}
	folded := strings.ReplaceAll(name, "-", "_")
	if other, taken := names[folded]; taken {
		v.add(path+".name", "%q is too much like the name of %s: give every pair, Postgres or Redis, its own", name, other)
		return
	}
	names[folded] = path
}

// sources keeps pairs apart that would share a source database, in which what one makes, its change log and its gate, would be the other's.
func (v *validation) sources(pairs []PostgresConfig) {
	taken := map[string]int{}
	for i, p := range pairs {
		name := databaseOf(p.Source.URL.Reveal())
		if other, there := taken[name]; there && name != "" {
			v.add(fmt.Sprintf("postgres[%d].source.url", i), "leads to the same database as that of postgres[%d]: one pair moves a database; name all its tables there", other)
			continue
		}
		taken[name] = i
	}
}

// databaseOf tells the database that a URL leads to, as far as that can be told without asking; empty if it can't.
func databaseOf(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return ""
	}
	user := u.User.Username()
	return strings.ToLower(u.Hostname()) + ":" + cmp.Or(u.Port(), "5432") + "/" + cmp.Or(strings.TrimPrefix(u.Path, "/"), user)
}

func (v *validation) postgres(path, migration string, p PostgresConfig, names map[string]string) {
	v.pairName(path, migration, p.Name, names)
	v.endpoints(path, p.Source, p.Target, "postgres", "postgresql")
	switch {
	case p.Copy == "none" && p.Slot == "":
		v.add(path+".slot", "missing: copy: none needs the slot up to whose position the target was loaded")
	case p.Copy == "full" && p.Slot != "":
		v.add(path+".slot", "with copy: full the slot is made by replicator: remove it, or set copy: none if the target was loaded up to its position")
	case p.Slot != "" && p.Capture == "trigger":
		v.add(path+".slot", "capture: trigger uses no slot: remove it, or set capture: logical")
	}
	if p.CopyWorkers < 1 || p.CopyWorkers > 64 {
		v.add(path+".copy_workers", "%d is out of bounds: use 1 to 64", p.CopyWorkers)
	}
	for side, e := range p.sides() {
		if e.TLS.PinSHA256 != "" {
			v.add(path+"."+side+".tls.pin_sha256", "is for Redis: for Postgres put the server's own certificate into a file and name it by ca_file, with verify: ca")
		}
	}
	v.filter(path+".tables", p.Tables, "public.orders")
	if p.Guard.DropRetained > 0 && p.Guard.WarnRetained >= p.Guard.DropRetained {
		v.add(path+".guard.warn_retained", "%v would never warn before drop_retained acts at %v: make it smaller", p.Guard.WarnRetained, p.Guard.DropRetained)
	}
}

func (v *validation) redis(path, migration string, p RedisConfig, names map[string]string) {
	v.pairName(path, migration, p.Name, names)
	v.endpoints(path, p.Source, p.Target, "redis", "rediss")
	for i, db := range p.Databases {
		if db < 0 {
			v.add(fmt.Sprintf("%s.databases[%d]", path, i), "%d is no database: they count from 0", db)
		}
	}
	for side, e := range p.sides() {
		if e.TLS.Verify == "ca" {
			v.add(path+"."+side+".tls.verify", "ca is for Postgres: use full, none, or pin_sha256 instead")
		}
		if pin, err := hex.DecodeString(strings.ReplaceAll(e.TLS.PinSHA256, ":", "")); err != nil || (len(pin) != 0 && len(pin) != sha256.Size) {
			v.add(path+"."+side+".tls.pin_sha256", "not a SHA-256 in hex: take it from `openssl x509 -noout -fingerprint -sha256`")
		}
	}
	v.filter(path+".keys", p.Keys, "session:*")
}

func (v *validation) filter(path string, f TableFilter, example string) {
	if len(f.Include) == 0 {
		v.add(path+".include", `empty: write ["*"] for everything, or patterns such as %q`, example)
	}
	for i, p := range slices.Concat(f.Include, f.Exclude) {
		if p != "" {
			continue
		}
		at := fmt.Sprintf("%s.include[%d]", path, i)
		if i >= len(f.Include) {
			at = fmt.Sprintf("%s.exclude[%d]", path, i-len(f.Include))
		}
		v.add(at, "an empty pattern: write a name such as %q, in which * stands for anything", example)
	}
}

func (v *validation) endpoints(path string, source, target Endpoint, schemes ...string) {
	v.endpoint(path+".source", source, schemes)
	v.endpoint(path+".target", target, schemes)
	if s := source.URL; s.IsSet() && s.Reveal() == target.URL.Reveal() {
		v.add(path+".target.url", "the same as the source's: a target is another server or database")
	}
}

func (v *validation) endpoint(path string, e Endpoint, schemes []string) {
	if !e.URL.IsSet() {
		v.add(path+".url", "missing: give a URL such as %s://USER:PASSWORD@HOST:PORT/DATABASE", schemes[0])
	} else if u, err := url.Parse(e.URL.Reveal()); err != nil {
		// The parser's error would show the password.
		v.add(path+".url", "not a valid URL: write %s://USER:PASSWORD@HOST:PORT/DATABASE, with special characters in the password percent-encoded", schemes[0])
	} else if u.Scheme == "" {
		v.add(path+".url", "not a URL: write %s://USER:PASSWORD@HOST:PORT/DATABASE", schemes[0])
	} else if !slices.Contains(schemes, u.Scheme) {
		v.add(path+".url", "begins with %q: use %s", u.Scheme+":", strings.Join(schemes, ":// or ")+"://")
	}
	if e.TLS.CAFile != "" {
		if _, err := os.Stat(e.TLS.CAFile); err != nil {
			v.add(path+".tls.ca_file", "%v: mount or create that file", err)
		}
		if e.TLS.Verify == "none" {
			v.add(path+".tls.ca_file", "has no use with verify: none: remove one of them")
		}
	}
}

func (v *validation) hook(path string, h HookConfig) {
	if h.At == "" {
		v.add(path+".at", "missing: use before, switch, after or abort")
	}
	if (h.Webhook == nil) == (h.Exec == nil) {
		v.add(path, "needs exactly one of webhook and exec")
	}
	if w := h.Webhook; w != nil {
		u, err := url.Parse(w.URL.Reveal())
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			v.add(path+".webhook.url", "not a web address: write http://HOST/PATH or https://HOST/PATH")
		}
		v.timeout(path+".webhook.timeout", w.Timeout)
	}
	if e := h.Exec; e != nil {
		if len(e.Command) == 0 || e.Command[0] == "" {
			v.add(path+".exec.command", `missing: write the program and its arguments, as in ["/etc/replicator/notify.sh", "now"]`)
		}
		v.timeout(path+".exec.timeout", e.Timeout)
	}
}

func (v *validation) timeout(path string, d time.Duration) {
	if d <= 0 {
		v.add(path, "%v is out of bounds: use a time above zero, as in 5s", d)
	}
}

func (v *validation) listen(path, address string) {
	_, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		v.add(path, "%q is no address to listen on: write HOST:PORT, as in 127.0.0.1:8080, or :8080 for every interface", address)
	}
}

func sortedByLine(problems []strictyaml.Problem) []strictyaml.Problem {
	slices.SortStableFunc(problems, func(a, b strictyaml.Problem) int { return cmp.Compare(a.Line, b.Line) })
	return problems
}

func (p PostgresConfig) sides() iter.Seq2[string, Endpoint] { return sides(p.Source, p.Target) }

func (p RedisConfig) sides() iter.Seq2[string, Endpoint] { return sides(p.Source, p.Target) }

func sides(source, target Endpoint) iter.Seq2[string, Endpoint] {
	return func(yield func(string, Endpoint) bool) {
		_ = yield("source", source) && yield("target", target)
	}
}
