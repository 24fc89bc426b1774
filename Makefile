# `make` lists the targets. Everything is installed into .venv; runs go to runs/.
#
# Packages come from wherever this machine's pip gets them. Where that is the public index, its Linux build of torch brings CUDA
# packages along (about 3 GB). For a CPU build, name the CPU index that PyTorch's install page gives, once, in pip's own settings:
#     pip config set global.extra-index-url URL        or        PIP_EXTRA_INDEX_URL=URL make demo
# pip then takes the CPU build of the pinned version by itself. Machines with a mirror or a folder of wheels need nothing.

VENV := .venv
PY := $(VENV)/bin/python
# Files whose content decides what is installed; the name of the stamp carries their checksum, so touching them costs nothing.
KEY := $(shell (pwd; cat pyproject.toml constraints.txt) | cksum | cut -d ' ' -f 1)
INSTALLED := $(VENV)/.installed-$(KEY)
DEVELOPED := $(VENV)/.developed-$(KEY)
# Test processes. Each computes on one thread: more threads than cores make small models many times slower. Stealing work keeps a
# module's tests, and what they share, in one process for as long as both are busy.
JOBS ?= 2
CODE := src tests benchmarks
TEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m pytest

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow check wheel clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\): .*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name what; do printf '  make %-10s %s\n' "$$name" "$$what"; done

venv: $(INSTALLED)  ## set up .venv with the package and its pinned dependencies

demo: $(INSTALLED)  ## run the embedded study; ends with the path of its report page (ARGS="key=value ..." overrides)
	$(PY) -m pivot demo $(ARGS)

test: $(DEVELOPED)  ## the tests, but not the slow ones (ARGS="-k name" selects, JOBS=n sets the processes)
	$(TEST) -n $(JOBS) --dist worksteal $(ARGS)

test-slow: $(DEVELOPED)  ## speed floors, kills and big sizes, one after the other
	$(TEST) -m slow $(ARGS)

check: $(DEVELOPED)  ## lint, format, types, import directions
	$(PY) -m ruff check $(CODE)
	$(PY) -m ruff format --check $(CODE)
	$(PY) -m mypy
	$(TEST) -q tests/test_arrows.py

wheel: $(DEVELOPED)  ## build dist/*.whl, by way of the source archive
	rm -rf build dist
	$(PY) -m build --outdir dist

clean:  ## remove build outputs and tool caches; .venv and runs/ stay
	rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# A virtual environment that works is kept; a half-made or broken one is made anew.
define SET_UP
@$(PY) -c 'import pip' 2>/dev/null && exit 0; \
for python in $(PYTHON) python3 python3.11 python3.12 python3.13 python3.14 python; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	"$$python" -c 'import venv, ensurepip' 2>/dev/null || { echo "$$python cannot make virtual environments; install its venv package (Debian: python3-venv)" >&2; continue; }; \
	echo "setting up $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv --clear $(VENV) && exit 0; \
done; \
echo "no Python >= 3.11 that can make virtual environments was found; install one, or name it: make PYTHON=/path/to/python3.11 ..." >&2; exit 1
endef

$(INSTALLED):
	$(SET_UP)
	$(PY) -m pip install --constraint constraints.txt --editable .
	@rm -f $(VENV)/.installed-* && touch $@

$(DEVELOPED): | $(INSTALLED)
	$(PY) -m pip install --constraint constraints.txt --editable '.[dev]'
	@rm -f $(VENV)/.developed-* && touch $@
