# Everything that is done with this source tree. `make demo` and `make test` are all that a newcomer needs; both install what they
# lack. Tools land in .tools (REPLICATOR_TOOLS_DIR), Debian packages in the system.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

export REPLICATOR_TOOLS_DIR ?= $(CURDIR)/.tools
TOOLS := $(REPLICATOR_TOOLS_DIR)/bin
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

# Packages tested at once. Every package starts servers of its own and waits for them most of the time: three keep two cores busy.
PARALLEL ?= 3
# Bounds for a hang: one package's, so that it is named by a stack trace, and all packages'. A machine on which page faults are dear, or one that
# is shared, needs twice the usual time.
TEST_TIMEOUT ?= 25m
TEST_LIMIT ?= 30m
SOAK_TIMEOUT ?= 6h
# Those that take longest begin first, so that none is left alone with two cores at the end.
PACKAGES ?= ./replication/pair ./internal/e2e ./redissync ./replication/trigger ./replication/gate ./replication/logical ./...

.PHONY: help
help: ## show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\n  ARGS=... goes to the demo (make demo ARGS=--auto), PACKAGES=./cutover/... narrows test and soak, RUN=Name too.\n'

.PHONY: build
build: ## build bin/replicator
	@CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-X main.version=$(VERSION)" -o bin/replicator ./cmd/replicator

.PHONY: demo
demo: ## run the demo: a live shop moved from one pair of servers to another (ARGS=--auto for the whole road)
	@scripts/install-tools pg redis
	@$(MAKE) --no-print-directory build
	@bin/replicator demo $(ARGS)

# go vet is a part of make lint, and nobody debugs these binaries: both cost time.
.PHONY: test
test: ## run every test on real servers with the race detector, 12 minutes on two cores, more on slow ones
	@scripts/install-tools pg redis versions redisversions sidekiq prometheus gotestsum
	@GOTMPDIR=$${GOTMPDIR:-$${TMPDIR:-/tmp}} TMPDIR=$$(scripts/test-dir) timeout --kill-after=30s $(TEST_LIMIT) $(TOOLS)/gotestsum --format pkgname --format-hide-empty-pkg -- \
		-race -count 1 -vet off -ldflags=-w -p $(PARALLEL) -timeout $(TEST_TIMEOUT) $(if $(RUN),-run '$(value RUN)') $(PACKAGES)

.PHONY: soak
soak: ## run the long tests in full: every seed, every version pair (hours)
	@scripts/install-tools pg redis versions redisversions sidekiq prometheus gotestsum
	@REPLICATOR_SOAK=1 $(TOOLS)/gotestsum --format standard-verbose -- \
		-p 1 -count 1 -timeout $(SOAK_TIMEOUT) $(if $(RUN),-run '$(value RUN)') $(PACKAGES)

.PHONY: bench
bench: ## measure against native replication and plain loops on real servers (REPLICATOR_BENCH_SCALE=1 REPLICATOR_BENCH_ROUNDS=5 for the full sizes; needs an idle machine; RUN=Capture: trigger capture against Bucardo; RUN=Redis)
	@scripts/install-tools $(if $(findstring Redis,$(RUN)),redis,pg $(if $(RUN),$(if $(findstring Capture,$(RUN)),bucardo) $(if $(findstring Copy,$(RUN)),pgcopydb),redis bucardo pgcopydb))
	@go test -run '^$$' -bench '$(or $(value RUN),.)' -benchtime 1x -timeout 5h $(if $(findstring Redis,$(RUN)),,./internal/bench) $(if $(RUN),$(if $(findstring Redis,$(RUN)),./redissync),./redissync)

.PHONY: lint
lint: ## check formatting, go vet, the linters and the import arrows
	@scripts/install-tools lint
	@$(TOOLS)/golangci-lint run

.PHONY: fmt
fmt: ## format all Go code
	@scripts/install-tools lint
	@$(TOOLS)/golangci-lint fmt

.PHONY: charts
charts: ## check the Helm chart, the alert rules and the dashboard
	@scripts/install-tools charts prometheus
	@deploy/check.sh

.PHONY: clean
clean: ## remove what was built, but not the tools
	@rm -rf bin
