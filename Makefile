# Commands for developers (CONTRIBUTING.md). Every target installs what is missing.
.PHONY: install demo one fast test soak docs bench
.NOTPARALLEL:
.ONESHELL:
.SILENT:
.SHELLFLAGS = -eu -o pipefail -c
SHELL = bash
# Python keeps the modules that it compiles, even if the shell forbids it: compiling them is three fifths of a start.
export PYTHONDONTWRITEBYTECODE =
PYTHON ?= python3
BIN = .venv/bin
ENVIRONMENT = OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE CUDA_VISIBLE_DEVICES= MPLBACKEND=Agg PATH="$$PWD/$(BIN):$$PATH"

install: .venv/installed

.venv/installed: settings.ini setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	# Compile now, and only what a start imports: if a shell sets PYTHONDONTWRITEBYTECODE, it is never compiled later.
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
	test -n "$$notebook" || { echo "no notebook '$(NB)': give the name of one, for example: make one NB=levels"; exit 1; }
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

test: install docs
	export $(ENVIRONMENT) XDG_CACHE_HOME="$$(mktemp -d)"
	trap 'rm -rf "$$XDG_CACHE_HOME"' EXIT
	before=$$(git status --porcelain --untracked-files=no | sha256sum; git diff | sha256sum)
	nbdev-export
	nbdev-clean
	test "$$before" = "$$(git status --porcelain --untracked-files=no | sha256sum; git diff | sha256sum)" || { git diff --stat; echo 'nbdev-export or nbdev-clean changed files: commit the changes'; exit 1; }
	ruff check .
	timeout 1800 nbdev-test --n-workers 2 2>&1 | tee "$$XDG_CACHE_HOME/lessons.log"
	if grep -q Traceback "$$XDG_CACHE_HOME/lessons.log"; then echo 'a lesson prints a traceback'; exit 1; fi
	# a third process has the cores while the others wait: for limits of ten seconds, downloads that stall, a browser
	pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=30
	rm -rf build dist
	pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation -w dist .
	python -m venv --without-pip dist/venv
	pip --python dist/venv/bin/python install -q --disable-pip-version-check --no-compile --no-deps -c constraints.txt fastcore dist/*.whl
	(cd dist && venv/bin/basegun-fastai -h)

# Before a release: the repeating tests in full, and the targets that `test` leaves out; `bench` only imports its scripts.
soak: NB = levels
soak: BENCHMARK = $(BIN)/python -W ignore -c 'import runpy, sys; sys.path.insert(0, "benchmarks"); runpy.run_path(sys.argv[1])'
soak: install one fast demo bench
	export $(ENVIRONMENT) XDG_CACHE_HOME="$$(mktemp -d)"
	trap 'rm -rf "$$XDG_CACHE_HOME"' EXIT
	BASEGUN_SOAK=1 pytest -n 2 --dist loadfile -m soak --durations=30 -o faulthandler_timeout=14400

docs: install
	$(BIN)/python nbs/book.py _docs

BENCHMARK = $(BIN)/python
bench: install
	for o in bench near_duplicates check head_views whole memory levels real unknown padding; do $(BENCHMARK) "$$PWD/benchmarks/$$o.py"; done
	if command -v hey >/dev/null; then $(BENCHMARK) "$$PWD/benchmarks/load.py"; else echo 'benchmarks/load.py is left out: it needs hey (apt-get install hey)'; fi
