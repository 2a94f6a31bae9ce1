# Everything on a machine that has Python 3.11, pip and make. Each target sets up .venv first; a second run starts at once.
PYTHON ?= python3
BIN := .venv/bin
INSTALL_INPUTS := requirements.txt constraints.txt pyproject.toml $(wildcard plugins/*/pyproject.toml) adapters/pyproject.toml

# Some machines forbid Python to keep its bytecode: every command would then compile the zoo anew, and tests start hundreds of commands.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test check check-style check-types check-imports check-pages docs bench structure clean

demo: .venv/.installed
	$(BIN)/zoo fetch --defaults
	$(BIN)/zoo demo

test: .venv/.installed-dev
	$(BIN)/zoo fetch --defaults
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: check-style check-types check-imports check-pages

check-style: .venv/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

check-types: .venv/.installed-dev
	$(BIN)/mypy

check-imports: .venv/.installed-dev
	$(BIN)/lint-imports

check-pages: .venv/.installed-dev
	$(BIN)/python docs/generate.py --check

docs: .venv/.installed-dev
	$(BIN)/zoo fetch --defaults
	$(BIN)/python docs/generate.py

structure: .venv/.installed-dev
	$(BIN)/python tests/structure.py

bench: .venv/.installed-dev
	$(BIN)/zoo fetch --defaults
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/cold_start.py
	$(BIN)/python benchmarks/zero_shot.py
	$(BIN)/python benchmarks/search_recall.py
	$(BIN)/python benchmarks/embed_memory.py
	$(BIN)/python benchmarks/clip_throughput.py
	$(BIN)/python benchmarks/fusion_speed.py
	@echo "benchmarks/decoder_speed.py, spam_shots.py, transcribe_*.py and sound_shots.py need peers and data of their own: their heads say which"

# Without --no-compile, pip compiles every file of every package, of which a command imports few: half a minute of one core.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-compile --no-build-isolation -r requirements.txt

.venv/.setuptools:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools
	touch $@

.venv/.installed: .venv/.setuptools $(INSTALL_INPUTS)
	$(PIP_INSTALL)
	touch $@

# pip unpacks with one core. Everything is pinned, so two of them can bring half of the bytes each (torch and its libraries, and the rest); the last
# one then finds all but the local distributions there.
HEAVY := ^(nvidia|cuda|torch==|triton)
OPTIONAL := ^(nncf|ninja|pydot|pyparsing|tabulate)==

.venv/.installed-dev: .venv/.setuptools $(INSTALL_INPUTS) requirements-dev.txt
	grep -E '$(HEAVY)' constraints.txt > .venv/heavy.txt
	grep -Ev '^#|$(HEAVY)|$(OPTIONAL)' constraints.txt > .venv/rest.txt
	$(BIN)/python -m pip install --quiet --no-compile --no-deps -r .venv/heavy.txt & heavy=$$!; \
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --no-build-isolation -r .venv/rest.txt && wait $$heavy
	$(PIP_INSTALL) -r requirements-dev.txt
	touch .venv/.installed $@

clean:
	rm -rf .venv
