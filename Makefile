# make run     start the gateway with config/gateway.yaml (CONFIG=FILE for another)
# make test    everything that must pass: gates, tests, the wheel
# make gates   format, lint, types, imports, spelling      make unit   the tests alone (TESTS=..., WORKERS=..., PYTEST_ARGS=...)
# make format  rewrite the sources in the project's style   make bench  side by side with other brokers
# make image   build the container image                    make lock   renew constraints.txt
# make budget  where the microseconds of a message go        (bench: PROFILE=... for one, BENCH_ARGS=... for both)
#
# The long proofs; `make test` has a short form of each.
# make model   lead EXAMPLES (5000) random lives of the core, held against its reference model
# make credit  lead EXAMPLES (5000) random lives of each protocol's clients on the real connections
# make kills   kill the daemon under load KILLS (500) times and print what came of it (about 2 s a kill)
# make power   cut the power CUTS times (2000); GATEWAY_SEED=N repeats a run
# make space   let MESSAGES pass (10000000) with one of each commit never settled, and watch the store's size
# make abuse   peers at their worst, at full scale          make fuzz   TARGET=mqtt or amqp, SECONDS=60
# make soak    MINUTES=30: all features at once, kills included; a picture in build/soak; fails on loss and growth
# PYTHON=python3.11 chooses the interpreter that makes .venv.

PYTHON  ?= python3
CONFIG  ?= config/gateway.yaml
PROFILE ?= all
TARGET  ?= mqtt
SECONDS ?= 60
IMAGE   ?= mqtt-amqp-gateway
TESTS   ?= tests
WORKERS ?= 2
CUTS    ?= 2000
MESSAGES ?= 10000000
KILLS   ?= 500
MINUTES ?= 30
EXAMPLES ?= 5000
BUILDER ?= $(firstword $(foreach tool,docker podman buildah,$(if $(shell command -v $(tool)),$(tool))) docker)
VENV    := .venv
BIN     := $(VENV)/bin
CHECKED := gateway transports plugins benchmarks tests
PIP     := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: run test gates unit abuse fuzz model credit kills soak power space wheel format bench budget image lock clean \
    servers
.NOTPARALLEL:

run: $(VENV)/installed
	@exec $(BIN)/gateway run $(CONFIG)

test: gates unit wheel

# What stands here costs nothing when it is done already: each stamp is as new as what it was made from.

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(f"Python 3.11 or newer is needed, $(PYTHON) is {sys.version.split()[0]}" \
	    if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || .ci/install-packages python3-venv
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/installed: $(VENV)/made pyproject.toml constraints.txt
	$(PIP) --editable .
	@touch $@

$(VENV)/installed-tests: $(VENV)/made pyproject.toml constraints.txt
	$(PIP) --editable '.[test]'
	@touch $(VENV)/installed $@

servers:
	@.ci/install-packages mosquitto mosquitto-clients rabbitmq-server gcc libc6-dev
	@# Where they came from elsewhere than Debian, Debian's npm would take their place.
	@command -v node >/dev/null && command -v npm >/dev/null || .ci/install-packages nodejs npm

gates: $(VENV)/installed-tests
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

unit: $(VENV)/installed-tests servers
	$(BIN)/python -m tests.harness.node
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(PYTEST_ARGS) $(TESTS)

power: $(VENV)/installed-tests servers
	GATEWAY_CUTS=$(CUTS) $(BIN)/python -m pytest $(PYTEST_ARGS) tests/faults/test_power.py

space: $(VENV)/installed-tests
	GATEWAY_MESSAGES=$(MESSAGES) $(BIN)/python -m pytest $(PYTEST_ARGS) tests/faults/test_space.py

# The wheel as a user gets it: in an empty environment, away from the sources.
wheel: $(VENV)/installed-tests
	@rm -rf build/wheel build/empty build/lib build/bdist.*
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel .
	@$(BIN)/python -m venv build/empty
	@build/empty/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt build/wheel/*.whl
	cd / && $(CURDIR)/build/empty/bin/gateway check $(CURDIR)/config/gateway.yaml

format: $(VENV)/installed-tests
	$(BIN)/ruff format $(CHECKED)
	$(BIN)/ruff check --fix $(CHECKED)

abuse: $(VENV)/installed-tests
	GATEWAY_ABUSE=full $(BIN)/python -m pytest -s tests/faults/test_abuse_peers.py tests/faults/test_abuse_floods.py

# Coverage-guided; what it finds is for tests/fuzz/corpus, where every test run tries it again.
fuzz: $(VENV)/installed-tests
	$(PIP) --editable '.[test,fuzz]'
	$(BIN)/python -m tests.fuzz $(TARGET) --seconds $(SECONDS)

bench: $(VENV)/installed-tests servers
	$(BIN)/python -m benchmarks $(PROFILE) $(BENCH_ARGS)

budget: $(VENV)/installed-tests
	$(BIN)/python -m benchmarks budget $(BENCH_ARGS)

kills: $(VENV)/installed-tests
	$(BIN)/python -m tests.crash --kills $(KILLS) $(KILLS_ARGS)

soak: $(VENV)/installed-tests
	$(PIP) --editable '.[test,soak]'
	$(BIN)/python -m tests.soak --minutes $(MINUTES) $(SOAK_ARGS)

model: $(VENV)/installed-tests
	GATEWAY_MODEL_EXAMPLES=$(EXAMPLES) GATEWAY_MODEL_STEPS=80 $(BIN)/python -m pytest $(PYTEST_ARGS) tests/model

credit: $(VENV)/installed-tests
	GATEWAY_CREDIT_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest --timeout 0 $(PYTEST_ARGS) tests/credit

image:
	# Without the format a HEALTHCHECK is dropped by buildah and podman; docker knows no other.
	BUILDAH_FORMAT=docker $(BUILDER) build $(BUILD_ARGS) --tag $(IMAGE) .

# The newest versions that pyproject.toml allows; run `make test` before you commit them.
lock:
	@rm -rf build/lock && $(PYTHON) -m venv build/lock
	@build/lock/bin/python -m pip install --quiet --disable-pip-version-check '.[test,soak]'
	@{ sed -n '/^#/p' constraints.txt; \
	   build/lock/bin/python -m pip freeze --exclude mqtt-amqp-gateway; } > build/constraints.txt
	@mv build/constraints.txt constraints.txt

clean:
	rm -rf $(VENV) build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
