package schema

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	"replicator/replication"
)

// Fingerprint describes the part of a catalog that matters for replication and for the application: schemas, tables, columns, constraints,
// indexes, types, sequences' parameters, views, functions, triggers, rules, policies and extensions. Whether triggers are enabled,
// constraints validated, replica identities and sequences' values isn't part of it: we change these ourselves. Our own objects aren't either.
type Fingerprint struct {
	// Items is sorted by kind, schema, table and name.
	Items []Item `json:"items"`
	// Major is the server's major version: definitions of different versions may be spelled differently.
	Major int `json:"major"`
}

// Item is one object of a Fingerprint.
type Item struct {
	Kind       string `json:"kind"`
	Schema     string `json:"schema"`
	Table      string `json:"table,omitempty"` // the relation it belongs to: of a column, constraint, index, trigger, rule, policy
	Name       string `json:"name"`
	Definition string `json:"definition,omitempty"`
	// Inherited parts follow from the same part of a partitioned or inherited parent, and are changed there. Not compared.
	Inherited bool `json:"inherited,omitempty"`
	// Column is set for columns, whose Definition is empty.
	Column *ColumnDefinition `json:"column,omitempty"`
}

// ColumnDefinition is a column as ALTER TABLE would make it. Expressions and types are spelled as under an empty search_path.
type ColumnDefinition struct {
	Type      string `json:"type"`
	Collation string `json:"collation,omitempty"` // quoted; empty: the type's own
	NotNull   bool   `json:"not_null,omitempty"`
	Default   string `json:"default,omitempty"`   // or the expression of a generated column
	Identity  string `json:"identity,omitempty"`  // a, d or empty
	Generated string `json:"generated,omitempty"` // s (stored), v (virtual) or empty
	// Missing is the value, as a one-element array literal, that rows from before the column was added read. Rank is the column's place
	// among the live ones, from 1. Both serve to find the right statement and aren't compared.
	Missing string `json:"missing,omitempty"`
	Rank    int    `json:"rank,omitempty"`
}

// Kinds of items.
const (
	KindSchema     = "schema"
	KindTable      = "table"
	KindColumn     = "column"
	KindConstraint = "constraint"
	KindIndex      = "index"
	KindType       = "type"
	KindSequence   = "sequence"
	KindView       = "view"
	KindFunction   = "function"
	KindTrigger    = "trigger"
	KindRule       = "rule"
	KindPolicy     = "policy"
	KindExtension  = "extension"
)

// notExtension is the condition that an object isn't an extension's.
func notExtension(catalog, oid string) string {
	return `NOT EXISTS (SELECT FROM pg_depend x WHERE x.classid = '` + catalog + `'::regclass AND x.objid = ` + oid + ` AND x.deptype = 'e')`
}

