# What people who work on it type (CONTRIBUTING.md). All but `install` install what is missing.
.PHONY: install demo one fast test docs bench
.ONESHELL:
.SILENT:
.SHELLFLAGS = -eu -o pipefail -c
SHELL = bash
# Python keeps what it has compiled, whatever the shell says: compiling PyTorch and fastai is three fifths of a start.
export PYTHONDONTWRITEBYTECODE =
PYTHON ?= python3
BIN = .venv/bin
ENVIRONMENT = OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE CUDA_VISIBLE_DEVICES= MPLBACKEND=Agg PATH="$$PWD/$(BIN):$$PATH"

install: .venv/installed

.venv/installed: settings.ini setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	# Only what a start imports is compiled, and now: a shell that sets PYTHONDONTWRITEBYTECODE would never do it.
	$(BIN)/python -W ignore -c 'import pkgutil, basegun_fastai as b; [__import__(o.name) for o in pkgutil.walk_packages(b.__path__, "basegun_fastai.")]'
	touch $@

demo: install
	rm -rf demo
	$(BIN)/basegun-fastai demo-data demo/data --photos-per-class 100
	$(BIN)/basegun-fastai train demo/data --arch test_resnet --size 96 --weights none --fine-tune-epochs 16 --lr 0.006 --batch-size 16 --out demo/runs --name first
	echo
	echo "look at demo/runs/first/report.html, and at the curves: $(BIN)/tensorboard --logdir demo/runs"

one: install
	export $(ENVIRONMENT) XDG_CACHE_HOME="$$(mktemp -d)"
	trap 'rm -rf "$$XDG_CACHE_HOME"' EXIT
	notebook=$$(find nbs -name '$(NB).ipynb' -not -path '*/.ipynb_checkpoints/*' | head -1)
	test -n "$$notebook" || { echo "no notebook '$(NB)': give its name, such as make one NB=levels"; exit 1; }
	nbdev-export
	nbdev-clean --fname "$$notebook"
	ruff check -q "$$notebook" basegun_fastai
	nbdev-test "$$notebook" --n-workers 0
	tests=$$(find tests -name 'test_$(NB).py')
	test -z "$$tests" || pytest $$tests tests/test_layers.py tests/test_docs.py tests/test_book.py

fast: install
	export $(ENVIRONMENT) XDG_CACHE_HOME="$$(mktemp -d)"
	trap 'rm -rf "$$XDG_CACHE_HOME"' EXIT
	ruff check .
	pytest -n 2 --dist loadfile -m 'not slow'

test: install
	export $(ENVIRONMENT) XDG_CACHE_HOME="$$(mktemp -d)"
	trap 'rm -rf "$$XDG_CACHE_HOME"' EXIT
	before=$$(git status --porcelain --untracked-files=no | sha256sum; git diff | sha256sum)
	nbdev-export
	nbdev-clean
	test "$$before" = "$$(git status --porcelain --untracked-files=no | sha256sum; git diff | sha256sum)" || { git diff --stat; echo 'nbdev-export or nbdev-clean changes files: commit what they make'; exit 1; }
	ruff check .
	timeout 1800 nbdev-test --n-workers 2 2>&1 | tee "$$XDG_CACHE_HOME/lessons.log"
	if grep -q Traceback "$$XDG_CACHE_HOME/lessons.log"; then echo 'a lesson prints a traceback'; exit 1; fi
	pytest -n 2 --dist loadfile --no-loadscope-reorder
	rm -rf build dist
	pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation -w dist .
	python -m venv dist/venv
	dist/venv/bin/pip install -q --disable-pip-version-check --no-deps -c constraints.txt fastcore dist/*.whl
	(cd dist && venv/bin/basegun-fastai -h)

docs: install
	$(BIN)/python nbs/book.py _docs

bench: install
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/near_duplicates.py
	$(BIN)/python benchmarks/check.py
	$(BIN)/python benchmarks/head_views.py
	$(BIN)/python benchmarks/whole.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/levels.py
	$(BIN)/python benchmarks/real.py
	$(BIN)/python benchmarks/unknown.py
	$(BIN)/python benchmarks/padding.py
	command -v hey >/dev/null && $(BIN)/python benchmarks/load.py || echo 'no hey (apt-get install hey): benchmarks/load.py is left out'
