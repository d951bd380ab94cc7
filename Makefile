# "make help" lists the targets. Go is all that "make demo" needs.

.DEFAULT_GOAL := help
.PHONY: help demo test stress lint bench scoreboard soak compose-test

# Flags of the demo or the scoreboard, as in: make demo ARGS='-workers 16 -kill'
ARGS ?=

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Built and then run, so that signals and the exit code are the demo's own.
demo: ## watch four processes share one key; ARGS='-h' lists the flags
	@go build -o bin/workerdemo ./cmd/workerdemo
	@bin/workerdemo $(ARGS)

test: ## run all tests, those against a real Redis too (REDIS_URL, or redis-server)
	@scripts/redis-server
	@scripts/chromium
	@scripts/rules-test
	@scripts/go-test ./...
	@CGO_ENABLED=0 go test ./internal/fleetsim/... # all of it, without the race detector's cost
	@cd bench && ../scripts/go-test ./...

# Looks for tests that depend on having a processor.
stress: ## run all tests 20 times in a row on busy processors; ROUNDS=3, ARGS=-race
	@scripts/redis-server
	@scripts/chromium
	@scripts/stress $(ARGS)

# Side by side with other limiters, on one Redis; writes bench/bench.json.
bench: ## measure (minutes, on a quiet machine); ARGS='-h' lists the flags
	@scripts/redis-server
	@cd bench && go build -o ../bin/bench . && ../bin/bench $(ARGS)

scoreboard: ## compare strategies in virtual time; ARGS='-h' lists the flags
	@go build -o bin/scoreboard ./cmd/scoreboard
	@bin/scoreboard -json scoreboard.json -chart docs/scoreboard.svg $(ARGS)

soak: ## break everything for ten minutes and see what holds; ARGS='-for 1h', ARGS='-h'
	@scripts/redis-server
	@go build -o bin/soak ./integration/soak
	@bin/soak $(ARGS)

compose-test: ## start the compose fleet on stand-in images and break it (needs Docker)
	@scripts/compose-test

# bench is a module of its own, and is checked with the tool of this one.
lint: ## check format, vet, staticcheck and go.mod
	@unformatted=$$(gofmt -l .) && if [ -n "$$unformatted" ]; then \
		echo "gofmt -w would change:"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	go tool staticcheck ./...
	go mod tidy -diff
	cd bench && go vet ./... && "$$(cd .. && go tool -n staticcheck)" ./... && go mod tidy -diff