// readFingerprint reads all items in one statement, hence one snapshot. The pg_get_… functions look at the catalog as of now; they
// return null for what is gone, and what was changed since shows in the next reading.
var readFingerprint = `
WITH rel AS MATERIALIZED (
  SELECT c.oid, n.nspname, c.relname, c.relkind, c.relpersistence, c.relispartition, c.relpartbound, c.relrowsecurity, c.relforcerowsecurity
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm', 'c') AND c.relpersistence <> 't' AND ` + applicationSchema + ` AND ` + notExtension("pg_class", "c.oid") + `
)
SELECT 'version', '', '', current_setting('server_version_num'), '', NULL::text[], NULL::text[], false
UNION ALL
SELECT 'schema', n.nspname::text, '', n.nspname::text, '', NULL, NULL, false
FROM pg_namespace n WHERE ` + applicationSchema + ` AND ` + notExtension("pg_namespace", "n.oid") + `
UNION ALL
SELECT 'table', r.nspname, r.relname, r.relname,
  concat_ws(' ', r.relkind, r.relpersistence, pg_get_partkeydef(r.oid), pg_get_expr(r.relpartbound, r.oid), CASE WHEN r.relrowsecurity THEN 'rls' END,
    CASE WHEN r.relforcerowsecurity THEN 'forced' END,
    (SELECT 'of ' || string_agg(format('%I.%I', pn.nspname, pc.relname), ', ' ORDER BY i.inhseqno)
     FROM pg_inherits i JOIN pg_class pc ON pc.oid = i.inhparent JOIN pg_namespace pn ON pn.oid = pc.relnamespace WHERE i.inhrelid = r.oid)),
  a.schemas, a.names, false
FROM rel r LEFT JOIN LATERAL (
  SELECT array_agg(pn.nspname::text) AS schemas, array_agg(pc.relname::text) AS names
  FROM pg_partition_ancestors(CASE WHEN r.relispartition THEN r.oid END) anc
  JOIN pg_class pc ON pc.oid = anc AND pc.oid <> r.oid JOIN pg_namespace pn ON pn.oid = pc.relnamespace) a ON true
WHERE r.relkind IN ('r', 'p', 'f')
UNION ALL
SELECT 'column', r.nspname, r.relname, a.attname, jsonb_build_object('type', format_type(a.atttypid, a.atttypmod), 'not_null', a.attnotnull,
    'collation', CASE WHEN a.attcollation <> ty.typcollation THEN (SELECT format('%I.%I', cn.nspname, co.collname)
      FROM pg_collation co JOIN pg_namespace cn ON cn.oid = co.collnamespace WHERE co.oid = a.attcollation) END,
    'default', pg_get_expr(d.adbin, d.adrelid), 'identity', a.attidentity, 'generated', a.attgenerated,
    'missing', CASE WHEN a.atthasmissing THEN a.attmissingval::text
      WHEN r.relkind = 'p' THEN (SELECT leaf.attmissingval::text FROM pg_partition_tree(r.oid) pt JOIN pg_attribute leaf ON leaf.attrelid = pt.relid
                                 WHERE pt.isleaf AND leaf.attname = a.attname AND leaf.atthasmissing LIMIT 1) END,
    'rank', row_number() OVER (PARTITION BY a.attrelid ORDER BY a.attnum))::text, NULL, NULL, a.attinhcount > 0
FROM rel r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped JOIN pg_type ty ON ty.oid = a.atttypid
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE r.relkind IN ('r', 'p', 'f', 'c')
UNION ALL
SELECT 'constraint', r.nspname, r.relname, c.conname, pg_get_constraintdef(c.oid), NULL, NULL, c.coninhcount > 0 OR c.conparentid <> 0
FROM rel r JOIN pg_constraint c ON c.conrelid = r.oid
WHERE c.contype IN ('p', 'u', 'x', 'f', 'c') AND (c.conparentid = 0 OR c.contype <> 'f')
UNION ALL
SELECT 'index', r.nspname, r.relname, i.relname, pg_get_indexdef(x.indexrelid), NULL, NULL, i.relispartition
FROM rel r JOIN pg_index x ON x.indrelid = r.oid JOIN pg_class i ON i.oid = x.indexrelid
WHERE NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = x.indexrelid AND c.conrelid = r.oid AND c.contype IN ('p', 'u', 'x'))
UNION ALL
SELECT 'trigger', r.nspname, r.relname, t.tgname, pg_get_triggerdef(t.oid), NULL, NULL, t.tgparentid <> 0
FROM rel r JOIN pg_trigger t ON t.tgrelid = r.oid JOIN pg_proc tf ON tf.oid = t.tgfoid
WHERE NOT t.tgisinternal AND tf.pronamespace IS DISTINCT FROM to_regnamespace('replicator')
UNION ALL
SELECT 'rule', r.nspname, r.relname, w.rulename, pg_get_ruledef(w.oid), NULL, NULL, false
FROM rel r JOIN pg_rewrite w ON w.ev_class = r.oid WHERE w.rulename <> '_RETURN'
UNION ALL
SELECT 'policy', r.nspname, r.relname, p.polname, concat_ws(' ', p.polcmd, p.polpermissive, pg_get_expr(p.polqual, p.polrelid), '/', pg_get_expr(p.polwithcheck, p.polrelid)), NULL, NULL, false
FROM rel r JOIN pg_policy p ON p.polrelid = r.oid
UNION ALL
SELECT 'view', r.nspname, '', r.relname, r.relkind::text || ' ' || pg_get_viewdef(r.oid), NULL, NULL, false
FROM rel r WHERE r.relkind IN ('v', 'm')
UNION ALL
SELECT 'type', n.nspname, '', t.typname, CASE t.typtype
    WHEN 'e' THEN 'enum ' || (SELECT coalesce(jsonb_agg(e.enumlabel ORDER BY e.enumsortorder), '[]')::text FROM pg_enum e WHERE e.enumtypid = t.oid)
    WHEN 'd' THEN concat_ws(' ', 'domain', format_type(t.typbasetype, t.typtypmod), CASE WHEN t.typnotnull THEN 'NOT NULL' END, 'DEFAULT ' || t.typdefault,
      (SELECT string_agg(c.conname || ' ' || pg_get_constraintdef(c.oid), ' ' ORDER BY c.conname) FROM pg_constraint c WHERE c.contypid = t.oid AND c.contype = 'c'))
    WHEN 'r' THEN 'range ' || (SELECT format_type(g.rngsubtype, NULL) FROM pg_range g WHERE g.rngtypid = t.oid)
    ELSE 'composite' END, NULL, NULL, false
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE ` + applicationSchema + ` AND (t.typtype IN ('e', 'd', 'r') OR t.typtype = 'c' AND EXISTS (SELECT FROM pg_class c WHERE c.oid = t.typrelid AND c.relkind = 'c'))
  AND ` + notExtension("pg_type", "t.oid") + `
UNION ALL
SELECT 'sequence', n.nspname, '', c.relname, concat_ws(' ', format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle), NULL, NULL, false
FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relpersistence <> 't' AND ` + applicationSchema + ` AND ` + notExtension("pg_class", "c.oid") + `
UNION ALL
SELECT 'function', n.nspname, '', p.proname || '(' || oidvectortypes(p.proargtypes) || ')',
  CASE WHEN p.prokind = 'a' THEN (SELECT concat_ws(' ', 'aggregate', g.aggtransfn, g.aggfinalfn, g.agginitval) FROM pg_aggregate g WHERE g.aggfnoid = p.oid)
       ELSE encode(sha256(convert_to(pg_get_functiondef(p.oid), 'UTF8')), 'hex') END, NULL, NULL, false
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE ` + applicationSchema + ` AND ` + notExtension("pg_proc", "p.oid") + `
UNION ALL
SELECT 'extension', n.nspname, '', e.extname, e.extversion, NULL, NULL, false FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace`

