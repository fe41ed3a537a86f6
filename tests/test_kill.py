"""Runs that are killed at random moments, again and again, and end as if nothing had happened."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from outcomes import assert_same

from transferlab import checkpoints

ROOT = Path(__file__).parents[1]
CONFIG = """
def get_config(arg=''):
  return dict(
    network=dict(name='convnet', width=4, blocks=1, features=12, batch_norm=True, dropout=0.2),
    source=dict(
      data=dict(name='digits', half=0, batch_size=16, validation=3),
      phases=[dict(steps=16, learning_rate=1e-2)]),
    target=dict(data=dict(name='digits', half=1, shots=10, validation=4, batch_size=16, augment=dict(shift=1))),
    phases=[
      dict(train='head', steps=24, statistics='update'),
      dict(train='dense|head', steps=90, learning_rate=1e-9, early_stop=dict(patience=3, min_delta=0.5)),
      dict(train='.*', steps=40, optimizer='momentum', learning_rate=1e-2, schedule=dict(name='cosine'))],
    evaluation=dict(every=8), checkpoint=dict(every=3), logging=dict(every=5))
"""


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """A folder with the config, a compilation cache, and the undisturbed run; and how long a run takes."""
  place = tmp_path_factory.mktemp('kill')
  (place / 'config.py').write_text(CONFIG)
  for name in ('cold', 'undisturbed'):
    begun = time.monotonic()
    assert launched(place, name).wait() == 0, (place / f'{name}.txt').read_text()
  assert checkpoints.progress(checkpoints.find(str(place / 'undisturbed' / 'run')))['early'] == [1]
  return place, time.monotonic() - begun


def launched(place, name):
  """The run as a process of its own."""
  environment = {
    **os.environ,
    'PYTHONPATH': os.fspath(ROOT),
    'JAX_COMPILATION_CACHE_DIR': os.fspath(place / 'cache'),
    # What is small compiles for longer than it runs.
    'XLA_FLAGS': '--xla_backend_optimization_level=0',
  }
  command = [sys.executable, '-m', 'transferlab.main', f'--config={place / "config.py"}']
  output = (place / f'{name}.txt').open('a')
  return subprocess.Popen(
    [*command, f'--workdir={place / name / "run"}'], env=environment, cwd=place, stdout=output, stderr=output
  )


def unfinished(place):
  """Whether a checkpoint was being written."""
  return any(place.rglob('*orbax-checkpoint-tmp*'))


def check(place, name):
  """The run, and the pretraining of its source, equal the undisturbed ones; nothing half-written is left."""
  assert_same(place / name / 'run', place / 'undisturbed' / 'run')
  (source,) = (place / name / 'sources').iterdir()
  assert_same(source, place / 'undisturbed' / 'sources' / source.name)
  assert not unfinished(place / name)


def killed_again_and_again(home, kills, seed):
  """Kills runs at random moments until it happened so often; every run that comes to its end is compared."""
  place, seconds = home
  draw, found, writing, runs = random.Random(seed), [], 0, 0
  while len(found) < kills:
    process = launched(place, 'killed')
    try:
      status = process.wait(draw.uniform(0.2, 1.0) * seconds)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
      found.append(max(checkpoints.steps(place / 'killed' / 'run' / 'checkpoints'), default=0))
      writing += unfinished(place / 'killed')
      continue
    assert status == 0, (place / 'killed.txt').read_text()
    check(place, 'killed')
    runs += 1
    shutil.rmtree(place / 'killed')
  if (place / 'killed').exists():
    assert launched(place, 'killed').wait() == 0, (place / 'killed.txt').read_text()
    check(place, 'killed')
    runs += 1
    shutil.rmtree(place / 'killed')
  print(
    f'kills after the checkpoints of steps {found}, {writing} while one was written; {runs} runs of {seconds:.1f} s'
  )


def test_a_run_killed_at_a_random_moment_ends_as_if_undisturbed(home):
  killed_again_and_again(home, 1, seed=0)


@pytest.mark.long
def test_runs_killed_at_20_random_moments_end_as_if_undisturbed(home):
  killed_again_and_again(home, 20, seed=1)


def test_a_terminated_run_says_so_by_its_status_and_goes_on(home):
  place, _ = home
  process = launched(place, 'terminated')
  while not list((place / 'terminated' / 'run' / 'checkpoints').glob('[0-9]*')):
    assert process.poll() is None
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  assert process.wait() == 4
  said = (place / 'terminated.txt').read_text()
  assert 'SIGTERM: saving, then stopping' in said
  assert 'the same command continues' in said
  assert not (place / 'terminated' / 'run' / 'results.json').exists()
  assert launched(place, 'terminated').wait() == 0
  check(place, 'terminated')
