package probe

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// both looks at what the two sides have to agree on.
func (r *run) both(ctx context.Context, src, dst *side) {
	if src.system == dst.system && src.databaseOID == dst.databaseOID && src.started.Equal(dst.started) {
		r.fail("", "same-database", "correct one of the URLs", "source and target are one and the same database")
	} else {
		r.ok("", "same-database", "source and target are different databases")
	}
	if dst.major() < src.major() {
		r.fail(target, "target-older", fmt.Sprintf("take a target of version %d or newer", src.major()), "the target is of version %d, older than the source's %d", dst.major(), src.major())
	} else {
		r.ok(target, "target-older", "the target is of version %d, the source of %d", dst.major(), src.major())
	}
	switch {
	case dst.encoding == src.encoding:
		r.ok(target, "encoding", "both databases are encoded in %s", src.encoding)
	case dst.encoding != "UTF8":
		r.fail(target, "encoding", "make the target's database with ENCODING 'UTF8' TEMPLATE template0", "the target is encoded in %s, the source in %s: not every character can be stored", dst.encoding, src.encoding)
	case src.encoding == "SQL_ASCII":
		r.warn(target, "encoding", "make sure that all text of the source is valid UTF-8: what isn't will stop the copy", "the source's encoding SQL_ASCII says nothing about its text; the target is UTF8")
	default:
		r.info(target, "encoding", "nothing: text is converted", "the source is encoded in %s, the target in UTF8", src.encoding)
	}
	if dst.collate != src.collate || dst.ctype != src.ctype {
		r.warn(target, "collation", fmt.Sprintf("make the target's database with LC_COLLATE '%s' LC_CTYPE '%s' TEMPLATE template0, if the order of text matters", src.collate, src.ctype),
			"text sorts by %s/%s on the target, by %s/%s on the source", dst.collate, dst.ctype, src.collate, src.ctype)
	} else {
		r.ok(target, "collation", "both databases sort by %s", src.collate)
	}
	r.extensions(ctx, src, dst)
	r.roles(ctx, src, dst)
}

const (
	readPolicyRoles = `SELECT DISTINCT r.rolname::text FROM pg_policy p CROSS JOIN unnest(p.polroles) o JOIN pg_roles r ON r.oid = o ORDER BY 1`
	readMissing     = `SELECT n FROM unnest($1::text[]) n WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = n)`
	readMappings    = `SELECT DISTINCT srvname::text FROM pg_user_mappings ORDER BY 1`
	readPowerful    = `SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'rds_superuser' AND pg_has_role(current_user, oid, 'MEMBER'))`
	readTriggers    = `SELECT t.evtname::text FROM pg_event_trigger t JOIN pg_proc p ON p.oid = t.evtfoid JOIN pg_namespace n ON n.oid = p.pronamespace WHERE ` + applicationSchema + `
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_event_trigger'::regclass AND d.objid = t.oid AND d.deptype = 'e') ORDER BY 1`
)

// roles looks whether the target has the roles and rights that parts of the source's schema need.
func (r *run) roles(ctx context.Context, src, dst *side) {
	needed, err := column(ctx, src, readPolicyRoles)
	if err != nil {
		r.broke(source, "policy-roles", err)
		return
	}
	roles := make([]string, len(needed))
	for i, n := range needed {
		roles[i] = n.String()
	}
	switch missing, err := column(ctx, dst, readMissing, roles); {
	case err != nil:
		r.broke(target, "policy-roles", err)
	case len(missing) > 0:
		r.fail(target, "policy-roles", "CREATE ROLE … on the target for each", "row security policies name roles that the target lacks: %s", names(missing))
	default:
		r.ok(target, "policy-roles", "the target has every role that a row security policy names")
	}
	switch servers, err := column(ctx, src, readMappings); {
	case err != nil:
		r.broke(source, "user-mappings", err)
	case len(servers) > 0:
		r.warn(source, "user-mappings", "CREATE USER MAPPING on the target for its own roles, if foreign tables are used", "user mappings hold passwords and aren't carried over; there are some for the foreign servers %s", names(servers))
	default:
		r.ok(source, "user-mappings", "there are no user mappings")
	}
	triggers, err := column(ctx, src, readTriggers)
	var powerful bool
	if err == nil {
		err = dst.conn.QueryRow(ctx, readPowerful).Scan(&powerful)
	}
	switch {
	case err != nil:
		r.broke(target, "event-triggers", err)
	case len(triggers) > 0 && !powerful && !dst.superuser:
		r.fail(target, "event-triggers", "connect to the target as a superuser or a member of rds_superuser, or drop them on the source", "role %s may not make the source's event triggers: %s", dst.user, names(triggers))
	default:
		r.ok(target, "event-triggers", "the source has %d event triggers, and the target's role may make them", len(triggers))
	}
}