// ReadFingerprint reads the catalog. The filter leaves out tables, with all that belongs to them, that aren't replicated. It locks
// nothing and takes one round trip.
func ReadFingerprint(ctx context.Context, q Querier, f Filter) (Fingerprint, error) {
	fp, err := readItems(ctx, q, f)
	if err != nil {
		return Fingerprint{}, fmt.Errorf("read the catalog's fingerprint: %w", err)
	}
	return fp, nil
}

func readItems(ctx context.Context, q Querier, f Filter) (Fingerprint, error) {
	var fp Fingerprint
	rows, err := q.Query(ctx, readFingerprint)
	if err != nil {
		return fp, err
	}
	defer rows.Close()
	out := map[[2]string]bool{} // tables that the filter leaves out
	for rows.Next() {
		var i Item
		var definition *string
		var schemas, names []string
		if err := rows.Scan(&i.Kind, &i.Schema, &i.Table, &i.Name, &definition, &schemas, &names, &i.Inherited); err != nil {
			return fp, err
		}
		if i.Kind == "version" {
			n, err := strconv.Atoi(i.Name)
			if err != nil {
				return fp, fmt.Errorf("the server's version is %q", i.Name)
			}
			fp.Major = n / 10000
			continue
		}
		if definition != nil {
			i.Definition = *definition
		}
		if i.Kind == KindTable {
			var above []replication.TableName
			for n := range names {
				above = append(above, replication.TableName{Schema: schemas[n], Name: names[n]})
			}
			if !f.Match(replication.TableName{Schema: i.Schema, Name: i.Name}, above...) {
				out[[2]string{i.Schema, i.Name}] = true
			}
		}
		if i.Kind == KindColumn {
			i.Column = new(ColumnDefinition)
			if err := json.Unmarshal([]byte(i.Definition), i.Column); err != nil {
				return fp, err
			}
			i.Definition = ""
		}
		fp.Items = append(fp.Items, i)
	}
	if err := rows.Err(); err != nil {
		return fp, err
	}
	fp.Items = slices.DeleteFunc(fp.Items, func(i Item) bool { return i.Table != "" && out[[2]string{i.Schema, i.Table}] })
	slices.SortFunc(fp.Items, Item.compare)
	return fp, nil
}

