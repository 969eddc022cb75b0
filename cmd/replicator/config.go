package main

import (
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"
)

// Config is one migration: what the YAML file or the environment says, over the defaults. docs/config.md describes every key, and
// deploy/replicator.example.yml shows all of them with their defaults.
type Config struct {
	// Migration names the migration in everything that is made on either side.
	Migration string           `yaml:"migration"`
	Log       LogConfig        `yaml:"log"`
	Postgres  []PostgresConfig `yaml:"postgres"`
	Redis     []RedisConfig    `yaml:"redis"`
	Cutover   CutoverConfig    `yaml:"cutover"`
	Admin     AdminConfig      `yaml:"admin"`
	Metrics   MetricsConfig    `yaml:"metrics"`
	Tools     ToolsConfig      `yaml:"tools"`
}

// LogConfig says how the process logs, on standard error.
type LogConfig struct {
	Format LogFormat `yaml:"format"`
	Level  LogLevel  `yaml:"level"`
}

// PostgresConfig is one Postgres pair.
type PostgresConfig struct {
	Name    string   `yaml:"name"`
	Source  Endpoint `yaml:"source"`
	Target  Endpoint `yaml:"target"`
	Capture Capture  `yaml:"capture"`
	Copy    CopyMode `yaml:"copy"`
	// Slot is an existing slot to adopt, with copy: none; empty means made and removed by us.
	Slot   string      `yaml:"slot"`
	Tables TableFilter `yaml:"tables"`
	// CopyWorkers is how many tables, or parts of tables, are copied at once; each takes a connection on both sides.
	CopyWorkers int         `yaml:"copy_workers"`
	Guard       GuardConfig `yaml:"guard"`
}

// RedisConfig is one Redis pair.
type RedisConfig struct {
	Name   string   `yaml:"name"`
	Source Endpoint `yaml:"source"`
	Target Endpoint `yaml:"target"`
	// Notifications says whether keyspace notifications are listened to beside the broadcast of changed keys.
	Notifications Notifications `yaml:"notifications"`
	// Databases are those that belong to the migration; empty means all that either side has.
	Databases []int       `yaml:"databases"`
	Keys      TableFilter `yaml:"keys"`
}

// Endpoint is where one side of a pair is reached.
type Endpoint struct {
	URL Secret    `yaml:"url"`
	TLS TLSConfig `yaml:"tls"`
}

// TLSConfig says how a side's certificate is verified. Empty leaves it to the URL; a URL that says nothing either is encrypted and
// not verified on any host but this one.
type TLSConfig struct {
	Verify TLSVerify `yaml:"verify"`
	// CAFile is a PEM file with the authorities to trust; empty means those of the system.
	CAFile string `yaml:"ca_file"`
	// PinSHA256 is the SHA-256 of the certificate, in hex; it replaces every other verification.
	PinSHA256 string `yaml:"pin_sha256"`
}

// TableFilter picks names by patterns in which * stands for anything.
type TableFilter struct {
	Include []string `yaml:"include"`
	Exclude []string `yaml:"exclude"`
}

// GuardConfig bounds what the source keeps on disk for a pair, in bytes.
type GuardConfig struct {
	// WarnRetained raises a problem; 0 never does.
	WarnRetained Size `yaml:"warn_retained"`
	// DropRetained stops the pair and gives the source its disk back, after which the pair must be copied anew; 0 never does.
	DropRetained Size `yaml:"drop_retained"`
}

// CutoverConfig bounds the freeze and names what is called at it.
type CutoverConfig struct {
	FreezeBudget time.Duration `yaml:"freeze_budget"`
	Verify       VerifyMode    `yaml:"verify"`
	Hooks        []HookConfig  `yaml:"hooks"`
}

// HookConfig is one call at a moment of the cutover: exactly one of Webhook and Exec is set.
type HookConfig struct {
	At      HookMoment     `yaml:"at"`
	Webhook *WebhookConfig `yaml:"webhook"`
	Exec    *ExecConfig    `yaml:"exec"`
}

// WebhookConfig is a signed HTTP POST; any 2xx answer is success.
type WebhookConfig struct {
	URL     Secret        `yaml:"url"`
	Secret  Secret        `yaml:"secret"`
	Timeout time.Duration `yaml:"timeout"`
}

// ExecConfig is a program that gets the hook's document on standard input; exit status 0 is success.
type ExecConfig struct {
	Command []string `yaml:"command"`
	// Env is added to the program's environment, which otherwise holds no secret.
	Env     map[string]Secret `yaml:"env"`
	Timeout time.Duration     `yaml:"timeout"`
}

// AdminConfig is the admin listener: the API and the status page.
type AdminConfig struct {
	Listen string       `yaml:"listen"`
	Tokens TokensConfig `yaml:"tokens"`
	// Pprof serves /debug/pprof/ to operators.
	Pprof bool `yaml:"pprof"`
}

// TokensConfig are the bearer tokens of the roles; without an operator token no action is served.
type TokensConfig struct {
	Operator Secret `yaml:"operator"`
	Viewer   Secret `yaml:"viewer"`
}

// MetricsConfig is the metrics listener: /metrics, /healthz, /readyz.
type MetricsConfig struct {
	Listen string `yaml:"listen"`
}

