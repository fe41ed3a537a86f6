"""Students that are their own teachers, or one another's: values from the papers' formulas, in runs and by hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from outcomes import assert_a_stop_changes_nothing
from scipy.special import log_softmax, softmax

from transferlab import checkpoints, config, experiment, paths
from transferlab.errors import UserError
from transferlab.objectives import peers
from transferlab.objectives.objective import View
from transferlab.preparation import prepare, start
from transferlab.settings import Run

pytestmark = pytest.mark.usefixtures('quick_compilation')
DATA = {'name': 'digits', 'shots': 8, 'validation': 3, 'batch_size': 16}
CONVNET = {'name': 'convnet', 'width': 3, 'blocks': 1, 'features': 8, 'batch_norm': True, 'dropout': 0.2}
MLP = {'name': 'mlp', 'hidden': [12]}
LABELS = {'term': 'cross_entropy'}
MEAN = {'term': 'mean_teacher', 'decay': 0.8, 'schedule': {'name': 'linear', 'final': 0.5}}
MUTUAL = {'term': 'mutual', 'networks': [CONVNET, {'name': 'mlp', 'hidden': [9]}]}
DEEP = {'term': 'self_distillation', 'stages': ['layer1'], 'feature_weight': 0.01}
RANDOM = np.random.default_rng(0)
NORMAL = lambda *shape: jnp.asarray(RANDOM.normal(size=shape), jnp.float32)


def settings(*objective, steps=12, **more):
  values = {
    'network': MLP,
    'target': {'data': DATA},
    'phases': [{'steps': steps, 'optimizer': 'sgd', 'learning_rate': 0.05}],
    'objective': [LABELS, *objective],
    'checkpoint': {'every': 4},
    'logging': {'every': 1},
    'evaluation': {'every': 6},
    **more,
  }
  return config.validate(Run, values)


def logged(folder, name):
  """{step: a training metric}, as metrics.jsonl has it."""
  lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  return {line['step']: line['values'][name] for line in lines if line['split'] == 'train'}


def saved(folder, step):
  return checkpoints.load(folder / 'checkpoints' / str(step))


def forward(params, x):
  layers = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  x = np.maximum(x @ layers['layer1']['linear']['kernel'] + layers['layer1']['linear']['bias'], 0)
  return x @ layers['head']['kernel'] + layers['head']['bias']


def batch(run, step):
  prepared = prepare(run)
  rows = prepared.order().batches(step, 1)['row'][0]
  arrays = prepared.loaded.arrays(prepared.loaded.splits['train'][rows], prepared.record)
  x = (np.asarray(arrays['x'], np.float64) - prepared.record['shift']) / prepared.record['scale']
  return x.reshape(len(x), -1), arrays['label']


# -------------------------------------------------------------------------------------------------------- mean teacher
def test_a_mean_teacher_is_the_exponential_average_of_the_student(tmp_path):
  """θ'_t = α θ'_{t−1} + (1 − α) θ_t from the checkpoints of every step; θ'_0 = θ_0."""
  run = settings(MEAN, steps=4, checkpoint={'every': 1, 'keep': 10})
  experiment.run(run, tmp_path / 'run')
  average = paths.flatten(start(prepare(run), None).variables['params'])
  for step in range(1, 5):
    tree = saved(tmp_path / 'run', step)
    held = paths.flatten(tree['term_stats']['mean_teacher']['params'])
    # A step works with the average of all weights up to its own start.
    for path, leaf in held.items():
      np.testing.assert_allclose(leaf, average[path], rtol=1e-5, atol=1e-6, err_msg=path)
    params = {k: v for k, v in tree['params'].items() if k != 'terms'}
    average = {path: 0.8 * average[path] + 0.2 * np.asarray(leaf) for path, leaf in paths.flatten(params).items()}


