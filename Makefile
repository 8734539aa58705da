# Each target sets up what it needs: a virtual environment with the locked versions.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# As patchcluster sets it for itself: see src/patchcluster/__init__.py.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test test-all test-slow test-faults test-wheel test-datasets fuzz docs lint bench bench-scale quality sbom audit clean

demo: $(READY)
	$(BIN)/patchcluster demo -o demo

# The tests to run after each change. Two processes, of one thread each: with more, two cores would
# be shared by four threads. ARGS='-n 0 FILE' runs in this process, for a debugger.
ON_TWO_CORES := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
test: $(READY)
	$(ON_TWO_CORES) $(ARGS)

# What must pass before a change lands; make -k goes on after a failure.
test-all: test test-slow test-faults test-wheel test-datasets

# What takes too long to run after each change.
test-slow: $(READY)
	$(ON_TWO_CORES) -m slow -rs

# Kills, full disks, hostile files, two processes on one run.
test-faults: $(READY)
	$(ON_TWO_CORES) tests/faults -m '' -rs

# The packages are built, the wheel is installed into an empty environment (of WHEEL_PYTHON, if it is
# set) and used there: 7 GB for a while, and the package index.
test-wheel: $(READY)
	$(BIN)/python -m pytest tests/test_wheel.py -m '' -rs

# With Hugging Face's datasets, which no other test needs and all would start more slowly with.
test-datasets: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt datasets
	$(BIN)/python -m pytest tests/pipeline/test_sources.py -rs

# Damaged files through the reading of images, for so many minutes; SEED= draws others.
MINUTES ?= 10
SEED ?= 0
fuzz: $(READY)
	$(BIN)/python tools/fuzz.py --minutes $(MINUTES) --seed $(SEED)

# The documentation as a site, in site/.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: $(READY)
	$(BIN)/ruff check src tests benchmarks examples experiments docs tools
	$(BIN)/ruff format --check src tests benchmarks examples experiments docs tools
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# PEER=python of an environment with anomalib, see benchmarks/peers/anomalib_peer.py.
MVTEC := $(wildcard ../shared/data/mvtec)
bench: $(READY)
	$(BIN)/python benchmarks/neighbours.py $(MVTEC)
	$(BIN)/python benchmarks/coreset.py $(PEER)
	$(BIN)/python benchmarks/features.py
	$(BIN)/python benchmarks/backbones.py
	$(BIN)/python benchmarks/end_to_end.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/predictions.py
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/bank.py
	$(if $(and $(PEER),$(MVTEC)),$(BIN)/python benchmarks/patchcore.py $(MVTEC)/bottle $(PEER))

# Growth to 10,000 images, updates, and banks of fewer images: 45 minutes, and 11 GB of disk.
bench-scale: $(READY)
	$(BIN)/python benchmarks/growth.py 100 300 1000 10000
	$(BIN)/python benchmarks/updates.py
	$(if $(MVTEC),PYTHONPATH=benchmarks $(BIN)/python experiments/banks.py $(MVTEC)/../magnetic_tile 128 256 512 992)

# Presets, and folders of users, against the figures in benchmarks/quality.json, on the data at hand:
# 25 minutes.
quality: $(READY)
	$(BIN)/python benchmarks/quality.py $(wildcard $(addprefix ../shared/data/,mvtec/bottle mvtec/screw \
		metal_plate light_guide magnetic_tile))

# The locked packages as a bill of materials (CycloneDX). The tool comes and goes: it is not locked.
sbom:
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet 'cyclonedx-bom>=7,<8'
	.tools/bin/cyclonedx-py requirements --output-reproducible --of JSON -o sbom.json constraints.txt
	rm -rf .tools

# The locked packages against the known vulnerabilities, which it asks PyPI for: it needs a network,
# and so is no part of the tests. A package that PyPI says nothing of is a failure, not a pass.
audit:
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet 'pip-audit>=2.7,<3'
	.tools/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict
	rm -rf .tools

clean:
	rm -rf .venv .tools dist site sbom.json demo .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)
