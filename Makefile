# Every target sets itself up on a fresh machine: `make quickstart` and `make test` are all a newcomer needs.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: env quickstart test lint types wheel clean

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,lora]'
	@touch $(STAMP)

quickstart: env
	$(BIN)/smalti run configs/recipes/quickstart.yaml

test: env
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: env
	@mkdir -p typings && ln -sfn .. typings/smalti
	$(BIN)/basedpyright

wheel: env
	$(BIN)/python -m build --wheel

clean:
	rm -rf .venv build dist runs *.egg-info typings
