"The folder of a run is opened once, and only if it is complete."
from dataclasses import replace

import pytest

from basegun_fastai.base.errors import BasegunError
from basegun_fastai.base.record import Config, Dataset, Resolved, Run


def test_a_configuration_is_read_once_and_is_what_was_saved_last(tmp_path):
    config = Config('finished', 'now', {}, Resolved('cpu', 8, .1, 32, 34), {}, ['a'], [], Dataset('', {}), 42, {}, [])
    Run(tmp_path).save_config(config)
    run = Run(tmp_path)
    assert run.open() == config
    run.config_file.unlink()
    assert run.open() is run.config and run.finished
    run.save_config(replace(config, state='running'))
    for o in (run, Run(tmp_path)):
        with pytest.raises(BasegunError, match='is not finished: start its training again with --resume'): o.open()


def test_a_pickle_is_no_run(tmp_path):
    with pytest.raises(BasegunError, match='whose weights are read without that'): Run(tmp_path/'learner.pkl').open()
