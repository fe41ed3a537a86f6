"""What is imported when: a mistake is answered before anything heavy is loaded.

Times are measured by experiments/performance/start_up.py; here is the structure that makes them what they are.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ('jax', 'flax', 'optax', 'orbax', 'grain', 'sklearn', 'scipy', 'matplotlib', 'pandas', 'tensorboardX', 'cv2')
PROGRAM = """
import json, sys
{body}
loaded = [name for name in {heavy!r} if sys.modules.get(name)]
print(json.dumps([status, loaded]))
"""


def fresh(body):
  """(status, heavy packages that are loaded) after the body ran in a process of its own."""
  program = PROGRAM.format(body=body, heavy=(*HEAVY, 'tensorflow', 'torch', 'keras'))
  done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def command(*arguments):
  return f'from transferlab.main import main; status = main({list(arguments)!r})'


def test_importing_transferlab_imports_nothing_heavy():
  assert fresh('import transferlab; status = 0') == [0, []]


@pytest.mark.parametrize(
  'override',
  [
    '--config.phases.0.stepz=3',
    '--config.phases.0.learning_rate=-1.0',
    '--config.target.data.name=digitz',
    '--config.target.data.shotz=3',
    '--config.evaluation.evry=3',
    '--config.objective.0.weight=fast',
  ],
)
def test_a_mistaken_key_or_value_is_answered_before_jax_is_imported(override):
  if 'objective' in override:
    override = override.replace('objective.0.weight', 'transplant')
  status, loaded = fresh(command('--config=configs/digits_few_shot.py', override))
  assert (status, loaded) == (2, [])


def test_a_mistaken_experiment_is_answered_before_jax_is_imported():
  status, loaded = fresh(command('--config=experiments/digits_methods.py', '--config.axez=3'))
  assert (status, loaded) == (2, [])


@pytest.mark.parametrize('arguments', [['--help'], ['--help_config'], ['--list=data'], ['--list=schedules'], ['--lst']])
def test_help_and_mistaken_flags_need_nothing_heavy(arguments):
  assert fresh(command(*arguments))[1] == []


WEIGHTS = Path(os.environ.get('TRANSFERLAB_TEST_DATA', 'unset')) / 'weights'


@pytest.mark.skipif(not WEIGHTS.is_dir(), reason='TRANSFERLAB_TEST_DATA is unset')
@pytest.mark.parametrize(
  'name', ['cifar10_resnet20.th', 'squeezenet_v1_1_notop.h5', 'mobilenet_v1_025_224.safetensors']
)
def test_foreign_weights_are_read_without_the_packages_that_wrote_them(name):
  status, loaded = fresh(command(f'--inspect={WEIGHTS / name}'))
  assert status == 0 and not {'tensorflow', 'torch', 'keras', 'orbax', 'matplotlib'} & set(loaded)


def test_a_dry_run_needs_neither_orbax_nor_pictures(tmp_path):
  arguments = ['--config=configs/digits_from_scratch.py:smoke', f'--workdir={tmp_path / "run"}', '--dry_run']
  status, loaded = fresh(command(*arguments))
  assert status == 0
  assert not {'orbax', 'grain', 'matplotlib', 'tensorboardX', 'tensorflow', 'torch'} & set(loaded)


def test_training_needs_neither_grain_nor_pictures(tmp_path):
  arguments = ['--config=configs/digits_from_scratch.py:smoke', f'--workdir={tmp_path / "run"}']
  status, loaded = fresh(command(*arguments))
  assert status == 0
  assert not {'grain', 'matplotlib', 'tensorflow', 'torch'} & set(loaded)
