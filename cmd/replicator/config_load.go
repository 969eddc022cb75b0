package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"replicator/internal/strictyaml"
)

// environ looks a variable up, as os.LookupEnv does.
type environ func(name string) (value string, set bool)

// configError is everything that is wrong with a configuration, one line each.
type configError struct {
	file     string // empty in environment mode
	problems []strictyaml.Problem
}

// Error returns one line per problem, in the form FILE:LINE: PATH: MESSAGE that editors can follow.
func (e *configError) Error() string {
	lines := make([]string, len(e.problems))
	for i, p := range e.problems {
		var b strings.Builder
		if e.file != "" {
			fmt.Fprintf(&b, "%s:%d: ", e.file, p.Line)
		}
		if p.Path != "" {
			b.WriteString(p.Path + ": ")
		}
		lines[i] = b.String() + p.Message
	}
	return strings.Join(lines, "\n")
}

// loadConfig reads the file, or makes a migration of the environment where file is empty. Its error is a *configError with every
// problem, except where the file can't be read.
func loadConfig(file string, env environ) (Config, error) {
	if file == "" {
		return configFromEnvironment(env)
	}
	src, err := os.ReadFile(file)
	if err != nil {
		return Config{}, fmt.Errorf("read the configuration: %w: give its path by --config, or leave --config out to configure by the environment", err)
	}
	return parseConfig(file, src, env)
}

func parseConfig(file string, src []byte, env environ) (Config, error) {
	cfg := defaults()
	refs := references{env: env, dir: filepath.Dir(file)}
	lines, problems := strictyaml.Decode(src, &cfg, refs.expand, elementDefaults)
	if len(problems) == 1 && problems[0].Path == "" {
		return Config{}, &configError{file: file, problems: problems} // not readable as YAML: that something is missing would be noise
	}
	known := make(map[string]bool, len(problems))
	for _, p := range problems {
		known[p.Path] = true
	}
	for _, p := range validate(cfg) {
		// A value that couldn't be read has been reported; that it is missing as well would be noise.
		if !known[p.Path] {
			p.Line = lines.Of(p.Path)
			problems = append(problems, p)
		}
	}
	if len(problems) > 0 {
		return Config{}, &configError{file: file, problems: sortedByLine(problems)}
	}
	return cfg, nil
}

// references replaces ${NAME} by the environment's variable and ${file:PATH} by a file's content without its final line break;
// relative paths start at the configuration file's directory. $${ stands for ${ itself.
type references struct {
	env environ
	dir string
}

func (r references) expand(text string) (string, error) {
	var out strings.Builder
	for {
		at := strings.Index(text, "${")
		if at < 0 {
			out.WriteString(text)
			return out.String(), nil
		}
		if at > 0 && text[at-1] == '$' {
			out.WriteString(text[:at-1] + "${")
			text = text[at+2:]
			continue
		}
		out.WriteString(text[:at])
		name, rest, closed := strings.Cut(text[at+2:], "}")
		if !closed {
			return "", errors.New("a ${ without its }: close it, or write $${ for the characters themselves")
		}
		value, err := r.lookup(name)
		if err != nil {
			return "", err
		}
		out.WriteString(value)
		text = rest
	}
}

func (r references) lookup(name string) (string, error) {
	if path, ok := strings.CutPrefix(name, "file:"); ok {
		if !filepath.IsAbs(path) {
			path = filepath.Join(r.dir, path)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			var pathErr *os.PathError
			if errors.As(err, &pathErr) {
				err = pathErr.Err
			}
			return "", fmt.Errorf("${%s}: %w: mount or create that file, readable for the user that replicator runs as", name, err)
		}
		return strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r"), nil
	}
	if name == "" || strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_") != "" {
		return "", fmt.Errorf("${%s} is no reference: write ${NAME} for an environment variable or ${file:PATH} for a file's content", name)
	}
	value, set := r.env(name)
	if !set {
		return "", fmt.Errorf("${%s} is not set: export %s in the environment of replicator", name, name)
	}
	return value, nil
}

