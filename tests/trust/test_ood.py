"Photos of other things."
import pytest
from conftest import TINY, as_arguments, typed



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
    refused('needs 19 or more', '--not-a-gun', others/'inner')
    refused('and the data share', '--not-a-gun', copy/'val')
    refused('--high-rate 1.5', '--high-rate', 1.5)
    refused('--shown-rate 0.2', '--shown-rate', .2)
    for o in ('0.2', '0.0005', '-0.02', 'nan'):
        refused(f'--unfamiliar-rate {o}: give a share from 0.001 to 0.1', '--unfamiliar-rate', o)
