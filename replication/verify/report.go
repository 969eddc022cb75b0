package verify

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/replication"
)

// Opener opens a session inside a transaction that has the right snapshot; release ends both. It is called Workers times a side
// for each Compare; all sessions of a side must see the same contents, so the transactions are REPEATABLE READ on one exported
// snapshot, or on a database that doesn't change. Compare makes settings LOCAL to that transaction.
type Opener func(ctx context.Context) (conn *pgx.Conn, release func(), err error)

// Options bound a comparison.
type Options struct {
	// Workers is the number of sessions on each side; 0 is 2.
	Workers int
	// MaxKeys bounds the differences listed for a table; 0 is 100.
	MaxKeys int
	// OnTable, if set, hears each table's result as it comes, never twice at once.
	OnTable func(TableResult)

	rangePages int64 // tests cut small tables
}

// Report is the outcome for all tables, in the order they were given.
type Report struct {
	Tables []TableResult `json:"tables"`
	// Mismatches counts the differing rows found, at least one for each unequal table; where a table's result is Truncated there are more.
	Mismatches int `json:"mismatches"`
}

// TableResult is the outcome for one table.
type TableResult struct {
	Table       replication.TableName `json:"table"`
	SourceRows  int64                 `json:"source_rows"`
	TargetRows  int64                 `json:"target_rows"`
	Equal       bool                  `json:"equal"`
	Differences []Difference          `json:"differences,omitempty"`
	// Truncated: there may be more differences than are listed.
	Truncated bool          `json:"truncated,omitempty"`
	Elapsed   time.Duration `json:"elapsed_ns"`
}

// Kind says what is wrong with a row.
type Kind string

// The kinds of differences: Missing on the target, Extra on the target, or Different in some column.
const (
	Missing   Kind = "missing"
	Extra     Kind = "extra"
	Different Kind = "different"
)

// Difference is one row that isn't the same on both sides. Key is the text of its key (for a key of several columns the text of the row of
// them, as in (1,x)); for a table without key it is the row's hash and how many too many or too few there are. Other
// columns' values never appear.
type Difference struct {
	Kind Kind   `json:"kind"`
	Key  string `json:"key"`
}
