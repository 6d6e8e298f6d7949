# Every target builds .venv itself, from exact versions, so that a fresh clone needs one command.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
SCHEMATHESIS := .venv-schemathesis
SCHEMATHESIS_SECONDS ?= 240
MOVES_PARTS ?= pauses dip million
# Checkers of row security, in an environment without the product.
ORACLES := .venv-oracles
# What the product is compared with, in an environment without it.
PEERS := .venv-peers
PEERS_OPTIONS ?=
# Users of HTTP that Locust makes, and charts of lines, in an environment of their own.
LOADTESTS := .venv-loadtests
LOADTEST_OPTIONS ?=
DENSITY_OPTIONS ?= --plot docs/density.svg
OVERLOAD_OPTIONS ?=
HTTP_OVERLOAD_OPTIONS ?=
FLEET_OPTIONS ?=
# Stages that are independent of each other, the longest first.
ON_POSTGRES := integration-15 integration attacks-15 attacks oracles-15 oracles
# Where Debian puts it.
POSTGRES_15 ?= /usr/lib/postgresql/15/bin
POSTGRES_TLS ?= $(POSTGRES_15)
ROOMS  := core engine strategies actors training serve ledger

# A run of pytest closes the directory of temporary files to other users when it begins, servers of
# another run that is under way included: each run has one of its own, in memory where there is room.
PYTEST = t=$$($(BIN)/python tests/support/ram_disk.py) && trap 'rm -rf $$t' EXIT && \
	PYTEST_DEBUG_TEMPROOT=$$t $(BIN)/pytest $(1)

.PHONY: install check format test unit attacks attacks-15 attack-report integration \
	integration-15 ray acceptance wheel schemathesis bench bench-tenants bench-timing demo up down \
	clean bench-throughput bench-neighbours bench-transport transport bench-doctor oracles \
	oracles-15 bench-binding bench-cache bench-guard bench-moves bench-peers bench-http soak guide scaling \
	bench-density bench-overload bench-http-overload bench-fleet loadtest loadtest-client bench-measured

install: $(STAMP)

# pip comes first for its dependency groups; setuptools because the editable build runs without
# isolation, so that the versions of the constraints file hold for the build as well.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --upgrade pip setuptools wheel
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation \
		--editable '.[serve,demo]' --group check --group test
	touch $(STAMP)

# Type checkers cannot follow the import hook of an editable install, so they get a tree of links.
.typing: $(STAMP)
	@mkdir -p .typing/tenancy/data_isolation
	@for room in $(ROOMS); do \
		if [ -d $$room ]; then ln -sfn ../../../$$room .typing/tenancy/data_isolation/$$room; fi; done

check: $(STAMP) .typing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The tests of a version keep one core busy, with a server of their own; two versions at a time take
# about half as long. What a stage says comes when it is done.
test: check unit
	$(MAKE) --jobs=2 --output-sync=target $(ON_POSTGRES)
	$(MAKE) ray acceptance wheel

unit: $(STAMP)
	$(call PYTEST,tests/unit)

# The boundary between tenants under attack, and a fuzzer of hostile SQL.
attacks: $(STAMP)
	$(call PYTEST,tests/attacks)

attacks-15: $(STAMP)
	@if [ -x $(POSTGRES_15)/postgres ]; then \
		$(call PYTEST,tests/attacks --postgres-bin $(POSTGRES_15)); \
	else echo "no PostgreSQL 15 in $(POSTGRES_15): its attacks are left out"; fi

# Attack by level and way in: stopped by what, or accepted and why; docs/attacks.md is made of it.
attack-report: $(STAMP)
	@if [ -x $(POSTGRES_15)/postgres ]; then \
		$(BIN)/pytest tests/attacks/test_attacks.py -q --attack-report \
			--postgres-bin $(POSTGRES_15); fi
	$(BIN)/pytest tests/attacks/test_attacks.py -q --attack-report --attack-page docs/attacks.md

integration: $(STAMP)
	$(call PYTEST,tests/integration)

