# Millrace's targets. They need Go, and nothing else that they do not build
# themselves: pinned tools come from etc/tools, through the Go module proxy,
# into .tools, once. The tests of HDFS need Java, and Maven the first time; without
# them they are skipped, and say so.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build
.DELETE_ON_ERROR:

GO ?= go
TOOLS := $(CURDIR)/.tools
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

# Packages under test and the bound on each package's time.
PKG ?= ./...
TEST_TIMEOUT ?= 20m
TEST_FLAGS ?=

# Packages with tests that count allocations, which the race detector upsets.
NO_RACE := ./blockio

# How long the soak, the chaos or the fuzzing runs, and the seed of the first
# two's decisions; empty: another each time.
DURATION ?= 10m
SEED ?=

# Flags of the benchmarks; bin/bench -help lists them.
BENCH_FLAGS ?=

# The race detector needs a C compiler. Without one the tests run all the
# same, and say so; where everything is required they fail.
HAVE_CC := $(shell command -v "$$($(GO) env CC)" 2>/dev/null)
define no-race
	@echo 'NOT TESTED FOR DATA RACES: there is no C compiler ($(shell $(GO) env CC))' >&2
	@case ",$$MILLRACE_REQUIRE," in *,all,* | *,race,*) exit 1 ;; esac
endef

# Nothing here may look for a cloud's metadata service.
export AWS_EC2_METADATA_DISABLED := true
export MILLRACE_REQUIRE ?=

##@ Build

.PHONY: build
build: ## build bin/millrace
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/millrace ./cmd/millrace

.PHONY: proto
proto: $(TOOLS)/buf $(TOOLS)/protoc-gen-go ## generate the Go code of api/*.proto
	cd api && $(TOOLS)/buf format -w && PATH="$(TOOLS):$$PATH" $(TOOLS)/buf generate

##@ Check

.PHONY: test
test: build $(TOOLS)/versitygw ## run all tests (PKG=./tier/... TEST_FLAGS='-run X' to narrow)
	$(if $(HAVE_CC),,$(no-race))
	$(GO) test -run Allocate $(NO_RACE)
	MILLRACE_BINARY=$(CURDIR)/bin/millrace MILLRACE_VERSITYGW=$(TOOLS)/versitygw \
		$(GO) run ./internal/testsum $(if $(HAVE_CC),-race) -shuffle=on -timeout $(TEST_TIMEOUT) $(TEST_FLAGS) $(PKG)

.PHONY: fuzz
fuzz: ## all fuzz targets, DURATION (10m) for them together (KEEP=1: keep what they find in testdata/fuzz)
	$(GO) build -o bin/fuzz ./test/fuzz
	exec bin/fuzz -duration $(DURATION) $(if $(KEEP),-keep) $(PKG)

.PHONY: soak
soak: build $(TOOLS)/versitygw ## everything at once for DURATION (10m): readers, changes, full disks, failures, kills
	$(GO) build -o bin/soak ./test/soak
	exec bin/soak -duration $(DURATION) $(if $(SEED),-seed $(SEED))

.PHONY: chaos
chaos: build $(TOOLS)/versitygw ## a cluster of 3 masters and 4 workers to which everything happens for DURATION (10m), under checks (SEED)
	$(GO) build -o bin/chaos ./test/chaos
	exec bin/chaos -duration $(DURATION) $(if $(SEED),-seed $(SEED))

.PHONY: lint
lint: lint-go lint-mod lint-proto ## check style, modules and generated code

.PHONY: lint-go
lint-go: $(TOOLS)/golangci-lint
	$(TOOLS)/golangci-lint run $(PKG)

.PHONY: lint-mod
lint-mod:
	$(GO) mod tidy -diff
	$(GO) mod verify

.PHONY: lint-proto
lint-proto: $(TOOLS)/buf $(TOOLS)/protoc-gen-go
	cd api && $(TOOLS)/buf format --diff --exit-code && $(TOOLS)/buf lint
	@out=$$(mktemp -d); trap 'rm -rf "$$out"' EXIT; \
	(cd api && PATH="$(TOOLS):$$PATH" $(TOOLS)/buf generate -o "$$out"); \
	for f in api/*.pb.go; do [ -e "$$out/$${f#api/}" ] || { echo "$$f comes from no .proto file" >&2; exit 1; }; done; \
	for f in "$$out"/*.pb.go; do diff -u "api/$${f##*/}" "$$f" || { echo "generated code is not current: make proto" >&2; exit 1; }; done