func (i Item) compare(j Item) int {
	return cmp.Or(cmp.Compare(i.Kind, j.Kind), cmp.Compare(i.Schema, j.Schema), cmp.Compare(i.Table, j.Table), cmp.Compare(i.Name, j.Name))
}

// comparable returns the item without what isn't compared.
func (i Item) comparable() Item {
	i.Inherited = false
	if i.Column != nil {
		c := *i.Column
		c.Missing, c.Rank = "", 0
		i.Column = &c
	}
	return i
}

// Hash returns a digest of all that is compared, the same for equal catalogs on the same version.
func (f Fingerprint) Hash() string {
	h := sha256.New()
	enc := json.NewEncoder(h)
	for _, i := range f.Items {
		_ = enc.Encode(i.comparable()) // a hash takes every write
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Changed returns what differs between two readings of the same database, as "kind schema.table.name": what was dropped, made or
// altered meanwhile. Empty: nothing. A cutover compares the readings at the freeze and after the drain by it.
func (f Fingerprint) Changed(later Fingerprint) []string {
	var out []string
	merge(f.Items, later.Items, func(a, b *Item) {
		switch {
		case b == nil:
			out = append(out, "dropped "+a.String())
		case a == nil:
			out = append(out, "made "+b.String())
		case !a.equal(*b):
			out = append(out, "altered "+a.String())
		}
	})
	return out
}

// String names the object.
func (i Item) String() string {
	switch {
	case i.Kind == KindTable || i.Table == "" && i.Kind != KindSchema && i.Kind != KindExtension:
		return i.Kind + " " + i.Schema + "." + i.Name
	case i.Table == "":
		return i.Kind + " " + i.Name
	}
	return i.Kind + " " + i.Schema + "." + i.Table + "." + i.Name
}

func (i Item) equal(j Item) bool {
	if (i.Column == nil) != (j.Column == nil) {
		return false
	}
	if i.Column != nil {
		return *i.comparable().Column == *j.comparable().Column
	}
	return i.Definition == j.Definition
}

// merge walks two sorted lists at once; a or b is nil where only the other list has the item.
func merge(as, bs []Item, f func(a, b *Item)) {
	for len(as) > 0 || len(bs) > 0 {
		var c int
		switch {
		case len(as) == 0:
			c = 1
		case len(bs) == 0:
			c = -1
		default:
			c = as[0].compare(bs[0])
		}
		switch {
		case c < 0:
			f(&as[0], nil)
			as = as[1:]
		case c > 0:
			f(nil, &bs[0])
			bs = bs[1:]
		default:
			f(&as[0], &bs[0])
			as, bs = as[1:], bs[1:]
		}
	}
}
