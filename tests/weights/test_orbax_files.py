"""orbax checkpoints: however others saved them, and our own runs; what is found, what is read, and damage."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training import train_state
from orbax.checkpoint import v1

from transferlab import checkpoints, paths
from transferlab.errors import UserError
from transferlab.weights import orbax_files

TREE = {
  'params': {'dense': {'kernel': jnp.arange(12.0).reshape(3, 4), 'bias': jnp.full(3, 2.5, jnp.bfloat16)}},
  'batch_stats': {'norm': {'mean': jnp.arange(4, dtype=jnp.int32)}},
  'opt_state': [{'mu': jnp.ones(4)}, None, ()],
  'ema_params': {'dense': {'kernel': jnp.full((3, 4), 7.0)}},
  'step': jnp.int32(7),
  'rate': 0.5,
}
WEIGHTS = {
  'dense/kernel': np.arange(12, dtype=np.float32).reshape(3, 4),
  'dense/bias': np.asarray(TREE['params']['dense']['bias']),
  'batch_stats/norm/mean': np.arange(4, dtype=np.int32),
}


def _same(found, expected):
  assert set(found) == set(expected)
  for name, array in expected.items():
    assert found.tensors[name].shape == array.shape and found.tensors[name].dtype == array.dtype
    assert isinstance(found[name], np.ndarray) and found[name].dtype == array.dtype
    np.testing.assert_array_equal(found[name], array)


def _standard(path):
  with ocp.StandardCheckpointer() as writer:
    writer.save(path, TREE)


def _pytree(path, **options):
  ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)).save(path, {**TREE, 'text': 'hello'})


def _manager(path, steps=(9, 100), **items):
  with ocp.CheckpointManager(path) as manager:
    for step in steps:
      saved = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
      older = {**TREE, 'params': jax.tree.map(lambda leaf: 0 * leaf, TREE['params'])}
      single = ocp.args.StandardSave(TREE if step == max(steps) else older)
      manager.save(step, args=ocp.args.Composite(**saved, note=ocp.args.JsonSave({'a': 1})) if items else single)


# orbax asks for shardings, which arrays of one host do not need; and a read that failed leaves a callback behind.
pytestmark = [
  pytest.mark.filterwarnings('ignore::UserWarning'),
  pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'),
]


@pytest.mark.parametrize(
  'save',
  [
    _standard,
    _pytree,
    lambda path: _pytree(path, use_ocdbt=False),
    lambda path: _pytree(path, use_ocdbt=True, use_zarr3=True),
    _manager,
    lambda path: v1.save(path, TREE),
    lambda path: v1.save_checkpointables(path, {'anything': TREE}),
  ],
  ids=['standard', 'pytree', 'zarr', 'zarr3', 'manager', 'v1', 'checkpointables'],
)
def test_the_weights_are_found_however_they_were_saved(tmp_path, save):
  save(tmp_path / 'x')
  assert orbax_files.is_orbax(tmp_path / 'x')
  found = orbax_files.read(tmp_path / 'x')
  _same(found, WEIGHTS)
  assert found.part == 'params' and dict(found.others) == {'opt_state': 1, 'ema_params': 1}
  assert dict(found.metadata) == {'step': 7, 'rate': 0.5}
  _same(orbax_files.read(tmp_path / 'x', 'ema_params'), {'dense/kernel': np.full((3, 4), 7, np.float32)})
  with pytest.raises(UserError, match=r"/x: unknown part 'ema'; nearest: ema_params"):
    orbax_files.read(tmp_path / 'x', 'ema')


def test_the_newest_finished_step_counts_and_an_older_one_can_be_named(tmp_path):
  _manager(tmp_path / 'x')
  (tmp_path / 'x' / '200.orbax-checkpoint-tmp-300' / 'default').mkdir(parents=True)
  shutil.copy(tmp_path / 'x/100/default/_METADATA', tmp_path / 'x/200.orbax-checkpoint-tmp-300/default')
  found = orbax_files.read(tmp_path / 'x')
  assert found.notes == (f'read from {tmp_path}/x/100/default',)
  _same(found, WEIGHTS)
  for older in ('x/9', 'x/9/default'):
    assert not orbax_files.read(tmp_path / older)['dense/kernel'].any()


def test_items_of_one_checkpoint_are_entries_of_the_tree(tmp_path):
  _manager(tmp_path / 'one', [5], params=TREE['params'])
  _same(orbax_files.read(tmp_path / 'one'), {name: WEIGHTS[name] for name in ('dense/kernel', 'dense/bias')})
  _manager(tmp_path / 'two', [5], params=TREE['params'], batch_stats=TREE['batch_stats'], ema=TREE['ema_params'])
  found = orbax_files.read(tmp_path / 'two')
  _same(found, WEIGHTS)
  assert dict(found.others) == {'ema': 1}


def test_train_states_and_nnx_states_are_read(tmp_path):
  params = {'dense': {'kernel': TREE['params']['dense']['kernel']}}
  state = train_state.TrainState.create(apply_fn=len, params=params, tx=optax.adam(1e-3))
  ocp.PyTreeCheckpointer().save(tmp_path / 'state', state)
  found = orbax_files.read(tmp_path / 'state')
  _same(found, {'dense/kernel': WEIGHTS['dense/kernel']})
  assert dict(found.others) == {'opt_state': 3} and dict(found.metadata) == {'step': 0}
  model = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(0)))
  v1.save(tmp_path / 'nnx', nnx.state(model))
  names = {f'layers/{index}/{leaf}': (index, leaf) for index in (0, 1) for leaf in ('kernel', 'bias')}
  _same(
    orbax_files.read(tmp_path / 'nnx'),
    {name: np.asarray(getattr(model.layers[index], leaf)[...]) for name, (index, leaf) in names.items()},
  )


def test_only_the_neighbours_of_what_is_asked_for_are_read(tmp_path, monkeypatch):
  tree = {f'layer{index}': {'kernel': np.full((4, 4), index, np.float32)} for index in range(5)}
  ocp.PyTreeCheckpointer().save(tmp_path / 'x', tree)
  asked, read = [], checkpoints.foreign_values
  monkeypatch.setattr(checkpoints, 'foreign_values', lambda path, names: asked.append(list(names)) or read(path, names))
  monkeypatch.setattr(orbax_files, 'TOGETHER', 128)
  found = orbax_files.read(tmp_path / 'x')
  assert not asked
  for index in (1, 0, 4, 2, 2):
    assert (found[f'layer{index}/kernel'] == index).all()
  assert asked == [
    ['layer0/kernel', 'layer1/kernel'],
    ['layer4/kernel'],
    ['layer2/kernel', 'layer3/kernel'],
    ['layer2/kernel', 'layer3/kernel'],
  ]
  first = found['layer2/kernel']
  first[:] = 9
  assert (found['layer2/kernel'] == 2).all()


# --------------------------------------------------------------------------------------------------------- our own
def _ours(folder, selected=True, frozen=None):
  """A run of two checkpoints, as ours are written; the second holds twice the values of the first."""
  params = {'stem': {'kernel': np.arange(6.0, dtype=np.float32)}, 'head': {'bias': np.ones(2, np.float32)}}
  writer = checkpoints.Writer(folder / 'checkpoints', 2)
  for step in (1, 2):
    tree = {
      'params': {
        **jax.tree.map(lambda leaf, factor=step: factor * leaf, params),
        'terms': {'hint': {'kernel': np.ones(3)}},
      },
      'stats': {'stem': {'norm': {'mean': np.full(2, step, np.float32)}}},
      'opt': {'mu': {'stem': {'kernel': np.ones(6)}}},
    }
    if selected:
      tree['selected'] = {'params': {**tree['params'], 'head': {'bias': np.full(2, 5.0)}}, 'stats': tree['stats']}
    writer.save(step, tree, {'step': step, 'phase': 'all'}, frozen)
  writer.close()
  return folder


@pytest.mark.parametrize('selected', [True, False])
@pytest.mark.parametrize('frozen', [None, {'stem/kernel': 'digest'}])
def test_runs_of_ours_give_the_same_weights_as_restoring_them(tmp_path, monkeypatch, selected, frozen):
  monkeypatch.setattr(checkpoints, 'LARGE', 1)
  place = _ours(tmp_path / 'run', selected, frozen)
  assert bool(list((place / 'checkpoints').glob('frozen_*'))) == bool(frozen)
  assert orbax_files.is_orbax(place)
  for named, which in ((place, None), (place / 'checkpoints' / '2', 'last'), (place / 'checkpoints', None)):
    expected = checkpoints.weights(checkpoints.find(str(place)), which or 'selected')
    found = orbax_files.read(named, which)
    _same(found, {f'{kind}/{path}': leaf for kind in expected for path, leaf in paths.flatten(expected[kind]).items()})
    assert found.part == ('selected' if selected and which is None else 'last')
    assert found.metadata['step'] == 2 and found.metadata['phase'] == 'all' and 'frozen' not in found.metadata
  assert orbax_files.read(place / 'checkpoints' / '1')['params/stem/kernel'][1] == 1
  expected = {'opt': 1, 'last': 3, 'terms': 2} if selected else {'opt': 1, 'terms': 1}
  assert dict(found.others) == expected
  with pytest.raises(UserError, match=r"unknown part 'best'; nearest: last"):
    orbax_files.read(place, 'best')


# ---------------------------------------------------------------------------------------------------------- damage
def test_folders_without_a_finished_checkpoint_are_refused(tmp_path):
  (tmp_path / 'x' / '100.orbax-checkpoint-tmp-0').mkdir(parents=True)
  for name in ('x', 'nowhere'):
    assert not orbax_files.is_orbax(tmp_path / name)
    with pytest.raises(UserError, match=f'{name} holds no checkpoint that orbax finished'):
      orbax_files.read(tmp_path / name)


@pytest.mark.parametrize('which', ['_METADATA', 'manifest.ocdbt', 'd/*', 'array_metadatas/*', '_sharding'])
@pytest.mark.parametrize('harm', ['cut', 'flipped', 'gone'])
def test_a_damaged_checkpoint_is_one_message_or_the_same_values(tmp_path, which, harm):
  _standard(tmp_path / 'x')
  for file in (tmp_path / 'x').glob(which):
    whole = file.read_bytes()
    middle = len(whole) // 2
    if harm == 'gone':
      file.unlink()
    else:
      file.write_bytes(whole[:middle] + (b'' if harm == 'cut' else bytes([whole[middle] ^ 0x55]) + whole[middle + 1 :]))
  try:
    _same(orbax_files.read(tmp_path / 'x'), WEIGHTS)
  except UserError as error:
    assert str(tmp_path / 'x') in str(error) and '\n' not in str(error)
  else:
    # What others wrote beside the arrays, to restore them onto devices.
    assert which in ('array_metadatas/*', '_sharding')


def test_a_damaged_record_of_ours_is_one_message(tmp_path):
  place = _ours(tmp_path / 'run')
  (place / 'checkpoints/2/_CHECKPOINT_METADATA').write_text('{"custom_')
  with pytest.raises(UserError, match=r'checkpoint .*/2 cannot be read'):
    orbax_files.read(place)