# The oldest PostgreSQL that is promised, where the system has it.
integration-15: $(STAMP)
	@if [ -x $(POSTGRES_15)/postgres ]; then \
		$(call PYTEST,tests/integration --postgres-bin $(POSTGRES_15)); \
	else echo "no PostgreSQL 15 in $(POSTGRES_15): its tests are left out"; fi

$(ORACLES)/.installed: tests/oracles/requirements.txt
	$(PYTHON) -m venv --clear $(ORACLES)
	$(ORACLES)/bin/pip install --quiet --disable-pip-version-check --no-deps \
		-r tests/oracles/requirements.txt
	touch $@

# What independent linters, provers and fuzzers of row security say of an installation.
oracles: $(STAMP) $(ORACLES)/.installed
	$(call PYTEST,tests/oracles)

oracles-15: $(STAMP) $(ORACLES)/.installed
	@if [ -x $(POSTGRES_15)/postgres ]; then \
		$(call PYTEST,tests/oracles --postgres-bin $(POSTGRES_15)); \
	else echo "no PostgreSQL 15 in $(POSTGRES_15): its checks are left out"; fi

ray: $(STAMP)
	$(call PYTEST,tests/ray)

acceptance: $(STAMP) $(SCHEMATHESIS)/.installed
	$(call PYTEST,tests/acceptance)

# In an environment of its own: what it needs is none of ours.
$(SCHEMATHESIS)/.installed: tests/schemathesis-requirements.txt
	$(PYTHON) -m venv $(SCHEMATHESIS)
	$(SCHEMATHESIS)/bin/pip install --quiet --disable-pip-version-check --no-deps \
		-r tests/schemathesis-requirements.txt
	touch $@

# Requests made from the OpenAPI document, for some minutes and others each time.
schemathesis: $(STAMP) $(SCHEMATHESIS)/.installed
	$(BIN)/python tests/schemathesis_long.py --seconds $(SCHEMATHESIS_SECONDS)

