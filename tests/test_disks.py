"Disks that are not ext4: each fault is raised at the call that fails on such a disk."
import errno
import os
import shutil
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import typed

from basegun_fastai.base.errors import BasegunError
from basegun_fastai.base.files import Taken, disk_fault, hold, hold_first, whole_folder, write_whole
from basegun_fastai.base.record import Run
from basegun_fastai.base import files
from basegun_fastai.data import dataset
from basegun_fastai.predict import load


def failing(monkeypatch, name, number, folders):
    "Make a function of `os` with a descriptor fail, for folders or for files."
    real = getattr(os, name)
    def fail(descriptor, *more):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == folders: raise OSError(number, os.strerror(number))
        return real(descriptor, *more)
    monkeypatch.setattr(os, name, fail)


@pytest.mark.parametrize('number', [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
@pytest.mark.parametrize('folders', [True, False])
def test_a_disk_that_syncs_no_folder_or_no_file_keeps_what_is_written(tmp_path, monkeypatch, number, folders):
    failing(monkeypatch, 'fsync', number, folders)
    assert write_whole(tmp_path/'file', 'text').read_text(encoding='utf-8') == 'text'
    with whole_folder(tmp_path/'folder') as folder: write_whole(folder/'file', 'text')
    assert sorted(os.listdir(tmp_path)) == ['file', 'folder'] and os.listdir(tmp_path/'folder') == ['file']


def test_a_disk_that_opens_no_folder_keeps_what_is_written(tmp_path, monkeypatch):
    real = os.open
    def fail(path, *more, **options):
        if os.path.isdir(path): raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, *more, **options)
    monkeypatch.setattr(os, 'open', fail)
    assert write_whole(tmp_path/'file', 'text').read_text(encoding='utf-8') == 'text'


@pytest.mark.parametrize('number', [errno.EIO, errno.ENOSPC, errno.ESTALE])
def test_a_disk_that_failed_to_sync_is_told_by_the_file_and_leaves_the_old_one(tmp_path, monkeypatch, number):
    write_whole(tmp_path/'file', 'old')
    failing(monkeypatch, 'fsync', number, False)
    with pytest.raises(OSError) as error: write_whole(tmp_path/'file', 'new')
    assert (tmp_path/'file').read_text(encoding='utf-8') == 'old' and os.listdir(tmp_path) == ['file']
    assert str(tmp_path/'file') in disk_fault(error.value)


def test_a_full_disk_is_named_by_what_would_be_written(tmp_path):
    with pytest.raises(OSError) as error, whole_folder(tmp_path/'new'):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as Pillow does
    assert disk_fault(error.value).startswith(f"{tmp_path/'new'}: the disk is full")
    copying = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'source', None, 'target')
    assert disk_fault(copying).startswith('target: the disk is full')


@pytest.fixture
def renames_no_folder(monkeypatch):
    from pathlib import Path
    def broken(number):
        def fail(self, _): raise OSError(number, os.strerror(number), str(self))
        monkeypatch.setattr(Path, 'rename', fail)
    return broken


@pytest.mark.parametrize('number', [errno.EXDEV, errno.ENOTSUP, errno.ENOSYS])
def test_a_disk_that_renames_no_folder_is_told(tmp_path, renames_no_folder, number):
    renames_no_folder(number)
    with pytest.raises(OSError) as error, files.whole_folder(tmp_path/'folder') as folder: (folder/'file').touch()
    assert 'give a folder on another disk' in disk_fault(error.value) and os.listdir(tmp_path) == []


def test_a_command_on_a_disk_that_renames_no_folder_leaves_nothing(data, tmp_path, renames_no_folder):
    renames_no_folder(errno.EXDEV)
    done = typed('split', data/'train', tmp_path/'out')
    assert done.returncode == 1 and 'give a folder on another disk' in done.stderr and os.listdir(tmp_path) == []


