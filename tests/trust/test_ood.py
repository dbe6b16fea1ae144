"Photos of other things."
import numpy as np
import pytest
from conftest import TINY, as_arguments, typed



@pytest.fixture
def others(tmp_path):
    "Photos without a gun."
    random, folder = np.random.default_rng(0), tmp_path/'other things'
    (folder/'inner').mkdir(parents=True)
    from PIL import Image
    for i in range(24):
        Image.fromarray(random.integers(0, 256, (40, 60, 3), np.uint8)).save(folder/('inner' if i % 2
            else '.')/f'{i}.png')
    return folder


@pytest.mark.slow
def test_faults_of_other_things(data, copy, others, tmp_path):
    def refused(word, *arguments):
        result = typed('train', data, '--out', tmp_path/'out', *as_arguments(**TINY), '--fine-tune-epochs', 1,
                       *arguments)
        assert result.returncode == 1 and word in result.stderr and not (tmp_path/'out').exists(), result
    refused("--not-a-gun: no folder '", '--not-a-gun', tmp_path/'nowhere')
    (others/'notes.txt').write_text('no photo')
    refused('--skip-unreadable', '--not-a-gun', others)
    for o in others.glob('1?.png'): o.unlink()
    (others/'notes.txt').unlink()
    refused('takes 19 or more', '--not-a-gun', others/'inner')
    refused('that are also in the data', '--not-a-gun', copy/'val')
    refused('--high-rate 1.5', '--high-rate', 1.5)
    refused('--shown-rate 0.2', '--shown-rate', .2)
