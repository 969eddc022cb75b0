package demo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"replicator/internal/demo/shop"
	"replicator/internal/pgtest"
	"replicator/internal/redistest"
)

// Servers are the two sides: "Heroku", where the shop lives at first, and "AWS".
type Servers struct {
	SourcePostgres, TargetPostgres *pgtest.Server
	SourceRedis, TargetRedis       *redistest.Server
	// Source and Target have the URLs that both the application and replicator use, as on Heroku, where there is one credential.
	Source, Target shop.Endpoint
	// HookURL and HookSecret, if set, go into the configuration as the hook at the switch.
	HookURL, HookSecret string
}

// The roles of the two sides, without superuser. Logical capture needs REPLICATION on the side that is captured; Heroku gives none.
var (
	replicatingRole = []string{
		"CREATE ROLE shop LOGIN PASSWORD '%s' NOSUPERUSER NOCREATEROLE NOCREATEDB REPLICATION",
		"GRANT pg_signal_backend, pg_monitor TO shop",
		setReplicaRole,
	}
	herokuRole = []string{
		"CREATE ROLE shop LOGIN PASSWORD '%s' NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION",
		"GRANT pg_signal_backend, pg_monitor, pg_read_all_settings, pg_read_all_stats TO shop",
	}
)

// setReplicaRole can be granted from PostgreSQL 15 on; before, only a superuser may set it, and so the role is one there.
const setReplicaRole = "GRANT SET ON PARAMETER session_replication_role TO shop"

// ServersOptions choose the two sides.
type ServersOptions struct {
	// Capture is logical or trigger; it decides what the source's role may do.
	Capture string
	// SourceVersion and TargetVersion are major versions of Postgres; 0 means pgtest.DefaultVersion.
	SourceVersion, TargetVersion int
}

// LaunchServers starts two Postgres and two Redis below dir on free ports, with an empty database shop on each Postgres, owned by a
// role that has what the capture needs and no more.
func LaunchServers(ctx context.Context, dir string, o ServersOptions) (s *Servers, err error) {
	s = &Servers{}
	sourceRole := replicatingRole
	if o.Capture == "trigger" {
		sourceRole = herokuRole
	}
	starting, startCtx := errgroup.WithContext(ctx)
	starting.Go(func() (err error) {
		s.SourcePostgres, s.Source.PostgresURL, err = launchPostgres(startCtx, filepath.Join(dir, "heroku-postgres"), o.SourceVersion, sourceRole)
		return err
	})
	starting.Go(func() (err error) {
		s.TargetPostgres, s.Target.PostgresURL, err = launchPostgres(startCtx, filepath.Join(dir, "aws-postgres"), o.TargetVersion, replicatingRole)
		return err
	})
	starting.Go(func() (err error) {
		s.SourceRedis, err = launchRedis(startCtx, filepath.Join(dir, "heroku-redis"))
		return err
	})
	starting.Go(func() (err error) {
		s.TargetRedis, err = launchRedis(startCtx, filepath.Join(dir, "aws-redis"))
		return err
	})
	if err := starting.Wait(); err != nil {
		return nil, errors.Join(err, s.Stop(context.WithoutCancel(ctx)))
	}
	s.Source.Name, s.Source.RedisURL = "source", s.SourceRedis.URL()
	s.Target.Name, s.Target.RedisURL = "target", s.TargetRedis.URL()
	return s, nil
}

