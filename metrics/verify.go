package metrics

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// mismatches is the result of the last verification: absent until one has finished, since zero would claim one.
type mismatches struct {
	desc *prometheus.Desc
	last atomic.Pointer[float64]
}

func newMismatches(labels prometheus.Labels) *mismatches {
	return &mismatches{desc: description("replicator_verify_mismatches", "Rows or keys that differed between the sides in the last finished verification; absent until there was one.", labels)}
}

func (m *mismatches) set(n int) {
	v := float64(n)
	m.last.Store(&v)
}

// Describe implements prometheus.Collector.
func (m *mismatches) Describe(ch chan<- *prometheus.Desc) { ch <- m.desc }

// Collect implements prometheus.Collector.
func (m *mismatches) Collect(ch chan<- prometheus.Metric) {
	if v := m.last.Load(); v != nil {
		ch <- prometheus.MustNewConstMetric(m.desc, prometheus.GaugeValue, *v)
	}
}
