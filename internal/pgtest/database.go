package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// databases remembers the roles made for each database, which can only be dropped after it.
type databases struct {
	grants sync.Mutex // held while a parameter's grants change: its entry in the catalog comes with the first and goes with the last, and the server refuses changes of one at once
	sync.Mutex
	roles map[string][]string
}

// Database creates an empty database and returns the superuser's URL of it. When the test is done it is dropped with what would
// hinder that: sessions, replication slots and prepared transactions in it, and the roles made for it.
func (s *Server) Database(t TB) string {
	t.Helper()
	name := "test_" + strings.ToLower(rand.Text()[:10])
	Exec(t, s.URL("postgres"), "create database "+name)
	t.Cleanup(func() {
		if s.Pid() == 0 {
			return // the test ended the server
		}
		if err := s.drop(name); err != nil {
			t.Errorf("drop the database %s: %v", name, err)
		}
	})
	return s.URL(name)
}

const (
	listPrepared   = `select gid from pg_prepared_xacts where database = current_database()`
	endSlots       = `select pg_terminate_backend(active_pid) from pg_replication_slots where database = $1 and active`
	dropSlots      = `select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = $1 and not active`
	remainingSlots = `select count(*) from pg_replication_slots where database = $1`
)

func (s *Server) drop(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := rollbackPrepared(ctx, s.URL(name)); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for remaining := -1; remaining != 0; {
		if _, err := conn.Exec(ctx, endSlots, name); err != nil {
			return fmt.Errorf("end the sessions of its slots: %w", err)
		}
		if _, err := conn.Exec(ctx, dropSlots, name); err != nil && !isObjectInUse(err) {
			return fmt.Errorf("drop its slots: %w", err)
		}
		if err := conn.QueryRow(ctx, remainingSlots, name).Scan(&remaining); err != nil {
			return fmt.Errorf("count its slots: %w", err)
		}
	}
	if _, err := conn.Exec(ctx, "drop database "+name+" with (force)"); err != nil {
		return err
	}
	s.databases.Lock()
	roles := s.databases.roles[name]
	delete(s.databases.roles, name)
	s.databases.Unlock()
	s.databases.grants.Lock()
	defer s.databases.grants.Unlock()
	for _, role := range roles {
		if _, err := conn.Exec(ctx, "drop owned by "+role+"; drop role "+role); err != nil {
			return fmt.Errorf("drop the role %s: %w", role, err)
		}
	}
	return nil
}

func rollbackPrepared(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, listPrepared)
	if err != nil {
		return fmt.Errorf("list its prepared transactions: %w", err)
	}
	gids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("list its prepared transactions: %w", err)
	}
	for _, gid := range gids {
		if _, err := conn.Exec(ctx, "rollback prepared "+literal(gid)); err != nil {
			return fmt.Errorf("roll back the prepared transaction %s: %w", gid, err)
		}
	}
	return nil
}

// isObjectInUse reports whether a session took a slot between our look and our drop, or the slot went by itself.
func isObjectInUse(err error) bool {
	var state interface{ SQLState() string }
	return errors.As(err, &state) && (state.SQLState() == "55006" || state.SQLState() == "42704")
}

func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// databaseName returns the name of a database given by its name or by a URL.
func databaseName(db string) (string, error) {
	if !strings.Contains(db, "://") {
		return db, nil
	}
	u, err := url.Parse(db)
	if err != nil {
		return "", errors.New("the database's URL can't be parsed")
	}
	return strings.TrimPrefix(u.Path, "/"), nil
}