@pytest.mark.parametrize('cost', ['squared', 'kl'])
def test_the_cost_compares_the_student_with_its_average(cost, tmp_path):
  run = settings({**MEAN, 'cost': cost, 'temperature': 2.0}, steps=3, checkpoint={'every': 1, 'keep': 10})
  experiment.run(run, tmp_path / 'run')
  values = logged(tmp_path / 'run', 'mean_teacher')
  assert values[1] < 1e-10
  x, _ = batch(run, 2)
  student = forward(saved(tmp_path / 'run', 2)['params'], x) / 2
  teacher = forward(saved(tmp_path / 'run', 3)['term_stats']['mean_teacher']['params'], x) / 2
  p, q = softmax(teacher, 1), softmax(student, 1)
  squared, kl = ((p - q) ** 2).mean(1).mean(), 4 * (p * np.log(p / q)).sum(1).mean()
  assert values[3] == pytest.approx(squared if cost == 'squared' else kl, rel=2e-3)


def test_a_weight_moves_with_its_schedule(tmp_path):
  """Linear from 1 to one half: the factor of step t of 12 is 1 − t / 24."""
  run = settings({'term': 'self_distillation', 'stages': ['layer1'], 'weight': 3.0, 'schedule': MEAN['schedule']})
  experiment.run(run, tmp_path / 'run')
  loss, hard, soft = (logged(tmp_path / 'run', name) for name in ('loss', 'cross_entropy', 'self_distillation'))
  for step in range(1, 13):
    assert loss[step] == pytest.approx(hard[step] + 3 * (1 - (step - 1) / 24) * soft[step], rel=1e-5)


# ----------------------------------------------------------------------------------------------------- mutual learning
def test_students_teach_one_another():
  """Two others without statistics: Σ of their cross-entropies, and of every student's mean divergence."""
  spec = [{'name': 'mlp', 'hidden': []}, {'name': 'mlp', 'hidden': [7]}]
  x, own, labels = NORMAL(6, 5), NORMAL(6, 4), jnp.array([0, 3, 1, 1, 2, 0])
  keys = jax.random.split(jax.random.key(1), 6)
  seen = View(
    outputs={'head': own}, output=own, labels=labels, params={}, source=None, mask=jnp.ones(6, bool), key=keys,
    progress=jnp.zeros(()), total=lambda value: value, inputs=x,
  )  # fmt: skip
  term = peers.mutual(networks=spec)
  begun = term.init(seen, jax.random.key(0))
  loss, measured, stats = term.apply(seen, begun)
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), begun['params'])
  first = np.asarray(x, np.float64) @ params['student1']['head']['kernel'] + params['student1']['head']['bias']
  logits = [np.asarray(own, np.float64), first, forward(begun['params']['student2'], np.asarray(x, np.float64))]
  logs = [log_softmax(z, 1) for z in logits]
  wanted = -sum(log[np.arange(6), labels] for log in logs[1:])
  for k, mine in enumerate(logs):
    others = [log for number, log in enumerate(logs) if number != k]
    wanted = wanted + sum((np.exp(log) * (log - mine)).sum(1) for log in others) / 2
  np.testing.assert_allclose(loss, wanted, rtol=1e-4)
  assert stats == {} and set(measured) == {'student1_accuracy', 'student2_accuracy'}


def test_the_run_alone_is_not_changed_by_what_it_teaches(tmp_path):
  """The others' gradients end at their own weights: with one student and weight 0 the run is as without."""
  plain, taught = settings(), settings({**MUTUAL, 'weight': 0.0})
  for name, run in (('plain', plain), ('taught', taught)):
    experiment.run(run, tmp_path / name)
  one, other = (saved(tmp_path / name, 12)['params'] for name in ('plain', 'taught'))
  others = other.pop('terms')['mutual']
  jax.tree.map(np.testing.assert_array_equal, one, other)
  assert set(others) == {'student1', 'student2'}


def test_all_students_learn(tmp_path):
  wide = {**MUTUAL, 'networks': [{**CONVNET, 'width': 8, 'features': 32, 'dropout': 0.0}, MUTUAL['networks'][1]]}
  run = settings(wide, phases=[{'steps': 60, 'learning_rate': 1e-2}])
  experiment.run(run, tmp_path / 'run')
  for name in ('accuracy', 'mutual/student1_accuracy', 'mutual/student2_accuracy'):
    found = logged(tmp_path / 'run', name)
    early, late = (np.mean([found[step] for step in steps]) for steps in (range(1, 9), range(53, 61)))
    assert late > early + 0.25, name
  tree = saved(tmp_path / 'run', 60)
  moved = tree['term_stats']['mutual']['student1']
  assert all(np.abs(np.asarray(leaf)).max() > 0 for leaf in jax.tree.leaves(moved))


