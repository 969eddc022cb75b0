package pgtest

import (
	"crypto/rand"
	"fmt"
	"strings"
)

// HerokuOwner makes a role with what Heroku gives an application's default credential, makes it the owner of the database (a name,
// or a URL as Database returns it) and returns its URL. It may create anything in the database, read all statistics and settings
// and signal sessions of ordinary roles; it may not replicate, create roles or databases, or set session_replication_role.
// Objects that another role made before stay that role's.
func (s *Server) HerokuOwner(t TB, db string) string {
	t.Helper()
	return s.owner(t, db, "heroku", "nosuperuser nocreaterole nocreatedb noreplication",
		"grant pg_signal_backend, pg_monitor, pg_read_all_settings, pg_read_all_stats to %s")
}

// RDSMaster makes a role with what RDS gives its master user as far as replicator may count on it, makes it the owner of the
// database and returns its URL: no superuser and no REPLICATION, but pg_signal_backend and, from PostgreSQL 15 on, the right to
// set session_replication_role. Before 15 only a superuser can set that on a community server.
func (s *Server) RDSMaster(t TB, db string) string {
	t.Helper()
	return s.owner(t, db, "rds", "nosuperuser nocreaterole nocreatedb noreplication",
		append([]string{"grant pg_signal_backend to %s"}, s.replicaRole()...)...)
}

// LogicalOwner makes an owner of the database who is no superuser but may replicate, as hosts other than Heroku give it, and from
// PostgreSQL 15 on set session_replication_role; it returns its URL.
func (s *Server) LogicalOwner(t TB, db string) string {
	t.Helper()
	return s.owner(t, db, "logical", "nosuperuser nocreaterole nocreatedb replication",
		append([]string{"grant pg_signal_backend, pg_monitor to %s"}, s.replicaRole()...)...)
}

func (s *Server) replicaRole() []string {
	if s.version < 15 {
		return nil
	}
	return []string{"grant set on parameter session_replication_role to %s"}
}

func (s *Server) owner(t TB, db, kind, attributes string, grants ...string) string {
	t.Helper()
	name, err := databaseName(db)
	if err != nil {
		t.Fatalf("%v", err)
	}
	role := kind + "_" + strings.ToLower(rand.Text()[:10])
	password := rand.Text()
	stored, err := verifier(password)
	if err != nil {
		t.Fatalf("%v", err)
	}
	statements := []string{
		fmt.Sprintf("create role %s login password '%s' %s", role, stored, attributes),
		fmt.Sprintf(`alter database "%s" owner to %s`, name, role),
	}
	for _, g := range grants {
		statements = append(statements, fmt.Sprintf(g, role))
	}
	if s.version < 15 {
		// From 15 on the schema public belongs to pg_database_owner.
		statements = append(statements, "alter schema public owner to "+role)
	}
	func() {
		s.databases.grants.Lock()
		defer s.databases.grants.Unlock()
		Exec(t, s.URL(name), statements...)
	}()
	s.databases.Lock()
	defer s.databases.Unlock()
	if s.databases.roles == nil {
		s.databases.roles = map[string][]string{}
	}
	s.databases.roles[name] = append(s.databases.roles[name], role)
	return s.url(role, password, name)
}
