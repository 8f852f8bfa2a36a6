# Needs make and Python 3.11 or newer (with venv); everything else is installed into .venv.
PYTHON ?= python3
PORT ?= 8000
DATA ?= .data

# mypy reads the settings for their types; the values serve nothing else.
NO_STACK = DATABASE_URL=postgresql://types/types REDIS_URL=redis://types PUBLIC_URL=http://localhost SECRET_KEY=types \
  TOKEN_PEPPERS=1:types-types-types-types-types-types-types ENCRYPTION_KEYS=types

# Three at a time, a file of tests each: much of the time is waiting. In the order of tests/alone.py: longest first.
PYTEST = .venv/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

LOCK = .venv/bin/python -m uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
  --no-header --quiet

.PHONY: help run test check controls chaos bench bench-scale bench-peers screenshots lock clean

help:
	@echo "make run     start the whole gateway on this machine: http://127.0.0.1:$(PORT)"
	@echo "             PORT=8000 and DATA=.data choose another port and data folder"
	@echo "             DEMO=no leaves out the demo tenant and the sandbox provider"
	@echo "make test    run the tests, on a PostgreSQL and a Valkey of their own"
	@echo "make check   what CI runs: format, lint, types, tests"
	@echo "make controls  plant bugs in a copy of the code, and see that the tests catch each of them"
	@echo "make chaos   kill and stop processes and break connections under load; then compare three accounts"
	@echo "             SEED=7 and MINUTES=2 choose what befalls whom, and for how long"
	@echo "make bench   measure what a request costs: the gateway beside a bare pass-through and nginx"
	@echo "make bench-scale  measure what grows: calls held, limits, tokens, images, the books, the start"
	@echo "make bench-peers  measure LiteLLM's proxy and Portkey's gateway on the same load; installs them outside"
	@echo "make screenshots  take the pictures of docs/images, of a stack of their own; needs Chromium"
	@echo "make lock    pin the dependencies of requirements/*.in anew"
	@echo "make clean   remove .venv and caches; the data stays"

# `exec`: a signal for make's child reaches the supervisor, not a shell in between.
run: export DATA := $(DATA)
run: export PORT := $(PORT)
run: install-run
	@exec .venv/bin/python -m config.supervisor

test: install-dev
	$(PYTEST)

check: install-dev
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m ruff check .
	$(NO_STACK) .venv/bin/python -m mypy .
	$(PYTEST)

controls: install-dev
	@exec .venv/bin/python -m tests.planted

chaos: install-dev
	@exec .venv/bin/python -m tests.chaos $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES))

bench: install-run
	@exec .venv/bin/python -m bench

bench-scale: install-run
	@exec .venv/bin/python -m bench.scale $(NAME)

bench-peers: install-run
	@exec .venv/bin/python -m bench.peers

screenshots: install-dev
	@exec .venv/bin/python -m tests.screenshots $(if $(NAME),--only $(NAME))

lock: install-dev
	$(LOCK) requirements/dev.in -o requirements/dev.txt
	$(LOCK) --constraint requirements/dev.txt requirements/run.in -o requirements/run.txt
	$(LOCK) --constraint requirements/dev.txt requirements/base.in -o requirements/base.txt

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The stamp is a hash, so nothing here depends on the times of files.
.PHONY: install-run install-dev
install-run install-dev: install-%:
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or newer is needed, and there is no $(PYTHON)." >&2; exit 1; }
	@$(PYTHON) config/supervisor/install.py $*