@pytest.mark.parametrize('number', [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_disk_that_went_away_is_told(number):
    message = disk_fault(OSError(number, os.strerror(number), '/net/file'))
    assert message == ('/net/file: the disk does not respond: connect it, then start the same command again')


def test_two_machines_with_processes_of_one_number_write_to_files_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'getpid', lambda: 1)
    with files.whole_file(tmp_path/'file') as one, files.whole_file(tmp_path/'file') as other:
        assert one.name != other.name
        one.write(b'one')
        other.write(b'other')
    assert (tmp_path/'file').read_bytes() == b'one' and os.listdir(tmp_path) == ['file']


def test_a_disk_that_does_not_tell_case_loses_no_photo(tmp_path):
    for o in ('source', 'there'): (tmp_path/o).write_text(o, encoding='utf-8')
    for link in (False, True):
        with pytest.raises(BasegunError, match='the same name except for case or accents'):
            dataset._place(tmp_path/'source', tmp_path/'there', link)
    assert (tmp_path/'there').read_text(encoding='utf-8') == 'there'


@pytest.mark.parametrize('number', [errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK])
def test_a_disk_without_hard_links_is_told(tmp_path, monkeypatch, number):
    def fail(*_): raise OSError(number, os.strerror(number))
    monkeypatch.setattr(os, 'link', fail)
    with pytest.raises(BasegunError, match='omit --link to copy'): dataset._place(tmp_path/'a', tmp_path/'b', True)


@pytest.fixture
def forbidden():
    "A folder that all users may read, and an effective user who may do no more; files of a test have another owner."
    if os.geteuid(): pytest.skip('only root can be two users')
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        @contextmanager
        def as_nobody():
            os.seteuid(65534)
            try: yield
            finally: os.seteuid(0)
        yield Path(folder), as_nobody


def test_a_lock_of_another_user_is_told_by_its_owner(forbidden):
    folder, as_nobody = forbidden
    os.chmod(folder, 0o777)
    (folder/'.run.lock').touch(0o644)
    with as_nobody():
        with pytest.raises(Taken) as error, hold(folder/'run'): pass
        with hold_first(folder/'run') as path: assert path == folder/'run_2'
    assert "'root'" in str(error.value) and '-rw-r--r--' in str(error.value) and '.run.lock' in str(error.value)
    assert 'ask them to remove that file' in str(error.value) and (folder/'.run.lock').exists()


def test_a_place_of_another_user_is_told_by_its_owner(forbidden):
    folder, as_nobody = forbidden
    with as_nobody(), pytest.raises(PermissionError) as error, hold(folder/'run'): pass
    message = disk_fault(error.value)
    assert f"'{folder}' is owned by the user 'root', with mode drwxr-xr-x" in message and '`chmod`' in message


@pytest.mark.parametrize('name', ['model.json', 'model.onnx', ''])
def test_an_export_of_another_user_is_told_by_its_owner(forbidden, exported, name):
    folder, as_nobody = forbidden
    shutil.copytree(exported, folder/'served')
    os.chmod(folder/'served', 0o755)
    for o in (folder/'served').iterdir(): o.chmod(0o644)
    (folder/'served'/name).chmod(0o600)
    with as_nobody(), pytest.raises(BasegunError) as error: load(folder/'served')
    message = str(error.value)
    assert "owned by the user 'root'" in message and 'rw-------' in message and '`chmod`' in message
    assert f"'{folder/'served'/(name or 'model.json')}': permission denied" in message and 'export' not in message
    os.chmod(folder/'served'/name, 0o755)
    with as_nobody(): load(folder/'served')


def test_a_run_of_another_user_is_told_by_its_owner(forbidden, run):
    folder, as_nobody = forbidden
    (folder/'run').mkdir(0o755)
    shutil.copy(run.config_file, folder/'run')
    for place in (folder/'run'/'config.json', folder/'run'):
        place.chmod(0o600)
        with as_nobody(), pytest.raises(BasegunError, match="permission denied: .* owned by the user 'root'"):
            Run(folder/'run').config  # noqa: B018
        place.chmod(0o755)
    with as_nobody(): assert Run(folder/'run').finished


def test_an_owner_whom_the_machine_does_not_know_has_a_number(forbidden):
    folder, as_nobody = forbidden
    os.chown(folder, 54321, 54321)
    with as_nobody(), pytest.raises(PermissionError) as error: write_whole(folder/'file', 'text')
    assert 'owned by the user 54321, with mode' in disk_fault(error.value)
    assert disk_fault(PermissionError(errno.EACCES, 'no')).endswith('denied: give a folder that this user may use')
