# The README's commands. `demo` and `test` install what is missing.
.PHONY: install demo test bench
.ONESHELL:
.SILENT:
.SHELLFLAGS = -eu -o pipefail -c
SHELL = bash
PYTHON ?= python3
BIN = .venv/bin

install: .venv/installed

.venv/installed: settings.ini setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	rm -rf demo
	$(BIN)/basegun-fastai demo-data demo/data --photos-per-class 100
	$(BIN)/basegun-fastai train demo/data --arch test_resnet --size 96 --weights none --fine-tune-epochs 16 --lr 0.006 --batch-size 16 --out demo/runs --name first
	echo
	echo "look at demo/runs/first/confusion-matrix.png, and at the curves: $(BIN)/tensorboard --logdir demo/runs"

test: install
	export OMP_NUM_THREADS=2 CUDA_VISIBLE_DEVICES= MPLBACKEND=Agg PATH="$$PWD/$(BIN):$$PATH" XDG_CACHE_HOME="$$(mktemp -d)"
	trap 'rm -rf "$$XDG_CACHE_HOME"' EXIT
	before=$$(git status --porcelain --untracked-files=no | sha256sum; git diff | sha256sum)
	nbdev-export
	nbdev-clean
	test "$$before" = "$$(git status --porcelain --untracked-files=no | sha256sum; git diff | sha256sum)" || { git diff --stat; echo 'nbdev-export or nbdev-clean changes files: commit what they make'; exit 1; }
	ruff check .
	nbdev-test --n-workers 1 2>&1 | tee "$$XDG_CACHE_HOME/lessons.log"
	if grep -q Traceback "$$XDG_CACHE_HOME/lessons.log"; then echo 'a lesson prints a traceback'; exit 1; fi
	pytest -n 2 --dist loadfile
	rm -rf build dist
	pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation -w dist .
	python -m venv dist/venv
	dist/venv/bin/pip install -q --disable-pip-version-check --no-deps -c constraints.txt fastcore dist/*.whl
	(cd dist && venv/bin/basegun-fastai -h)

bench: install
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/near_duplicates.py
	$(BIN)/python benchmarks/check.py
	$(BIN)/python benchmarks/head_views.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/levels.py
	$(BIN)/python benchmarks/real.py
	$(BIN)/python benchmarks/padding.py
