package metrics

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// bundle is a set of collectors that is registered, described and collected as one.
type bundle []prometheus.Collector

// Describe implements prometheus.Collector.
func (b bundle) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range b {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (b bundle) Collect(ch chan<- prometheus.Metric) {
	for _, c := range b {
		c.Collect(ch)
	}
}

// register puts the collectors on reg. A component that is built a second time in one process (a pair that starts anew) replaces
// its predecessor: counters start again from zero, which Prometheus's rate() takes for a restart. A nil reg registers nothing.
func register(reg prometheus.Registerer, collectors ...prometheus.Collector) {
	if reg == nil {
		return
	}
	b := bundle(collectors)
	err := reg.Register(&b)
	if err == nil {
		return
	}
	var again prometheus.AlreadyRegisteredError
	if errors.As(err, &again) {
		reg.Unregister(again.ExistingCollector)
	}
	// What it can still refuse are two components of different kinds under one name: a mistake that this package's tests find.
	reg.MustRegister(&b)
}

// reading is a gauge whose value is asked for at scrape time and may be unknown.
type reading[R any] struct {
	desc *prometheus.Desc
	of   func(R) *float64
}

// readings collects several gauges from one call of read, so that one scrape shows one moment.
type readings[R any] struct {
	read   func() R
	gauges []reading[R]
}

// Describe implements prometheus.Collector.
func (r readings[R]) Describe(ch chan<- *prometheus.Desc) {
	for _, g := range r.gauges {
		ch <- g.desc
	}
}

// Collect implements prometheus.Collector.
func (r readings[R]) Collect(ch chan<- prometheus.Metric) {
	if r.read == nil {
		return
	}
	now := r.read()
	for _, g := range r.gauges {
		if v := g.of(now); v != nil {
			ch <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, *v)
		}
	}
}

func pairLabel(pair string) prometheus.Labels { return prometheus.Labels{"pair": pair} }

func counter(name, help string, labels prometheus.Labels) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels})
}

func description(name, help string, labels prometheus.Labels) *prometheus.Desc {
	return prometheus.NewDesc(name, help, nil, labels)
}
