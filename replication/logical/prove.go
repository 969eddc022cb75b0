package logical

import (
	"context"
	"errors"
	"fmt"

	"replicator/internal/postgres"
	"replicator/replication"
)

// ErrUnreadable says that the server can't decode the log from the slot's place on, now or ever.
var ErrUnreadable = errors.New("the server can't decode from this replication slot")

// codeInternal is the SQLSTATE of "could not map filenode … to relation OID".
const codeInternal = "XX000"

// ProveSlot finds out whether a new slot can be decoded from. Where transactions that rewrite or truncate tables commit while a slot is being made, the
// server may take an old catalog for the one that is valid at the slot's consistent point (it doesn't record what commits while it builds the first
// snapshot), and then fails with every change of such a table: seen with 15.20.
//
// A change of the catalog after the slot was made lets the server take a new snapshot of it when it decodes; ended waits for all transactions that
// were open then. What is after them is safe; what is before is decoded here. The error is ErrUnreadable if that failed; then the slot is of no use.
func ProveSlot(ctx context.Context, q querier, name, publication string, ended func(context.Context) error) error {
	if _, err := q.Exec(ctx, "ALTER PUBLICATION "+replication.QuoteIdent(publication)+" SET "+published); err != nil {
		return fmt.Errorf("alter publication %q: %w", publication, err)
	}
	if err := ended(ctx); err != nil {
		return err
	}
	_, err := q.Exec(ctx, `SELECT count(*) FROM pg_catalog.pg_logical_slot_peek_binary_changes($1, pg_catalog.pg_current_wal_flush_lsn(), NULL, 'proto_version', '1', 'publication_names', $2)`,
		name, publication)
	switch postgres.Code(err) {
	case codeInternal:
		return fmt.Errorf("%w %q: %w", ErrUnreadable, name, err)
	case postgres.CodeInsufficientPriv:
		return nil // nobody else may decode here: the stream will show it
	}
	if err != nil {
		return fmt.Errorf("decode from replication slot %q: %w", name, err)
	}
	return nil
}