type extension struct {
	Name, Version, Schema string
}

const (
	readExtensions = `SELECT e.extname::text, e.extversion, n.nspname::text FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname <> 'plpgsql' ORDER BY 1`
	// An extension that is neither trusted nor free of superuser's rights needs a superuser, or the platform's own way for its master user.
	readOffered = `SELECT DISTINCT v.name::text, bool_or(NOT v.superuser OR v.trusted) OVER (PARTITION BY v.name) FROM pg_available_extension_versions v`
)

// extensions looks whether the target has, or offers, the source's extensions, in the same schema.
func (r *run) extensions(ctx context.Context, src, dst *side) {
	used, err := readExtensionList(ctx, src)
	if err != nil {
		r.broke(source, "extensions", err)
		return
	}
	have, err := readExtensionList(ctx, dst)
	if err != nil {
		r.broke(target, "extensions", err)
		return
	}
	installed := map[string]extension{}
	for _, e := range have {
		installed[e.Name] = e
	}
	offered := map[string]bool{}
	rows, err := dst.conn.Query(ctx, readOffered)
	if err == nil {
		var name string
		var free bool
		_, err = pgx.ForEachRow(rows, []any{&name, &free}, func() error { offered[name] = free; return nil })
	}
	if err != nil {
		r.broke(target, "extensions", err)
		return
	}
	var missing, privileged, elsewhere []text
	var move []string
	heroku := false
	for _, e := range used {
		heroku = heroku || e.Schema == "heroku_ext"
		at, there := installed[e.Name]
		free, available := offered[e.Name]
		switch {
		case there && at.Schema != e.Schema:
			elsewhere = append(elsewhere, text(fmt.Sprintf("%s (in %s, not %s)", e.Name, at.Schema, e.Schema)))
			move = append(move, fmt.Sprintf("CREATE SCHEMA IF NOT EXISTS %s; ALTER EXTENSION %s SET SCHEMA %s", quote(e.Schema), quote(e.Name), quote(e.Schema)))
		case there:
		case !available:
			missing = append(missing, text(e.Name))
		case !free && !dst.superuser:
			privileged = append(privileged, text(e.Name))
		}
	}
	if len(missing) > 0 {
		r.fail(target, "extension-missing", "choose a server that offers them, or drop them on the source if nothing uses them", "the target doesn't offer the extensions %s", names(missing))
	}
	if len(elsewhere) > 0 {
		r.fail(target, "extension-schema", strings.Join(move, "; "), "extensions are in another schema on the target: %s", names(elsewhere))
	}
	if len(privileged) > 0 {
		r.warn(target, "extension-privilege", "if the provider doesn't let this role (RDS: rds_superuser does), create them on the target as a role that may, in the same schema", "creating the extensions %s takes a superuser", names(privileged))
	}
	if heroku {
		r.herokuExt(ctx, dst)
	}
	if len(missing)+len(elsewhere)+len(privileged) == 0 {
		r.ok(target, "extensions", "the target has or offers all %d extensions of the source", len(used))
	}
}

const readSearchPath = `SELECT EXISTS (SELECT FROM pg_db_role_setting g, unnest(g.setconfig) c
	WHERE c LIKE 'search_path=%heroku_ext%' AND g.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database())))`

// herokuExt: Heroku puts the schema of its extensions into the search_path of its databases, and applications rely on that.
func (r *run) herokuExt(ctx context.Context, dst *side) {
	var found bool
	switch err := dst.conn.QueryRow(ctx, readSearchPath).Scan(&found); {
	case err != nil:
		r.broke(target, "heroku-ext", err)
	case found:
		r.ok(target, "heroku-ext", "extensions live in schema heroku_ext, which is in the target's search_path")
	default:
		r.warn(target, "heroku-ext", "on the target, before the cutover: ALTER DATABASE "+quote(dst.database)+` SET search_path = "$user", public, heroku_ext`,
			"extensions live in schema heroku_ext, which is made on the target too, but isn't in its search_path: statements that name their types or functions plainly would fail")
	}
}

func readExtensionList(ctx context.Context, s *side) ([]extension, error) {
	rows, err := s.conn.Query(ctx, readExtensions)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[extension])
}