// environmentVariables maps what can be configured without a file to where it goes; validation's paths are told by these names.
var environmentVariables = []struct {
	name, path string
	set        func(*Config, string) error
}{
	{"REPLICATOR_MIGRATION", "migration", func(c *Config, v string) error { c.Migration = v; return nil }},
	{"SOURCE_DATABASE_URL", "postgres[0].source.url", func(c *Config, v string) error { return postgresPair(c).Source.URL.UnmarshalText([]byte(v)) }},
	{"TARGET_DATABASE_URL", "postgres[0].target.url", func(c *Config, v string) error { return postgresPair(c).Target.URL.UnmarshalText([]byte(v)) }},
	{"SOURCE_REDIS_URL", "redis[0].source.url", func(c *Config, v string) error { return redisPair(c).Source.URL.UnmarshalText([]byte(v)) }},
	{"TARGET_REDIS_URL", "redis[0].target.url", func(c *Config, v string) error { return redisPair(c).Target.URL.UnmarshalText([]byte(v)) }},
	{"REPLICATOR_TOKEN", "admin.tokens.operator", func(c *Config, v string) error { return c.Admin.Tokens.Operator.UnmarshalText([]byte(v)) }},
	{"REPLICATOR_LISTEN", "admin.listen", func(c *Config, v string) error { c.Admin.Listen = v; return nil }},
	{"REPLICATOR_METRICS_LISTEN", "metrics.listen", func(c *Config, v string) error { c.Metrics.Listen = v; return nil }},
	{"REPLICATOR_LOG", "log.format", func(c *Config, v string) error { return c.Log.Format.UnmarshalText([]byte(v)) }},
	{"REPLICATOR_PG_DUMP", "tools.pg_dump", func(c *Config, v string) error { c.Tools.PgDump = v; return nil }},
	{"REPLICATOR_CAPTURE", "postgres[0].capture", func(c *Config, v string) error {
		if len(c.Postgres) == 0 {
			return new(Capture).UnmarshalText([]byte(v)) // nothing to capture from, but a wrong word is still told
		}
		return c.Postgres[0].Capture.UnmarshalText([]byte(v))
	}},
}

func postgresPair(c *Config) *PostgresConfig {
	if len(c.Postgres) == 0 {
		c.Postgres = []PostgresConfig{defaultPostgres()}
		c.Postgres[0].Name = "postgres"
	}
	return &c.Postgres[0]
}

func redisPair(c *Config) *RedisConfig {
	if len(c.Redis) == 0 {
		c.Redis = []RedisConfig{defaultRedis()}
		c.Redis[0].Name = "redis"
	}
	return &c.Redis[0]
}

// configFromEnvironment makes one migration of the variables; an empty one counts as not set.
func configFromEnvironment(env environ) (Config, error) {
	cfg := defaults()
	cfg.Migration = "default"
	var problems []strictyaml.Problem
	known := map[string]bool{}
	names := map[string]string{}
	for _, v := range environmentVariables {
		names[v.path] = v.name
		value, _ := env(v.name)
		if value == "" {
			continue
		}
		if err := v.set(&cfg, value); err != nil {
			problems = append(problems, strictyaml.Problem{Path: v.name, Message: err.Error()})
			known[v.path] = true
		}
	}
	for _, p := range validate(cfg) {
		if known[p.Path] {
			continue
		}
		if p.Path == "" {
			p.Message = "nothing to replicate: set SOURCE_DATABASE_URL and TARGET_DATABASE_URL, or SOURCE_REDIS_URL and TARGET_REDIS_URL, or both pairs; or name a file by --config"
		} else if name, ok := names[p.Path]; ok {
			p.Path = name
		}
		problems = append(problems, p)
	}
	if len(problems) > 0 {
		return Config{}, &configError{problems: problems}
	}
	return cfg, nil
}
