package metrics

import (
	"math"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// CutoverPhases are the values of the label phase, in the order in which a cutover goes through them.
var CutoverPhases = []string{
	"idle", "preflight", "hooks", "freeze", "fence", "drain", "sequences", "verify", "arm", "switch", "done", "aborting", "aborted",
}

// CutoverOutcomes are the values of the label outcome.
var CutoverOutcomes = []string{"done", "aborted", "rolled_back"}

// Cutover shows where the cutover stands and how attempts ended.
type Cutover struct {
	phase  *prometheus.GaugeVec
	freeze *freezeSeconds
	total  *prometheus.CounterVec
}

// NewCutover builds the coordinator's metrics and registers them, with phase "idle".
func NewCutover(reg prometheus.Registerer) *Cutover {
	c := &Cutover{
		phase: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "replicator_cutover_phase",
			Help: "1 for the phase that the cutover is in, 0 for all others.",
		}, []string{"phase"}),
		freeze: &freezeSeconds{desc: description("replicator_cutover_freeze_seconds", "How long the last cutover attempt kept the application from writing; absent until one did.", nil)},
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "replicator_cutover_total",
			Help: "Cutover attempts that have ended, by outcome (a rollback that went through counts as rolled_back).",
		}, []string{"outcome"}),
	}
	for _, o := range CutoverOutcomes {
		c.total.WithLabelValues(o)
	}
	c.SetPhase("idle")
	register(reg, c.phase, c.freeze, c.total)
	return c
}

// SetPhase shows the named phase and no other.
func (c *Cutover) SetPhase(phase string) {
	if c == nil {
		return
	}
	// The new phase first: a scrape in between sees two rather than none, and alerts on "no phase" stay quiet.
	c.phase.WithLabelValues(phase).Set(1)
	for _, p := range CutoverPhases {
		if p != phase {
			c.phase.WithLabelValues(p).Set(0)
		}
	}
}

// SetFreezeSeconds records how long writes were, or so far are, held back in the present attempt.
func (c *Cutover) SetFreezeSeconds(s float64) {
	if c == nil {
		return
	}
	c.freeze.bits.Store(math.Float64bits(s))
	c.freeze.known.Store(true)
}

// Finished counts an attempt that ended: done, aborted or rolled_back.
func (c *Cutover) Finished(outcome string) {
	if c == nil {
		return
	}
	c.total.WithLabelValues(outcome).Inc()
}

type freezeSeconds struct {
	desc  *prometheus.Desc
	bits  atomic.Uint64
	known atomic.Bool
}

// Describe implements prometheus.Collector.
func (f *freezeSeconds) Describe(ch chan<- *prometheus.Desc) { ch <- f.desc }

// Collect implements prometheus.Collector.
func (f *freezeSeconds) Collect(ch chan<- prometheus.Metric) {
	if f.known.Load() {
		ch <- prometheus.MustNewConstMetric(f.desc, prometheus.GaugeValue, math.Float64frombits(f.bits.Load()))
	}
}

// Leader shows whether this process leads its migration or stands by.
type Leader struct{ gauge prometheus.Gauge }

// NewLeader builds the gauge, at 0, and registers it.
func NewLeader(reg prometheus.Registerer) *Leader {
	l := &Leader{gauge: prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "replicator_leader",
		Help: "1 if this process leads its migration, 0 if it stands by to take over.",
	})}
	register(reg, l.gauge)
	return l
}

// Set shows whether this process leads.
func (l *Leader) Set(leads bool) {
	if l == nil {
		return
	}
	if leads {
		l.gauge.Set(1)
	} else {
		l.gauge.Set(0)
	}
}

// NewBuild registers replicator_build_info, whose labels tell which program is running; its value is always 1.
func NewBuild(reg prometheus.Registerer, version, goVersion string) {
	register(reg, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "replicator_build_info",
		Help:        "Always 1; the labels tell which build is running.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": goVersion},
	}, func() float64 { return 1 }))
}
