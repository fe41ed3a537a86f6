"""A loss that stops being finite: the exact step, exit status 3, and what is left behind; in a study, a failed row."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from transferlab import checkpoints, main
from transferlab.data.loader import permutation

pytestmark = pytest.mark.usefixtures('quick_compilation')

STEPS = 20
MSE = {'metric': 'mean_squared_error'}


def broken_at(logits, labels, progress, *, step: int):
  """A cross-entropy that is NaN from a step (counted from 1) of a phase of `STEPS` steps on."""
  picked = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
  values = jnp.log(jnp.exp(logits).sum(axis=1)) - picked
  return jnp.where(progress > (step - 1.5) / STEPS, jnp.nan, values)


def run_config(**more):
  return {
    'network': {'name': 'mlp', 'hidden': [6]},
    'target': {'data': {'name': 'iris', 'batch_size': 8, 'validation': 4}},
    'phases': [{'steps': STEPS, 'name': 'only'}],
    'checkpoint': {'every': 3},
    'evaluation': {'every': 5},
    'logging': {'every': 4},
    **more,
  }


def command(tmp_path, values, capsys):
  """(exit status, what stood on stderr) of the program."""
  file = tmp_path / 'diverging.py'
  file.write_text(f'def get_config(arg=""):\n  return {values!r}\n')
  status = main.main([f'--config={file}', f'--workdir={tmp_path / "run"}'])
  return status, capsys.readouterr().err


def left_behind(place):
  """The newest checkpoint's step, whether all in it is finite, and the steps of metrics.jsonl."""
  newest = checkpoints.find(str(place))
  leaves = [np.asarray(leaf) for leaf in _leaves(checkpoints.load(newest))]
  lines = [json.loads(line) for line in (place / 'metrics.jsonl').read_text().splitlines()]
  finite = all(np.isfinite(leaf).all() for leaf in leaves)
  return checkpoints.progress(newest)['step'], finite, sorted({line['step'] for line in lines})


def _leaves(tree):
  import jax

  return jax.tree.leaves(tree)


@pytest.mark.parametrize(('step', 'saved', 'logged'), [(11, 9, [3, 4, 5, 6, 8, 9, 10]), (4, 3, [3])])
@pytest.mark.parametrize('hold', ['device', 'stream'])
def test_the_first_step_that_is_not_finite_is_named_and_the_last_good_checkpoint_stands(
  hold, step, saved, logged, tmp_path, capsys
):
  data = {'name': 'iris', 'batch_size': 8, 'validation': 4, 'hold': hold}
  objective = [{'term': 'test_divergence.broken_at', 'step': step}]
  status, said = command(tmp_path, run_config(objective=objective, target={'data': data}), capsys)
  assert status == 3
  assert said == f"diverged: the loss is not finite at step {step}, in phase 'only'\n"
  assert left_behind(tmp_path / 'run') == (saved, True, logged)
  assert not (tmp_path / 'run' / 'results.json').exists()
  again, said_again = command(tmp_path, run_config(objective=objective, target={'data': data}), capsys)
  assert (again, said_again) == (status, said)


def least_squares(tmp_path, scale=1.0):
  """(x, y, config): one input, one target, batches of 8 in the order of the permutation of seed 0."""
  random = np.random.default_rng(3)
  x, y = (scale * random.normal(size=(40, 1))).astype(np.float32), random.normal(size=40).astype(np.float32)
  np.savez(tmp_path / 'line.npz', x_train=x, y_train=y, x_test=x, y_test=y)
  data = {'name': f'npz:{tmp_path / "line.npz"}', 'batch_size': 8, 'standardize': False}
  return x[:, 0], y, run_config(network={'name': 'mlp', 'hidden': []}, target={'data': data})


def test_gradient_descent_that_explodes_is_noticed_at_the_step_of_a_computation_by_hand(tmp_path, capsys):
  """Least squares, one weight: w ← w − 2 η mean(x (w x − y)), until the loss overflows float32."""
  x, y, values = least_squares(tmp_path)
  phases = [{'steps': 60, 'optimizer': 'sgd', 'learning_rate': 1e5, 'name': 'only'}]
  status, said = command(tmp_path, {**values, 'phases': phases}, capsys)
  # The step is the same whatever the head starts from.
  (step,) = {first_overflow(x, y, start, 1e5) for start in np.linspace(-3, 3, 8)}
  assert status == 3
  assert said == f"diverged: the loss is not finite at step {step}, in phase 'only'\n"
  assert step == 5
  assert left_behind(tmp_path / 'run') == (3, True, [3, 4])


