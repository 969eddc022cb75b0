// Package deploy has no code: its directory holds what is needed to run replicator somewhere and to watch it (the Helm chart, the
// Grafana dashboard, the alert rules, a compose file), and its tests hold those to the program: that the dashboard and the alerts use
// metrics that exist, that the chart knows every key of the configuration, and that the runbook has a section for every alert and
// every problem code.
//
// check.sh runs these tests and everything else that can be checked without a cluster. Not proved by it: that Grafana draws the
// dashboard, and that a cluster admits the manifests with its own policies.
//
// How to add an alert: a rule in helm/replicator/files/replicator.rules.yml, a case in alerts/replicator.rules.test.yml in which it
// fires and one in which it doesn't, and a section "### NAME" in docs/runbook.md. How to add a panel: edit the dashboard in Grafana and
// store its JSON model (with the data source as the variable) in helm/replicator/files/replicator.json. How to add a key of the
// configuration to the chart: in helm/replicator/values.schema.json below config, and in helm/replicator/ci/everything.yaml.
package deploy
