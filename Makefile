# Two commands need nothing but Python >= 3.11 and make: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Made again when pyproject.toml changes.
READY := $(VENV)/.ready

.PHONY: quickstart test integration check docs site lock lint types imports slow chaos simulate test-cluster test-gpu clean

quickstart: $(READY)
	$(BIN)/raylt sweep digits

# Processes that share the tests, file by file: much of what they do is waiting.
JOBS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

# Everything that needs no server, and one sweep on a real Ray, killed and resumed.
test: $(READY)
	$(PYTEST)

# Sweeps on real clusters, MLflow servers, S3, SSH and full disks; faults thrown at them.
integration: $(READY)
	$(PYTEST) -m "integration and not slow and not gpu"

check: lint types imports test

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

imports: $(READY)
	$(BIN)/lint-imports

# Minutes of work on real data: needs RAYLT_TEST_DATA, a folder as torchvision keeps it, with the Inception weights.
slow: $(READY)
	$(BIN)/python -m pytest -m slow

# N faults from the schedule of SEED, into real sweeps on a real cluster; adds what it counted to the record.
N ?= 40
SEED ?= 1
CONCURRENCY ?= 1
chaos: $(READY)
	$(BIN)/python -m tests.chaos.harness --faults $(N) --seed $(SEED) --concurrency $(CONCURRENCY) \
		--record benchmarks/results/chaos.json

# Thousands of small sweeps on disks, buckets, clocks and processes that fail by seed: what was lost, done twice or believed.
simulate: $(READY)
	$(BIN)/python -m tests.chaos.simulation.run --runs 5000 --seed $(SEED) --record benchmarks/results/simulation.json

# `ray up` over SSH on machines of our own, in namespaces: some minutes, as root (tests/cluster_lab/lab.py says what else).
test-cluster: $(READY)
	$(BIN)/python -m pytest -m slow -v -s tests/cluster_lab

# On a machine with a GPU: numbers, memory, a lost GPU, and a sweep of two trials on one.
test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu -v -s tests/gpu

# The pages that are made from the code.
docs: $(READY)
	$(BIN)/python -m raylt.spec.reference > docs/spec.md
	$(BIN)/python -m raylt.report.formats > docs/formats.md

# All of docs/ as a site, in build/site, by a tool in an environment of its own.
SITE := build/site-venv
site:
	test -e $(SITE)/.ready || { $(PYTHON) -m venv $(SITE) && $(SITE)/bin/python -m pip install --quiet zensical && touch $(SITE)/.ready; }
	$(SITE)/bin/python docs/site.py

# The exact environment, as it is installed now.
lock:
	{ echo "# The exact environment: versions that work together. make installs from it; make lock writes it."; \
		$(BIN)/python -m pip freeze --exclude-editable; } > requirements.lock

$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "raylt needs Python 3.11 or newer; name one with: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' --constraint requirements.lock
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
