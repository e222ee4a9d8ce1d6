# Every target makes what it needs: a virtual environment in .venv with the package installed in it.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := pyproject.toml $(wildcard c/*.[ch] c/simd/*.h c/CMakeLists.txt fastsoftmax/_backends/binding/*)

.PHONY: run test bench lint soak fuzz mutants clean

run: .venv/run ## the main job: every backend on real logits, cross-checked and timed
	$(BIN)/python bench/run.py

test: .venv/test ## the whole suite, on two processes; PYTEST_ARGS are passed on
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

bench: .venv/bench ## every cell against the peers, under ten minutes; BENCH_ARGS=--full for all cells, FASTSOFTMAX_ISA to force one
	$(BIN)/python -m pytest bench --quiet --benchmark-json=bench.json $(BENCH_ARGS)
	$(BIN)/python bench/report.py bench.json

soak: .venv/test ## calls of everything for minutes, and arrays beyond 2^31; SOAK_ARGS="--minutes 10"
	$(BIN)/python tests/soak.py $(SOAK_ARGS)

fuzz: .venv/test ## hostile calls: of the C library with sanitizers, FUZZ_ARGS executions for each ISA, and of the Python functions
	.ci/fuzz $(FUZZ_ARGS)
	$(BIN)/python tests/fuzz_api.py

mutants: .venv/test ## deliberate defects, which the suite must notice; MUTANTS=names or files
	$(BIN)/python tests/mutants.py $(MUTANTS)

lint: .venv/lint ## format, lint, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist

# .venv/NAME: the package with the extra NAME. Editable, so that Python code is used where it stands; C is built anew
# when a source of it is newer.
.venv/%: .venv/python $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

.venv/python:
	$(PYTHON) -m venv .venv
	@touch $@

.PRECIOUS: .venv/%