def first_overflow(x, y, weight, rate, bias=0.0):
  order = np.concatenate([permutation(len(x), epoch, 0) for epoch in range(20)])
  for step in range(1, 60):
    rows = order[(step - 1) * 8 : step * 8]
    away = weight * x[rows].astype(np.float64) + bias - y[rows]
    if np.mean(away**2) > np.finfo(np.float32).max:
      return step
    weight, bias = weight - rate * 2 * np.mean(away * x[rows]), bias - rate * 2 * np.mean(away)
  raise AssertionError('it does not diverge')


def test_parameters_that_the_last_step_makes_infinite_are_not_saved(tmp_path, capsys):
  """The loss of the last step is finite; its update, of a gradient near 1e6 at a rate of 1e38, is not."""
  _, _, values = least_squares(tmp_path, scale=1e3)
  phases = [{'steps': 4, 'optimizer': 'sgd', 'learning_rate': 1e-8, 'name': 'fine'}]
  phases += [{'steps': 1, 'optimizer': 'sgd', 'learning_rate': 1e38, 'name': 'last'}]
  status, said = command(tmp_path, {**values, 'phases': phases}, capsys)
  assert status == 3
  assert said == "diverged: the parameters are not finite at step 5, in phase 'last'\n"
  assert left_behind(tmp_path / 'run')[:2] == (4, True)


@pytest.mark.parametrize('population', [True, False])
@pytest.mark.parametrize('steps', [1, 6])
def test_a_diverged_cell_is_a_failed_row_with_its_reason_and_the_others_finish(population, steps, tmp_path, capsys):
  _, _, base = least_squares(tmp_path, scale=1e3)
  base['phases'] = [{'steps': steps, 'optimizer': 'sgd', 'name': 'only'}]
  methods = {'tame': {'phases.0.learning_rate': 1e-8}, 'wild': {'phases.0.learning_rate': 1e38}}
  axes = {'method': methods, 'seed': [0, 1]}
  status, said = command(tmp_path, {'base': base, 'axes': axes, 'table': MSE, 'population': population}, capsys)
  assert status == 1, said
  records = [json.loads(file.read_text()) for file in (tmp_path / 'run' / 'cells').iterdir()]
  found = {(record['cell']['method'], record['cell']['seed']): record for record in records}
  assert len(found) == 4
  for (method, _), record in found.items():
    if method == 'tame':
      assert record['status'] == 'done'
      assert np.isfinite(record['last']['test']['mean_squared_error'])
    else:
      # The first update is beyond float32: the second step is the first whose loss has no value.
      assert record['status'] == 'failed'
      assert f'step {min(steps, 2)}' in record['reason']
  table = (tmp_path / 'run' / 'table.md').read_text()
  assert 'wild' in table
  assert f'step {min(steps, 2)}' in table


@pytest.mark.parametrize('population', [True, False])
def test_a_source_that_diverges_fails_its_cells_with_its_reason_and_no_others(population, tmp_path, capsys):
  _, _, base = least_squares(tmp_path, scale=1e3)
  base |= {'phases': [{'steps': 4, 'optimizer': 'sgd', 'learning_rate': 1e-8}], 'transplant': [('.*', 'copy')]}
  base['source'] = {'data': base['target']['data'], 'phases': [{'steps': 4, 'optimizer': 'sgd'}]}
  sources = {f'{rate:g}': {'source.phases.0.learning_rate': rate} for rate in (1e-8, 1e38)}
  status, said = command(
    tmp_path,
    {'base': base, 'axes': {'method': sources, 'seed': [0, 1]}, 'table': MSE, 'population': population},
    capsys,
  )
  assert status == 1, said
  records = [json.loads(file.read_text()) for file in (tmp_path / 'run' / 'cells').iterdir()]
  found = {(record['cell']['method'], record['cell']['seed']): record for record in records}
  assert [found['1e-08', seed]['reason'] for seed in (0, 1)] == [None, None]
  for seed in (0, 1):
    assert found['1e+38', seed]['status'] == 'failed'
    assert 'could not be pretrained: ' in found['1e+38', seed]['reason']
    assert 'step 2' in found['1e+38', seed]['reason']
