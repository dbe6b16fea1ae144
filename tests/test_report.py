"`report` writes the page of a run again, compares runs, and refuses photos and runs that do not match."
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from conftest import QUICK, TINY, tree, typed
from PIL import Image
from warm import run_warm

from basegun_fastai.base.files import write_whole
from basegun_fastai.base.record import Run

pytestmark = pytest.mark.slow


@pytest.fixture
def mine(run, tmp_path):
    "A copy of the run that a test may change."
    shutil.copytree(run.path, tmp_path/'mine')
    return Run(tmp_path/'mine')


def test_a_page_is_written_beside_the_one_that_is_there(mine, data):
    before = tree(mine.path)
    result = run_warm('report', mine.path, cwd=data.parent)
    assert result.returncode == 0, result.stderr
    written = [o for o in mine.path.iterdir() if o.name not in before]
    assert [str(o) for o in written] == result.stdout.split('\n')[:-1]
    assert {k: v for k, v in tree(mine.path).items() if k in before} == before
    pages = [BeautifulSoup(o.read_text(), 'html.parser').body.get_text() for o in (mine.report, *written)]
    assert pages[0].replace(Run(mine.path).path.name, '') == pages[1] or pages[0].count('\n') == pages[1].count('\n')


def test_a_run_against_another_and_against_its_copy(mine, pretrained, tmp_path):
    for name, other in (('other', pretrained), ('same', Run(shutil.copytree(mine.path, tmp_path/'copy')))):
        result = typed('report', mine.path, '--against', other.path, '--out', tmp_path/f'{name}.html', '--workers', 0)
        assert result.returncode == 0 and result.stdout == f"{tmp_path/f'{name}.html'}\n", result.stderr
    page, same = (BeautifulSoup((tmp_path/f'{o}.html').read_text(), 'html.parser') for o in ('other', 'same'))
    assert page.find(id='against').get_text() == f'Compared with {pretrained.path.name}'
    recalls = [{k: o['recall'] for k, o in json.loads(o.metrics.read_text())['per_class'].items()}
               for o in (pretrained, mine)]
    for row in page.find_all('tr', attrs={'data-against': True}):
        shown = [float(o.get_text()) for o in row.find_all('td')[1:3]]
        assert shown == pytest.approx([o[row['data-against']] for o in recalls], abs=5.1e-4)
    assert 'p = 1)' in same.find(id='against').find_next('p').get_text()


