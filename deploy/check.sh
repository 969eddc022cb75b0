#!/usr/bin/env bash
# Checks everything below deploy/ that can be checked without a cluster:
#   the chart with each file of helm/replicator/ci, strictly, under ordinary and odd release names; that wrong values are refused;
#   the alert rules and their tests; every expression of the dashboard; and, by `go test ./deploy`, the dashboard's structure, the
#   metrics' names, the chart's configuration keys and the runbook.
# Tools are taken from .tools/bin (REPLICATOR_TOOLS_DIR) or PATH.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools=${REPLICATOR_TOOLS_DIR:-$PWD/.tools}
export PATH="$tools/bin:$PATH"
chart=deploy/helm/replicator
schemas=$tools/schemas
kubernetes=1.34.1 # as in deploy/schemas; a helm built by `go install` otherwise takes itself for one of 1.20
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say() { printf 'deploy/check.sh: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
need() { command -v "$1" >/dev/null || die "$1 is missing: $2"; }
need go "install Go 1.26 from https://go.dev/dl"
need helm "run scripts/install-tools charts, or go install helm.sh/helm/v3/cmd/helm@v3.22.0"
need kubeconform "run scripts/install-tools charts, or go install github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0"
need promtool "run scripts/install-tools prometheus, or install Debian's package prometheus"

# The schemas are made of the sources of pinned modules: once they are all there they are right until deploy/schemas changes.
if ! [ "$schemas/complete" -nt deploy/schemas/main.go ]; then
	say "making the schemas of Kubernetes and of the Prometheus operator"
	go run ./deploy/schemas -out "$schemas"
	touch "$schemas/complete"
fi

render() { # RELEASE VALUES [ARGUMENT…]
	local release=$1 values=$2
	shift 2
	helm template "$release" "$chart" --namespace moving --kube-version "$kubernetes" --values "$values" "$@"
}
conform() { kubeconform -strict -schema-location "$schemas/{{.ResourceKind}}{{.KindSuffix}}.json" "$@"; }

for values in "$chart"/ci/*.yaml; do
	helm lint --strict --quiet --kube-version "$kubernetes" "$chart" --values "$values"
	# y and 123 are a boolean and a number to YAML.
	for release in shop y 123 my.shop; do
		render "$release" "$values" >"$work/manifests.yaml" || die "$values is refused for a release called $release"
		conform "$work/manifests.yaml" || die "$values makes wrong manifests for a release called $release"
	done
	say "${values#deploy/} is good"
done

# The program itself must take the configuration that the chart renders: 2 is its exit status for one that it refuses. No server
# listens on these ports, so that everything else it finds is that.
go build -o "$work/replicator" ./cmd/replicator
mkdir -p "$work/etc/urls"
printf 'postgres://u:p@127.0.0.1:1/other' >"$work/etc/urls/source"
printf 'postgres://u:p@127.0.0.1:2/other' >"$work/etc/urls/target"
accepted() { # FILE
	local status=0
	sed "s#/etc/replicator/#$work/etc/#" "$1" >"$work/replicator.yml"
	env SOURCE_DATABASE_URL=postgres://u:p@127.0.0.1:1/a TARGET_DATABASE_URL=postgres://u:p@127.0.0.1:2/a \
		SOURCE_REDIS_URL=redis://127.0.0.1:3 TARGET_REDIS_URL=redis://127.0.0.1:4 HOOK_SECRET=h REPLICATOR_TOKEN=t VIEWER_TOKEN=v CHANNEL=c \
		timeout 60 "$work/replicator" check --config "$work/replicator.yml" >"$work/answer" 2>&1 || status=$?
	[ "$status" -eq 1 ] || die "the program's answer to the configuration of $1 is $status: $(cat "$work/answer")"
}
for values in "$chart"/ci/*.yaml; do
	render shop "$values" --show-only templates/configmap.yaml | sed -n '/^  replicator.yml: |/,$p' | sed '1d; s/^    //' >"$work/rendered.yml"
	accepted "$work/rendered.yml"
done
accepted deploy/compose/replicator.yml
say "the program takes what the chart and compose make"

# What the checks above rest on: a field that Kubernetes doesn't know must be seen.
sed 's/terminationGracePeriodSeconds:/terminationGraceSeconds:/' "$work/manifests.yaml" >"$work/wrong.yaml"
conform "$work/wrong.yaml" >/dev/null 2>&1 && die "kubeconform accepts an unknown field: the schemas are not strict"

# refused WORD ARGUMENT…: the chart must refuse these values with a message that has WORD in it.
refused() {
	local word=$1
	shift
	if render shop "$chart/ci/trial.yaml" "$@" >/dev/null 2>"$work/refusal"; then
		die "the chart accepts $*"
	fi
	grep -qF -- "$word" "$work/refusal" || die "the chart refuses $* without naming $word: $(cat "$work/refusal")"
}
refused replica --set replica=2
refused replicas --set-string replicas=2
refused tag --set image.tag=1
refused digest --set image.digest=sha256:abc
refused REPLICATOR_TOKEN --set secret.data.REPLICATOR_TOKEN=12345
refused FLAG --set secret.data.FLAG=true
refused "bad-name" --set-string secret.data.bad-name=x
refused listen --set-string config.admin.listen=127.0.0.1:8080
refused metrics --set-string config.metrics.listen=127.0.0.1:9464
refused migration --set config.migration=1
refused migration --set config.migration=Shop
refused capture --set 'config.postgres[0].capture=physical'
refused tabels --set 'config.postgres[0].tabels.include={*}'
refused url --set-json 'config.postgres=[{"name":"main","source":{},"target":{"url":"x"}}]'
refused hooks --set-json 'config.cutover.hooks=[{"at":"switch"}]'
refused freeze_budget --set config.cutover.freeze_budget=30
refused admin --set ports.admin=0
refused "the same" --set ports.admin=9464
refused "choose one" --set secret.existing=other
refused "at least one" --set-json 'config.postgres=[]'
refused "32 characters" --set config.migration=a-name-that-is-nearly-too-long
refused "no secret" --set secret.data=null
say "wrong values are refused"

for rules in deploy/alerts/*.rules.yml; do
	promtool check rules "$rules" >/dev/null
	promtool test rules "${rules%.rules.yml}.rules.test.yml" >/dev/null || die "the tests of $rules fail: promtool test rules ${rules%.rules.yml}.rules.test.yml"
	say "${rules#deploy/} is good, and its tests pass"
done

# Structure, names and documents; it also writes the dashboard's expressions as rules, for promtool's parser.
REPLICATOR_EXPRESSIONS="$work/expressions.yml" go test -count=1 ./deploy/ >"$work/go" || { cat "$work/go" >&2; exit 1; }
promtool check rules --lint=none "$work/expressions.yml" >"$work/promtool" 2>&1 || { cat "$work/promtool" >&2; die "an expression of the dashboard is wrong"; }
say "the dashboard is good: $(grep -o '[0-9]* rules found' "$work/promtool" | sed 's/rules found/expressions/')"