// ToolsConfig names the programs of PostgreSQL's client that are started.
type ToolsConfig struct {
	// PgDump is a name or path; empty takes the newest that is installed.
	PgDump string `yaml:"pg_dump"`
}

// defaults returns the configuration that an empty file means. It is the only place that knows a default of the whole migration;
// those of a list's elements are in elementDefaults.
func defaults() Config {
	return Config{
		Log:     LogConfig{Format: "text", Level: "info"},
		Cutover: CutoverConfig{FreezeBudget: 30 * time.Second, Verify: "frozen"},
		Admin:   AdminConfig{Listen: "127.0.0.1:8080"},
		Metrics: MetricsConfig{Listen: "127.0.0.1:9464"},
	}
}

func defaultPostgres() PostgresConfig {
	return PostgresConfig{
		Capture:     "auto",
		Copy:        "full",
		Tables:      TableFilter{Include: []string{"*"}},
		CopyWorkers: 4,
		Guard:       GuardConfig{WarnRetained: 8 << 30, DropRetained: 100 << 30},
	}
}

func defaultRedis() RedisConfig {
	return RedisConfig{Notifications: "auto", Keys: TableFilter{Include: []string{"*"}}}
}

// elementDefaults returns what an element of a list, or an optional part, starts from.
func elementDefaults(path string) any {
	switch path {
	case "postgres":
		return defaultPostgres()
	case "redis":
		return defaultRedis()
	case "cutover.hooks.webhook":
		return WebhookConfig{Timeout: 5 * time.Second}
	case "cutover.hooks.exec":
		return ExecConfig{Timeout: 30 * time.Second}
	}
	return nil
}

// word is a value out of a fixed set.
func word[T ~string](into *T, text []byte, allowed ...T) error {
	for _, a := range allowed {
		if string(a) == string(text) {
			*into = a
			return nil
		}
	}
	var b strings.Builder
	for i, a := range allowed {
		switch {
		case i == 0:
		case i == len(allowed)-1:
			b.WriteString(" or ")
		default:
			b.WriteString(", ")
		}
		b.WriteString(string(a))
	}
	return fmt.Errorf("%q is not known here: use %s", text, b.String())
}

// The words of the configuration, each with the values it may take.
type (
	// LogFormat is text or json.
	LogFormat string
	// LogLevel is the least that is logged: debug, info, warn or error.
	LogLevel string
	// Capture is how changes are read from the source: auto, logical or trigger.
	Capture string
	// CopyMode is full, or none where the target was loaded by other means up to the slot's position.
	CopyMode string
	// Notifications is auto (where the server has them switched on) or off.
	Notifications string
	// TLSVerify is full (chain and name), ca (chain only) or none (encrypted, not verified); empty leaves it to the URL.
	TLSVerify string
	// VerifyMode is when a cutover compares both sides: frozen (every row and key, while writes are held), calm (before the freeze
	// only) or off.
	VerifyMode string
	// HookMoment is before, switch, after or abort.
	HookMoment string
)

// UnmarshalText implements encoding.TextUnmarshaler.
func (v *LogFormat) UnmarshalText(b []byte) error { return word(v, b, "text", "json") }

// UnmarshalText implements encoding.TextUnmarshaler.
func (v *LogLevel) UnmarshalText(b []byte) error { return word(v, b, "debug", "info", "warn", "error") }

// Level implements slog.Leveler.
func (v LogLevel) Level() slog.Level {
	var l slog.Level
	if l.UnmarshalText([]byte(v)) != nil {
		return slog.LevelInfo
	}
	return l
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (v *Capture) UnmarshalText(b []byte) error { return word(v, b, "auto", "logical", "trigger") }

// UnmarshalText implements encoding.TextUnmarshaler.
func (v *CopyMode) UnmarshalText(b []byte) error { return word(v, b, "full", "none") }

// UnmarshalText implements encoding.TextUnmarshaler.
func (v *Notifications) UnmarshalText(b []byte) error { return word(v, b, "auto", "off") }

// UnmarshalText implements encoding.TextUnmarshaler.
func (v *TLSVerify) UnmarshalText(b []byte) error { return word(v, b, "full", "ca", "none") }

// UnmarshalText implements encoding.TextUnmarshaler.
func (v *VerifyMode) UnmarshalText(b []byte) error { return word(v, b, "frozen", "calm", "off") }

// UnmarshalText implements encoding.TextUnmarshaler.
func (v *HookMoment) UnmarshalText(b []byte) error {
	return word(v, b, "before", "switch", "after", "abort")
}

// Size is a number of bytes, written as a whole number with an optional unit: kB, MB, GB, TB (thousands) or KiB, MiB, GiB, TiB.
type Size int64

var sizeUnits = []struct {
	name  string
	bytes int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1},
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Size) UnmarshalText(b []byte) error {
	digits, factor := string(b), int64(1)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(digits, u.name); ok {
			digits, factor = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/factor {
		return fmt.Errorf("%q is not a size: write a whole number with its unit, as in 500MB or 8GiB", b)
	}
	*s = Size(n * factor)
	return nil
}

// String returns the size in the largest unit that leaves it whole.
func (s Size) String() string {
	for _, u := range sizeUnits {
		if int64(s) >= u.bytes && int64(s)%u.bytes == 0 && u.bytes > 1 {
			return strconv.FormatInt(int64(s)/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}
