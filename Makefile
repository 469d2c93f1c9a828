# Everything one does in a checkout. On a fresh Debian machine: `make demo`, `make test`.
export PATH := $(CURDIR)/.tools/bin:$(PATH):/usr/local/go/bin
RUN := uv run --no-sync

.PHONY: help setup demo test check format clean

help:  ## What there is
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

setup:  ## Install what is missing, and ready the checkout
	@deploy/setup.sh

demo: setup  ## The main job on a containerd of its own (DEMO="--pairs 3 --json out.json")
	$(RUN) expedited demo $(DEMO)

test: setup  ## All tests (TEST="-k gate")
	$(RUN) pytest $(TEST)

check: setup  ## ruff, mypy, import-linter
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) lint-imports

format: setup  ## Let ruff put the code in order
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

clean:  ## Remove what was made here (the cache of built runtimes stays)
	rm -rf .venv .tools build dist plugin/expedited/pb .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
