"Every target of the Makefile runs in `make test`, which CI runs, or in `make soak`, before a release."
import re
import subprocess

import pytest
from conftest import soak
from test_layers import ROOT

MAKEFILE = (ROOT/'Makefile').read_text()
RULES = {target: needed.split() for target, needed in re.findall(r'^([\w./]+):(?! *\w+ *=)(.*)$', MAKEFILE, re.M)}
TARGETS = {o for o in RULES if o.isidentifier()}  # the others are files, or words for make itself


def run_by(target):
    "A target, and all targets that it needs."
    return {target}.union(*(run_by(o) for o in RULES.get(target, ())))


def test_no_target_is_left_out():
    assert TARGETS == {*re.search(r'^\.PHONY: (.*)$', MAKEFILE, re.M)[1].split()} and len(TARGETS) >= 8
    assert TARGETS <= run_by('test') | run_by('soak')
    assert (ROOT/'.ci'/'run').read_text().splitlines()[-1] == 'make test'


def test_soak_tries_all_of_what_it_runs():
    result = subprocess.run(['make', '-n', 'soak'], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "-name 'levels.ipynb'" in result.stdout and 'runpy' in result.stdout.split('for o in bench ')[1]


@pytest.mark.parametrize('file', sorted(o.relative_to(ROOT).as_posix() for o in ROOT.glob('tests/**/test_*.py')))
def test_what_soak_repeats_is_marked(file):
    text = (ROOT/file).read_text()
    assert bool(re.search(r'= soak\(', text)) == bool(re.search(r'mark\.soak\b', text))


def test_soak_repeats_more(monkeypatch):
    monkeypatch.delenv('BASEGUN_SOAK', raising=False)
    assert soak(3, 20) == 3
    monkeypatch.setenv('BASEGUN_SOAK', '1')
    assert soak(3, 20) == 20