func launchPostgres(ctx context.Context, dir string, version int, role []string) (*pgtest.Server, string, error) {
	server, err := pgtest.Launch(ctx, dir, pgtest.Options{Version: version})
	if err != nil {
		return nil, "", err
	}
	admin, err := pgx.Connect(ctx, server.URL("postgres"))
	if err != nil {
		return server, "", err
	}
	defer admin.Close(ctx)
	password := rand.Text()
	for i, statement := range append(slices.Clone(role), "CREATE DATABASE shop OWNER shop") {
		if i == 0 {
			statement = fmt.Sprintf(statement, password)
		}
		if statement == setReplicaRole && server.Version() < 15 {
			statement = "ALTER ROLE shop SUPERUSER"
		}
		if _, err := admin.Exec(ctx, statement); err != nil {
			return server, "", fmt.Errorf("prepare the database: %w", err)
		}
	}
	u, err := url.Parse(server.URL("shop"))
	if err != nil {
		return server, "", err
	}
	u.User = url.UserPassword("shop", password)
	return server, u.String(), nil
}

func launchRedis(ctx context.Context, dir string) (*redistest.Server, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return redistest.Launch(ctx, dir, redistest.Options{})
}

// Stop stops all servers that run.
func (s *Servers) Stop(ctx context.Context) error {
	var errs []error
	for _, p := range []*pgtest.Server{s.SourcePostgres, s.TargetPostgres} {
		if p != nil {
			errs = append(errs, p.Stop(ctx))
		}
	}
	for _, r := range []*redistest.Server{s.SourceRedis, s.TargetRedis} {
		if r != nil {
			errs = append(errs, r.Stop(ctx))
		}
	}
	return errors.Join(errs...)
}

// Config is a configuration file and how to reach the daemon that runs with it.
type Config struct {
	// Path is the file; Env holds the secrets that it names.
	Path string
	Env  []string
	// Address is the API's, MetricsAddress the metrics listener's, as http://host:port; Token is the operator's.
	Address, MetricsAddress, Token string
}

const configFile = `# Written by replicator demo; the secrets are in the daemon's environment.
migration: shop
postgres:
  - name: main
    source: {url: "${SOURCE_DATABASE_URL}"}
    target: {url: "${TARGET_DATABASE_URL}"}
    capture: %s
redis:
  - name: main-redis
    source: {url: "${SOURCE_REDIS_URL}"}
    target: {url: "${TARGET_REDIS_URL}"}
cutover:
  freeze_budget: 30s
%sadmin: {listen: "%s", tokens: {operator: "${REPLICATOR_TOKEN}"}}
metrics: {listen: "%s"}
tools: {pg_dump: %q}
`

// WriteConfig writes the configuration of a daemon that moves the shop, with ports that are free now, into dir.
func (s *Servers) WriteConfig(dir, capture string) (Config, error) {
	listen, err := freeAddress()
	if err != nil {
		return Config{}, err
	}
	metrics, err := freeAddress()
	if err != nil {
		return Config{}, err
	}
	c := Config{
		Path: filepath.Join(dir, "replicator.yml"), Address: "http://" + listen, MetricsAddress: "http://" + metrics,
		Token: rand.Text(),
	}
	c.Env = []string{
		"SOURCE_DATABASE_URL=" + s.Source.PostgresURL, "TARGET_DATABASE_URL=" + s.Target.PostgresURL,
		"SOURCE_REDIS_URL=" + s.Source.RedisURL, "TARGET_REDIS_URL=" + s.Target.RedisURL,
		"REPLICATOR_TOKEN=" + c.Token, "HOOK_SECRET=" + s.HookSecret, "REPLICATOR_ADDR=" + c.Address,
	}
	var hooks strings.Builder
	if s.HookURL != "" {
		hooks.WriteString("  hooks:\n")
		fmt.Fprintf(&hooks, "    - at: switch\n      webhook: {url: %q, secret: \"${HOOK_SECRET}\", timeout: 5s}\n", s.HookURL)
	}
	text := fmt.Sprintf(configFile, capture, hooks.String(), listen, metrics, pgtest.PgDump(max(s.SourcePostgres.Version(), s.TargetPostgres.Version())))
	if err := os.WriteFile(c.Path, []byte(text), 0o600); err != nil {
		return Config{}, fmt.Errorf("write the configuration: %w", err)
	}
	return c, nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	return l.Addr().String(), l.Close()
}