# --------------------------------------------------------------------------------------------------- self-distillation
def test_shallow_classifiers_learn_from_labels_and_from_the_deepest():
  outputs = {'layer1': NORMAL(6, 3), 'layer2': NORMAL(6, 5), 'head': NORMAL(6, 4)}
  labels = jnp.array([0, 3, 1, 1, 2, 0])
  seen = View(
    outputs=outputs, output=outputs['head'], labels=labels, params={}, source=None, mask=jnp.ones(6, bool),
    key=jax.random.split(jax.random.key(1), 6), progress=jnp.zeros(()), total=lambda value: value,
  )  # fmt: skip
  term = peers.self_distillation(stages=['layer1'], temperature=2.0, alpha=0.3, feature_weight=0.1)
  own = term.init(seen, jax.random.key(0))
  x = np.asarray(outputs['layer1'], np.float64)
  layers = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), own['params']['layer1'])
  logits = x @ layers['classifier']['kernel']
  log_p, log_q = log_softmax(np.asarray(outputs['head']) / 2, 1), log_softmax(logits / 2, 1)
  wanted = -0.7 * log_softmax(logits, 1)[np.arange(6), labels] + 0.3 * 4 * (np.exp(log_p) * (log_p - log_q)).sum(1)
  wanted += 0.1 * ((x @ layers['regressor']['kernel'] - np.asarray(outputs['layer2'])) ** 2).sum(1)
  np.testing.assert_allclose(term.apply(seen, own)[0], wanted, rtol=1e-4)


# -------------------------------------------------------------------------------------------------------- stop and go
@pytest.mark.parametrize(
  'objective, more',
  [
    ([MEAN, MUTUAL, DEEP], {}),
    pytest.param([MEAN], {'network': CONVNET}, marks=pytest.mark.long),
    ([MEAN, MUTUAL], {'parallel': {'compile': 'pmap'}}),
    pytest.param(
      [MEAN, MUTUAL], {'target': {'data': {**DATA, 'hold': 'stream', 'augment': {'shift': 1}}}}, marks=pytest.mark.long
    ),
  ],
  ids=['all', 'running statistics', 'under pmap', 'streaming'],
)
def test_a_stop_changes_nothing(objective, more, tmp_path):
  run = settings(*objective, **more)
  assert_a_stop_changes_nothing(run, 4, tmp_path)


def test_frozen_stages_are_kept_for_a_mean_teacher_and_not_for_others_on_the_inputs(tmp_path):
  head = {'phases': [{'steps': 20, 'train': 'head', 'learning_rate': 1e-2}]}
  assert prepare(settings(MEAN, **head)).stretches[0].prefix is not None
  assert 'runs another network' in ' '.join(prepare(settings(MUTUAL, **head)).caching)
  found = [
    experiment.run(settings(MEAN, **head, feature_cache={'use': use}), tmp_path / use)['curve'][-1]['train']['loss']
    for use in ('auto', 'never')
  ]
  assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize(
  'term, message',
  [
    ({**MUTUAL, 'networks': [{'name': 'mpl'}]}, "network 'mpl'.*nearest: mlp"),
    ({**MUTUAL, 'networks': [{'hidden': [3]}]}, 'mutual.networks.0: name is missing'),
    ({**MUTUAL, 'networks': []}, 'networks'),
    ({**MUTUAL, 'networks': [{'name': 3}]}, 'mutual.networks.0: name'),
    ({**DEEP, 'stages': ['layer7']}, "stage 'layer7'.*nearest: layer1"),
    ({**MEAN, 'schedule': {'name': 'lineal'}}, 'mean_teacher.schedule'),
    ({**MEAN, 'decay': 1.0}, 'decay'),
  ],
  ids=range(7),
)
def test_mistakes_end_in_one_message(term, message):
  with pytest.raises(UserError, match=message):
    prepare(settings(term))
