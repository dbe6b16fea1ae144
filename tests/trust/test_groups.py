"Numbers by what is known about the photos."
import numpy as np
import pandas as pd


def test_a_column_with_a_value_for_each_photo_makes_no_groups(tmp_path, capsys):
    from basegun_fastai.trust.groups import write_groups
    from basegun_fastai.trust.predictions import Predictions
    actual = Predictions([f'{o}.jpg' for o in range(300)], ['a', 'b'], np.zeros(300, int), np.tile([1., 0.], (300, 1)))
    groups = pd.DataFrame(dict(number=[str(o) for o in range(300)], camera=['x', 'y'] * 150))
    assert write_groups(actual, groups, tmp_path).value.tolist() == ['x', 'y']
    assert 'leaves out columns with more than 200 values: number' in capsys.readouterr().err
    assert list(write_groups(actual, groups[['number']], tmp_path)) == list(pd.read_csv(tmp_path/'metrics-groups.csv'))
