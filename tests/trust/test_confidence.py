"A run says how far its confidence can be trusted."
import json

import numpy as np
import pandas as pd
import pytest

from basegun_fastai.trust.calibration import fit_temperature


@pytest.mark.parametrize('planted', [3., 1 / 3])
def test_planted_over_confidence_of_a_real_network_is_found(run, planted):
    rows = pd.read_csv(run.path/'predictions-val.csv')
    classes = run.config.classes
    logits, labels = np.log(rows[classes].to_numpy()), rows.label.map(classes.index).to_numpy()
    assert fit_temperature(logits, labels) == pytest.approx(1, rel=.01)  # the saved network is calibrated
    assert fit_temperature(planted * logits, labels) == pytest.approx(planted, rel=.05)


def test_a_run_says_how_far_its_confidence_can_be_trusted(run):
    numbers = json.loads((run.path/'metrics.json').read_text())
    assert set(numbers['calibration']) == {'temperature', 'bins', 'before', 'after',
                                           'by_chance'} and numbers['calibration']['bins'] == 15
    assert set(numbers['levels']['bands']) == {'low', 'medium', 'high'} and sum(o['n']
        for o in numbers['levels']['bands'].values()) == numbers['n']
    assert numbers['levels']['high'] is None and 'val/ needs at least' in numbers['levels']['refused']['high']
    assert (run.path/'confidence.png').read_bytes()[:4] == b'\x89PNG'
