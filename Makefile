# The commands of this project; each is a script in dev/, where the comments are.
#   PG=NN             the PostgreSQL version: test runs all when it is not set, soak the oldest and the newest, others 17
#   PG_CONFIG=PATH    an installed server, in place of a private one

.DEFAULT_GOAL := help
.PHONY: help demo check test soak setup install uninstall psql package bench clean
ONE = $(or $(PG),17)

help: ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: ## see it work: a throwaway cluster, the extension, a short script (PG=12..18)
	@dev/setup $(ONE)
	@dev/demo $(ONE)

check: ## what needs no server, in seconds: format, rules of the source, pure tests, clippy of the tests
	@dev/test --check

test: ## all checks and tests, on all versions (PG=NN or PG_CONFIG=... for one)
	@dev/test $(if $(PG_CONFIG),--pg-config "$(PG_CONFIG)",$(PG))

soak: ## the cases at random and at the limits, five times as long, on the oldest and the newest version (PG=NN for one)
	@dev/test --soak $(PG)

setup: ## get the tools and the private servers, for all versions (PG=NN for one)
	@dev/setup --tests $(PG)

install: ## release build into your own server: PG_CONFIG=/path/to/pg_config (default: the one in PATH)
	@dev/setup --pg-config "$(or $(PG_CONFIG),$(shell command -v pg_config))"
	@dev/install --release --pg-config "$(or $(PG_CONFIG),$(shell command -v pg_config))"

uninstall: ## remove what install put there: PG_CONFIG=/path/to/pg_config (default: the one in PATH)
	@dev/uninstall --pg-config "$(or $(PG_CONFIG),$(shell command -v pg_config))"

psql: ## a private cluster with the extension, at a psql prompt (PG=12..18)
	@dev/setup $(ONE)
	@dev/psql $(ONE)

package: ## release build into target/package, laid out as in your own server: PG_CONFIG=/path/to/pg_config
	@dev/setup --pg-config "$(or $(PG_CONFIG),$(shell command -v pg_config))"
	@dev/package --release --pg-config "$(or $(PG_CONFIG),$(shell command -v pg_config))"

bench: ## run the benchmarks of benches/ on a release build (PG=12..18)
	@dev/setup $(ONE)
	@dev/bench $(ONE)

clean: ## remove what was built here; the tools and servers that setup got stay in their cache
	@rm -rf target