def test_a_page_with_groups_has_their_intervals(mine, pretrained, tmp_path):
    files = pd.read_csv(mine.predictions).file
    pd.DataFrame(dict(file=files, weapon=np.arange(len(files)) // 6)).to_csv(tmp_path/'g.csv', index=False)
    options = '--against', pretrained.path, '--workers', 0
    for name, groups in (('photo', ()), ('weapon', ('--groups', tmp_path/'g.csv'))):
        result = typed('report', mine.path, *options, *groups, '--out', tmp_path/f'{name}.html')
        assert result.returncode == 0, result.stderr
        assert ('intervals are by group: ' in result.stderr) == (name == 'weapon')
    by_photo, by_weapon = (BeautifulSoup((tmp_path/f'{o}.html').read_text(), 'html.parser').get_text()
                           for o in ('photo', 'weapon'))
    n = -(-len(files) // 6)
    assert f'{n} groups' in by_weapon and 'groups' not in by_photo.split('Compared with')[0]
    assert "exact test by group, p = " in by_weapon and "exact test, p = " in by_photo
    # as if it was trained with --groups
    config, numbers = (json.loads(o.read_text()) for o in (mine.config_file, mine.metrics))
    pd.DataFrame(dict(file=files, weapon='x')).to_csv(tmp_path/'other.csv', index=False)
    for name, kept, words in (('g', True, f'{len(files)} photos in {n} groups'),
                              ('gone', False, 'does not exist here, so the intervals are by photo'),
                              ('other', False, f'has 1 group of the val photos and not {n} as in the training, so')):
        config['options']['groups'], numbers['intervals']['groups'] = str(tmp_path/f'{name}.csv'), n
        write_whole(mine.config_file, json.dumps(config))
        write_whole(mine.metrics, json.dumps(numbers))
        result = typed('report', mine.path, '--out', tmp_path/f'{name}.html', '--workers', 0)
        assert result.returncode == 0 and words in result.stderr, result.stderr
        assert ('intervals are by group' in result.stderr) == kept
        assert (f'{n} groups' in (tmp_path/f'{name}.html').read_text()) == kept
    (tmp_path/'g.csv').write_text('file,weapon,camera\n')
    result = typed('report', mine.path, '--groups', tmp_path/'g.csv', '--workers', -1)
    assert result.returncode == 1 and 'names none of the photos' in result.stderr and '--workers -1' in result.stderr


def test_what_is_wrong_is_told_at_once(mine, pretrained, data, tmp_path):
    write_whole(mine.config_file, mine.config_file.read_text().replace('"finished"', '"training"'))
    result = typed('report', mine.path, '--against', tmp_path/'nowhere', '--out', data/'page.txt', '--workers', -1)
    assert result.returncode == 1 and not result.stdout and 'Traceback' not in result.stderr
    for o in ("mine' is not finished", "--against '", 'nowhere', '--workers -1'):
        assert o in result.stderr, result.stderr
    (tmp_path/'folder.html').mkdir()
    for out, message in ((data/'page.html', 'inside the data'), (tmp_path/'folder.html', 'is a folder'),
                         (tmp_path/'page.txt', 'ends in .html'), (tmp_path/'no'/'page.html', 'make it first')):
        result = typed('report', pretrained.path, '--out', out, '--workers', -1)
        assert result.returncode == 1 and message in result.stderr and '--workers -1' in result.stderr, result.stderr
    result = typed('report', pretrained.path, '--against', pretrained.path/'..'/pretrained.path.name, '--workers', -1)
    assert result.returncode == 1 and 'is the run itself: give another run' in result.stderr, result.stderr
    assert not list(tmp_path.glob('*.txt')) and typed('report', tmp_path/'nowhere').returncode == 1


def test_runs_of_other_classes_or_of_other_val_photos_are_not_compared(run, copy, tmp_path):
    from basegun_fastai.train import train
    Image.open(sorted((copy/'val'/'revolver').iterdir())[0]).rotate(90).save(copy/'val'/'revolver'/'new.png')
    train(copy, fine_tune_epochs=1, head_epochs=0, out=tmp_path, name='other-val', **QUICK)
    for split in ('train', 'val'): shutil.rmtree(copy/split/'revolver')
    train(copy, fine_tune_epochs=1, head_epochs=0, out=tmp_path, name='five', **QUICK)
    only = f"Only in '{tmp_path/'five'}': none. Only in '{run.path}': revolver. Give a run with the same classes"
    for name, message in (('other-val', 'different val photos'), ('five', only)):
        result = typed('report', run.path, '--against', tmp_path/name, '--out', tmp_path/'page.html')
        assert result.returncode == 1 and message in result.stderr and not (tmp_path/'page.html').exists()
    result = typed('report', tmp_path/'five', '--out', tmp_path/'page.html')
    assert result.returncode == 0 and (tmp_path/'page.html').exists(), result.stderr


def test_the_photos_have_to_be_those_of_the_run(run, copy, tmp_path):
    page = tmp_path/'page.html'
    result = typed('report', run.path, '--data', tmp_path/'nowhere', '--out', page)
    assert result.returncode == 1 and f"--data: no folder '{tmp_path/'nowhere'}': " in result.stderr
    extra = copy/'train'/'revolver'/'new.png'
    Image.new('RGB', (90, 60), 'red').save(extra)
    result = typed('report', run.path, '--data', copy, '--out', page, '--workers', 0)
    assert result.returncode == 0 and 'have changed since the training' in result.stderr
    assert 'photos were not compared' in page.read_text() and 'so none are shown' in page.read_text()
    assert len(BeautifulSoup(page.read_text(), 'html.parser').find_all(attrs={'data-input': True})) == 6
    assert not extra.with_suffix('.html').exists()
    page.unlink()
    extra.rename(copy/'val'/'revolver'/'new.png')
    result = typed('report', run.path, '--data', copy, '--out', page, '--workers', 0)
    assert result.returncode == 1 and 'was judged on' in result.stderr and not page.exists()


def test_tables_of_another_run_are_refused(mine, pretrained, tmp_path):
    shutil.copy(pretrained.predictions, mine.predictions)
    page = tmp_path/'page.html'
    result = typed('report', mine.path, '--out', page, '--workers', 0)
    assert result.returncode == 1 and 'not of the same val photos' in result.stderr and not page.exists()
    mine.predictions.unlink()
    result = typed('report', mine.path, '--out', page, '--workers', 0)
    assert result.returncode == 1 and 'predictions-val.csv' in result.stderr and 'Traceback' not in result.stderr


def test_what_a_network_has_no_evidence_for_is_said(data, tmp_path):
    from basegun_fastai.train import train
    train(data, fine_tune_epochs=1, out=tmp_path, name='vit', **TINY | dict(arch='test_vit', size=160))
    text = BeautifulSoup((tmp_path/'vit'/'report.html').read_text(), 'html.parser').get_text()
    assert 'this network has no evidence to show' in text and 'warm: for' not in text
