"Values that the steps of a training share, and those that options leave open."
import pytest
from conftest import fitted

from basegun_fastai.training.callbacks import EpochSeed


@pytest.mark.slow
def test_the_rate_trial_leaves_no_network_behind(data, tmp_path, monkeypatch):
    import gc
    import weakref

    from basegun_fastai.training import setup as module
    calls, plain = [], module.find_rate
    def watched(learn):
        calls.append(weakref.ref(learn.model))
        return plain(learn)
    monkeypatch.setattr(module, 'find_rate', watched)
    before = EpochSeed.before_train
    def looked(self):
        if self.epochs_before == 0 and len(calls) == 1: calls.append(calls[0]() is None)
        before(self)
    gc.disable()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(EpochSeed, 'before_train', looked)
            fitted(data, tmp_path, fine_tune_epochs=1, lr='auto', batch_size=4)
    finally: gc.enable()
    assert calls[1] is True