# The wheel, in an environment of its own and away from the checkout. What building warns of is an
# error: that a file is left out, above all.
wheel: $(STAMP)
	rm -rf build dist
	PYTHONWARNINGS=error $(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		--wheel-dir dist .
	$(PYTHON) -m venv --clear dist/venv
	dist/venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	cp tests/wheel_smoke.py dist/ && cd dist && venv/bin/python wheel_smoke.py

# Figures, printed beside the last ones that were committed; the last line is JSON. Nothing here passes
# or fails a build. `BENCH_KEEP=1 make bench` keeps them in loadtests/last_figures.json.
bench: $(STAMP)
	$(BIN)/python loadtests/main_job.py --throughput --demo

# Operations per second through tenant actors, at each isolation level: about five minutes.
bench-throughput: $(STAMP)
	$(BIN)/python loadtests/throughput.py

# A thousand tenants with logins of their own on a server of a hundred connections: some minutes.
bench-tenants: $(STAMP)
	$(BIN)/python loadtests/many_tenants.py

# Whether time tells another tenant from one that does not exist.
bench-timing: $(STAMP)
	$(BIN)/python loadtests/tenant_timing.py

# What tenants notice of one that attacks, with and without it: about seven minutes.
bench-neighbours: $(STAMP)
	$(BIN)/python loadtests/neighbours.py

# What TLS to PostgreSQL costs, and a runtime with TLS everywhere: PostgreSQL has to be built with
# TLS for both, which the embedded one is not.
bench-transport: $(STAMP)
	$(BIN)/python loadtests/transport.py --postgres-bin $(POSTGRES_TLS)

transport: $(STAMP)
	$(call PYTEST,tests/transport tests/integration/test_server_tls.py \
		tests/acceptance/test_redis_tls.py tests/acceptance/test_https.py \
		--postgres-bin $(POSTGRES_TLS))

# What a look at a thousand schemas and the audit of a start take: some minutes, to make the schemas.
bench-doctor: $(STAMP)
	$(BIN)/python loadtests/doctor.py

# What the signed binding costs beside a plain setting, in one run of pgbench.
bench-binding: $(STAMP)
	$(BIN)/python loadtests/binding_cost.py \
		$$(test -x $(POSTGRES_15)/pgbench && echo --postgres-bin $(POSTGRES_15))

# What the guard costs: a statement that it knows, and one that it reads for the first time.
bench-guard: $(STAMP)
	$(BIN)/python loadtests/guard_cost.py

# What keeping results of a tenant saves, and what it costs: a minute or two.
bench-cache: $(STAMP)
	$(BIN)/python loadtests/result_cache.py

# What measuring adds to an operation, with it and without it in turn: about three minutes.
bench-measured: $(STAMP)
	$(BIN)/python loadtests/measurement_cost.py

$(PEERS)/.installed: loadtests/peers/requirements.txt
	$(PYTHON) -m venv --clear $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check --no-deps \
		-r loadtests/peers/requirements.txt
	touch $@

# The same read through this product and through what people use instead: about 50 minutes. Less
# of it: `make bench-peers PEERS_OPTIONS='--only by-hand actor --seconds 2 --repeats 1'`.
bench-peers: $(STAMP) $(PEERS)/.installed
	$(BIN)/python loadtests/bench_peers.py $(PEERS_OPTIONS)

$(LOADTESTS)/.installed: loadtests/requirements.txt
	$(PYTHON) -m venv --clear $(LOADTESTS)
	$(LOADTESTS)/bin/pip install --quiet --disable-pip-version-check --no-deps \
		-r loadtests/requirements.txt
	touch $@

# 100,000 tenants of level row, 10,000 of them active: what grows with them. About half an hour. Less
# of it: `make bench-density DENSITY_OPTIONS='--tenants 5000 --active 500 --idle 30'`.
bench-density: $(STAMP) $(LOADTESTS)/.installed
	$(BIN)/python loadtests/density.py $(DENSITY_OPTIONS)

# 50,000 operations at once, and ten times what the runtime manages: some minutes.
bench-overload: $(STAMP)
	$(BIN)/python loadtests/overload.py $(OVERLOAD_OPTIONS)

# More requests than the HTTP endpoint can answer, over thousands of connections: some minutes.
bench-http-overload: $(STAMP)
	$(BIN)/python loadtests/http_overload.py $(HTTP_OVERLOAD_OPTIONS)

# 10,000 tenants with schemas of their own, and migrations of 1,000 and of all of them: about an hour.
# Less of it: `make bench-fleet FLEET_OPTIONS='--tenants 200'`.
bench-fleet: $(STAMP)
	$(BIN)/python loadtests/fleet.py $(FLEET_OPTIONS)

# Users of the HTTP endpoint (Locust), nobody looking: two minutes, and a report as HTML and JSON in
# build/loadtest. `make loadtest-client` is the same for the Python client, from within the cluster.
loadtest: $(STAMP) $(LOADTESTS)/.installed
	$(BIN)/python loadtests/http_load.py $(LOADTEST_OPTIONS)

loadtest-client: $(STAMP)
	$(BIN)/python loadtests/client_load.py $(LOADTEST_OPTIONS)

# What a request costs in each process, and what its parts were chosen by: about three minutes.
bench-http: $(STAMP) $(PEERS)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --group bench
	$(BIN)/python loadtests/http_cost.py

# Processes that answer HTTP become more and fewer with the load: about two minutes.
scaling: $(STAMP)
	$(call PYTEST,tests/scaling)

demo: $(STAMP)
	$(BIN)/tenancy demo

up: $(STAMP)
	$(BIN)/tenancy up

down: $(STAMP)
	$(BIN)/tenancy down

clean:
	rm -rf $(VENV) $(SCHEMATHESIS) $(ORACLES) $(PEERS) $(LOADTESTS) .typing build dist *.egg-info

# The pause of a tenant that is moved, the dip of its neighbours, and the rate of copying. A million
# rows in one go alone: `make bench-moves MOVES_PARTS=million`.
bench-moves: $(STAMP)
	$(BIN)/python loadtests/moves.py --parts $(MOVES_PARTS)

# Hundreds of moves of tenants in use, while movers, sessions and servers die, lines to servers are lost
# and cleaners sleep: some minutes.
soak: $(STAMP)
	$(call PYTEST,tests/soak -s)

# Every command of the guide to moving a big tenant, as it is printed, on a runtime of its own.
guide: $(STAMP)
	$(call PYTEST,tests/guide -s)
