package metrics

import "github.com/prometheus/client_golang/prometheus"

// PostgresReading is what a Postgres pair knows at the moment of a scrape; nil means unknown and is left out.
type PostgresReading struct {
	// LagBytes is the write-ahead log that the source has written and the target has not made durable.
	LagBytes *float64
	// LagSeconds is the age of the oldest source commit that is not durable on the target, 0 if there is none.
	LagSeconds *float64
	// RetainedBytes is what the source keeps on disk for this pair: log held by the slot, or the change log's tables.
	RetainedBytes *float64
	// HorizonSeconds is the age of the oldest transaction that keeps the source's change log from being emptied, 0 if there is none;
	// only with capture by triggers.
	HorizonSeconds *float64
}

// Postgres counts what one Postgres pair does.
type Postgres struct {
	appliedRows         *prometheus.CounterVec
	appliedTransactions prometheus.Counter
	copiedRows          prometheus.Counter
	copiedBytes         prometheus.Counter
	mismatches          *mismatches
}

// appliedOps are the values of the label op that stand at zero from the start.
var appliedOps = []string{"insert", "update", "delete", "truncate"}

// NewPostgres builds the metrics of the named pair and registers them; read is called at every scrape, from the scraper's
// goroutine, and must return at once.
func NewPostgres(reg prometheus.Registerer, pair string, read func() PostgresReading) *Postgres {
	l := pairLabel(pair)
	p := &Postgres{
		appliedRows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "replicator_postgres_applied_rows_total", ConstLabels: l,
			Help: "Row changes streamed from the source and applied to the target, by operation.",
		}, []string{"op"}),
		appliedTransactions: counter("replicator_postgres_applied_transactions_total", "Source transactions applied to the target by the stream.", l),
		copiedRows:          counter("replicator_postgres_copied_rows_total", "Rows written to the target by the copy of whole tables.", l),
		copiedBytes:         counter("replicator_postgres_copied_bytes_total", "Bytes of row data carried by the copy of whole tables.", l),
		mismatches:          newMismatches(l),
	}
	for _, op := range appliedOps {
		p.appliedRows.WithLabelValues(op)
	}
	register(reg, p.appliedRows, p.appliedTransactions, p.copiedRows, p.copiedBytes, p.mismatches, readings[PostgresReading]{
		read: read,
		gauges: []reading[PostgresReading]{
			{description("replicator_postgres_lag_bytes", "Write-ahead log that the source has written and the target has not yet made durable.", l), func(r PostgresReading) *float64 { return r.LagBytes }},
			{description("replicator_postgres_lag_seconds", "Age of the oldest source commit that is not yet durable on the target; 0 if there is none.", l), func(r PostgresReading) *float64 { return r.LagSeconds }},
			{description("replicator_postgres_retained_bytes", "Disk space that the source keeps occupied for this pair (log held by the slot, or the change log).", l), func(r PostgresReading) *float64 { return r.RetainedBytes }},
			{description("replicator_postgres_horizon_seconds", "Age of the oldest transaction that keeps the source's change log from being emptied; 0 if there is none (capture by triggers only).", l), func(r PostgresReading) *float64 { return r.HorizonSeconds }},
		},
	})
	return p
}

// Applied counts row changes of one operation: insert, update, delete or truncate.
func (p *Postgres) Applied(op string, rows int) {
	if p == nil || rows <= 0 {
		return
	}
	p.appliedRows.WithLabelValues(op).Add(float64(rows))
}

// AppliedTransactions counts source transactions whose changes are committed on the target.
func (p *Postgres) AppliedTransactions(n int) {
	if p == nil || n <= 0 {
		return
	}
	p.appliedTransactions.Add(float64(n))
}

// Copied counts rows and bytes that the copy of whole tables has written.
func (p *Postgres) Copied(rows, bytes int64) {
	if p == nil {
		return
	}
	p.copiedRows.Add(float64(max(rows, 0)))
	p.copiedBytes.Add(float64(max(bytes, 0)))
}

// VerifyMismatches records how many rows the last finished verification found to differ.
func (p *Postgres) VerifyMismatches(n int) {
	if p == nil {
		return
	}
	p.mismatches.set(n)
}
