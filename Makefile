# Two commands, each complete on a fresh machine with Python 3.11+ and make:
#   make demo   the main job, end to end, on a small real data set
#   make test   the whole test suite, linters and types
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= vlsi-cache-demo
TREE   := build/tree
HARNESS := tests/evaluation/harness.txt

.PHONY: demo test lint types suite tree schemas golden bench-gpu clean

demo: $(VENV)/.installed
	$(BIN)/vlsi-cache demo --out $(OUT)

test: lint types suite

# a process of one thread per core: threads that wait for one another lose more than they gain
suite: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: $(VENV)/.installed tree
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(TREE) && $(abspath $(BIN))/lint-imports --no-cache --config $(CURDIR)/.importlinter

types: $(VENV)/.installed tree
	MYPYPATH=$(TREE) $(BIN)/mypy

# the package as it is installed, cli/ and schemas/ inside: linters read folders, not mappings
tree:
	rm -rf $(TREE)
	mkdir -p $(TREE)
	cp -r vlsi_cache $(TREE)/
	cp -r cli schemas $(TREE)/vlsi_cache/

schemas: $(VENV)/.installed
	$(BIN)/python -m vlsi_cache.schemas

# under 8 minutes on one H100; PARTS=objective,student,dump,verbalization,loader selects some
PARTS ?= objective,student,dump,verbalization,loader
bench-gpu: $(VENV)/.installed
	$(BIN)/python benchmarks/gpu.py --parts $(PARTS)

# the golden cache of this version of the format: only while the version is not released
golden: $(VENV)/.installed
	cd tests && $(abspath $(BIN))/python -m support.golden

# torch comes first and alone: its version is pinned together with torchvision's
$(VENV)/.installed: pyproject.toml constraints.txt $(HARNESS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vlsi-cache needs Python 3.11 or later")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/harness -r $(HARNESS)
	touch $@

clean:
	rm -rf $(VENV) $(OUT) build *.egg-info