.PHONY: fmt
fmt: $(TOOLS)/golangci-lint $(TOOLS)/buf ## format Go and proto files
	$(TOOLS)/golangci-lint fmt
	cd api && $(TOOLS)/buf format -w

##@ See

# These are built and then run in make's own child, not by `go run`, so that a
# signal reaches them and they can clean up.

.PHONY: demo
demo: build $(TOOLS)/versitygw ## a real S3 bucket, mounted, warmed by a load job, read from the cache
	$(GO) build -o bin/demo ./bench/demo
	exec bin/demo

.PHONY: bench
bench: build $(TOOLS)/versitygw ## this machine's figures beside the targets, some 10 minutes (BENCH_FLAGS='-runs 1 -big 256MiB -small 1000' to shorten)
	$(GO) build -o bin/barefuse ./bench/barefuse
	$(GO) build -o bin/bench ./bench/report
	exec bin/bench $(BENCH_FLAGS)

.PHONY: bench-peers
bench-peers: $(TOOLS)/versitygw ## the same work on JuiceFS, geesefs and rclone, those that are on PATH (BENCH_FLAGS)
	$(GO) build -o bin/bench-peers ./bench/peers
	exec bin/bench-peers $(BENCH_FLAGS)

# The packages with benchmarks, and which of those run together.
MICRO := ./block ./blockio ./tier ./cacheworker ./cachemaster/blockmap ./fuse
MICRO_RUN ?= Owners|Ticket|ParseHeader|Read4K|Read1M|OpenRead4K|Hit|Fill|FullReport|Locations|BenchmarkRead$$

.PHONY: bench-micro
bench-micro: ## the parts by themselves: data plane, cache hit and fill, decoding, placement, block map
	$(GO) test -run '^$$' -bench '$(MICRO_RUN)' -benchmem -count 5 -benchtime 0.2s $(MICRO)

.PHONY: bench-blockmap
bench-blockmap: ## a new master's block map of 100 workers with 1,000,000 blocks each: at most 60 s and 2 GiB
	$(GO) test -run '^$$' -bench ManyWorkers -benchtime 1x -timeout 5m ./cachemaster

.PHONY: bench-policy
bench-policy: ## hit ratios of eviction policies on replayed traces, into bench/out/policy.json
	@mkdir -p bench/out
	$(GO) build -o bin/bench-policy ./bench/policy
	exec bin/bench-policy -json bench/out/policy.json

##@ Rest

.PHONY: tools
tools: $(TOOLS)/golangci-lint $(TOOLS)/buf $(TOOLS)/protoc-gen-go $(TOOLS)/versitygw ## build the pinned tools

.PHONY: clean
clean: ## remove what was built, but not the tools
	rm -rf bin bench/out

.PHONY: distclean
distclean: clean ## remove the tools too
	rm -rf .tools

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Pinned tools: one module each, so that their dependencies are not ours. A
# tool is built again when its module changes.
tool = $(GO) build -C etc/tools/$(1) -mod=readonly -ldflags '-s -w' -o $(TOOLS)/ tool

$(TOOLS)/golangci-lint: etc/tools/golangci-lint/go.mod etc/tools/golangci-lint/go.sum
	$(call tool,golangci-lint)
	@touch $@

$(TOOLS)/buf: etc/tools/buf/go.mod etc/tools/buf/go.sum
	$(call tool,buf)
	@touch $@

$(TOOLS)/versitygw: etc/tools/versitygw/go.mod etc/tools/versitygw/go.sum
	$(call tool,versitygw)
	@touch $@

# One build makes both generators.
$(TOOLS)/protoc-gen-go: etc/tools/protoc-gen/go.mod etc/tools/protoc-gen/go.sum
	$(call tool,protoc-gen)
	@touch $@
