// Package metrics holds what replicator exports to Prometheus: one struct per component, each built with the registerer that it
// is to appear on and with nothing registered behind anyone's back. Names, labels and help texts are part of the outside face
// (docs/metrics.md); renaming one is a breaking change and needs a line in the CHANGELOG.
//
// Lags and ages are not kept here but asked for at every scrape, so that a stuck loop shows a growing lag instead of its last good
// one. A reading that is unknown is absent from the scrape, never zero.
//
// Every method may be called on a nil receiver and then does nothing, so that code under test needs no registry; all of them may be
// called from several goroutines at once.
//
// How to add a metric: add the field, its descriptor with a help text that a stranger understands, a method named for what
// happened, and a line in docs/metrics.md; base units only, counters end in _total, and no label whose values grow with the data
// (never a key, never a row). The test in this package compares names, types and labels with the documented table.
package metrics
