"""Large frozen leaves: written once, referred to, put back, and removed when nothing refers to them any more."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from outcomes import assert_same

import transferlab
from transferlab import checkpoints, commands, config, experiment
from transferlab.errors import Interrupted, UserError
from transferlab.screen import Screen
from transferlab.settings import Run

pytestmark = pytest.mark.usefixtures('quick_compilation')

PROBE = {'name': 'probe', 'train': 'head', 'steps': 12, 'learning_rate': 1e-2}
ALL = {'name': 'all', 'steps': 6, 'optimizer': 'sgd', 'learning_rate': 1e-2}
AGAIN = {**PROBE, 'name': 'again', 'steps': 8}
HIDDEN = 300
# The hidden layer of digits' 64 pixels, in float32.
FROZEN_BYTES = 4 * (64 * HIDDEN + HIDDEN)


def settings(*phases, keep=2):
  return config.validate(
    Run,
    {
      'network': {'name': 'mlp', 'hidden': [HIDDEN]},
      'target': {'data': {'name': 'digits', 'validation': 4, 'shots': 10, 'batch_size': 16}},
      'phases': list(phases),
      'evaluation': {'every': 4},
      'checkpoint': {'every': 3, 'keep': keep},
    },
  )


@pytest.fixture
def small(monkeypatch):
  """A few kilobytes count as large."""
  monkeypatch.setattr(checkpoints, 'LARGE', 10_000)


def size(folder):
  return sum(file.stat().st_size for file in folder.rglob('*') if file.is_file())


def frozen(place):
  return sorted(folder.name for folder in (place / 'checkpoints').iterdir() if 'frozen' in folder.name)


def interrupted(run, place, at):
  screen = Screen(quiet=True)
  with pytest.raises(Interrupted):
    experiment.run(run, place, screen=screen, stop=lambda: screen.done >= at)


def test_checkpoints_shrink_by_what_is_frozen_which_is_written_once(tmp_path, monkeypatch):
  run = settings(PROBE, keep=10)
  experiment.run(run, tmp_path / 'whole')
  monkeypatch.setattr(checkpoints, 'LARGE', 10_000)
  experiment.run(run, tmp_path / 'apart')
  (folder,) = frozen(tmp_path / 'apart')
  steps = checkpoints.steps(tmp_path / 'apart' / 'checkpoints')
  assert len(steps) == 4
  # Random weights do not compress much; a checkpoint also holds the selected weights, twice as much in all.
  assert size(tmp_path / 'apart' / 'checkpoints' / folder) > 0.8 * FROZEN_BYTES
  for step in map(str, steps):
    whole, apart = (size(tmp_path / name / 'checkpoints' / step) for name in ('whole', 'apart'))
    assert whole - apart > (0.8 if step == '3' else 1.6) * FROZEN_BYTES
    assert apart < FROZEN_BYTES
  assert_same(tmp_path / 'apart', tmp_path / 'whole')


@pytest.mark.parametrize('at', [3, 12, 15, 18, 21])
def test_a_stop_changes_nothing(at, small, tmp_path):
  run = settings(PROBE, ALL, AGAIN)
  experiment.run(run, tmp_path / 'undisturbed')
  interrupted(run, tmp_path / 'run', at)
  experiment.run(run, tmp_path / 'run')
  assert_same(tmp_path / 'run', tmp_path / 'undisturbed')
  assert frozen(tmp_path / 'run') == frozen(tmp_path / 'undisturbed')


def test_only_what_a_kept_checkpoint_refers_to_is_kept(small, tmp_path):
  run, seen = settings(PROBE, ALL, AGAIN), []
  for at in (3, 12, 15, 18, 21, 24):
    interrupted(run, tmp_path / 'run', at - (seen[-1][0] if seen else 0))
    seen.append((at, frozen(tmp_path / 'run')))
  names = dict(seen)
  assert len(names[3]) == 1
  # At step 15 (all train) the checkpoint of step 12 is still kept, at step 18 it is not.
  assert names[3] == names[12] == names[15]
  assert names[18] == []
  assert len(names[21]) == 1
  assert names[21] != names[3]
  assert names[24] == names[21]


def test_selected_weights_of_an_earlier_phase_keep_their_own_values(small, tmp_path):
  """In the last phase the hidden layer is frozen, with other values than it had when validation was best."""
  run = settings(PROBE, {**ALL, 'learning_rate': 3.0}, AGAIN)
  results = experiment.run(run, tmp_path / 'run')
  assert results['best']['phase'] == 'probe'
  selected, last = (checkpoints.weights(checkpoints.find(str(tmp_path / 'run')), w) for w in ('selected', 'last'))
  name = next(name for name in last['params'] if name != 'head')
  kernels = [tree['params'][name] for tree in (selected, last)]
  assert not all(
    np.array_equal(one, other) for one, other in zip(*(jax.tree.leaves(kernel) for kernel in kernels), strict=True)
  )
  for which in ('selected', 'last'):
    model = transferlab.load(tmp_path / 'run', which)
    measured = model.evaluate(run.target.data, 'test')
    assert measured == results[which]['test']


def test_inspect_shows_all_leaves_wherever_they_lie(small, tmp_path):
  experiment.run(settings(PROBE), tmp_path / 'run')
  (folder,) = frozen(tmp_path / 'run')
  lines = commands.inspect(str(tmp_path / 'run'))
  shapes = [line.split()[2] for line in lines if line.startswith('params')]
  assert sorted(shapes) == sorted(['64x300', '300', '300x10', '10'])
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / folder)
  with pytest.raises(UserError, match=f'{folder}.* cannot be read'):
    commands.inspect(str(tmp_path / 'run'))


def test_what_a_kill_leaves_of_frozen_leaves_is_cleared_away(small, tmp_path):
  run, place = settings(PROBE), tmp_path / 'run'
  interrupted(run, place, 3)
  (folder,) = frozen(place)
  stray = [f'{folder}.orbax-checkpoint-tmp', 'frozen_0123456789abcdef', '.frozen_0123456789abcdef']
  for name in stray:
    (place / 'checkpoints' / name).mkdir()
    (place / 'checkpoints' / name / 'part').write_text('half')
  experiment.run(run, place)
  assert frozen(place) == [folder]


def test_frozen_leaves_that_were_cut_short_are_one_message(small, tmp_path):
  interrupted(settings(PROBE), tmp_path / 'run', 3)
  (folder,) = frozen(tmp_path / 'run')
  state = tmp_path / 'run' / 'checkpoints' / folder / 'state'
  largest = max(state.rglob('d/*'), key=lambda file: file.stat().st_size)
  largest.write_bytes(largest.read_bytes()[:100])
  with pytest.raises(UserError, match=f'{folder}.* cannot be read'):
    experiment.run(settings(PROBE), tmp_path / 'run')


def test_trees_come_back_as_they_were_saved(tmp_path):
  tree = {
    'params': {'head': {'kernel': jnp.arange(6.0).reshape(2, 3)}, 'body': {'bias': jnp.ones(2, jnp.bfloat16)}},
    'stats': {},
    'optimizer': (jnp.int32(3), {'mu': {'head': {'kernel': jnp.full((2, 3), 0.5)}, 'body': {'bias': None}}}),
  }
  writer = checkpoints.Writer(tmp_path / 'checkpoints', 2)
  writer.save(7, tree, {'step': 7})
  tree['params']['head']['kernel'].delete()
  writer.close()
  path = checkpoints.find(str(tmp_path))
  found = checkpoints.load(path, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree))
  assert jax.tree.structure(found) == jax.tree.structure(tree)
  np.testing.assert_array_equal(found['params']['head']['kernel'], [[0, 1, 2], [3, 4, 5]])
  assert found['params']['body']['bias'].dtype == jnp.bfloat16
  assert checkpoints.progress(path) == {'format': 1, 'step': 7}
