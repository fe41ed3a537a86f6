"""Several tasks in one step: which gradient moves what, at what cost, and what is kept from one step to the next."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from outcomes import assert_a_stop_changes_nothing, leaves

import transferlab
from transferlab import checkpoints, commands, config
from transferlab.errors import UserError
from transferlab.objectives import balancers, balancing
from transferlab.preparation import prepare, start
from transferlab.settings import Run
from transferlab.training import partition
from transferlab.training import step as training_step

pytestmark = pytest.mark.usefixtures('quick_compilation')
TASKS = ['kind', 'side', 'size']
LONG = pytest.mark.long
STATEFUL = ['dynamic_weight_average', 'gradnorm', 'famo', 'pcgrad']


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """A class of three, a class of two and a number, all of the same ten columns."""
  random = np.random.default_rng(0)
  x = random.normal(size=(120, 10)).astype(np.float32)
  kind, side = (x[:, 0] > 0.3).astype(int) + (x[:, 1] > 0), (x[:, 2] - x[:, 0] > 0).astype(int)
  path = tmp_path_factory.mktemp('tasks') / 'three.npz'
  np.savez(path, x=x, kind=kind, side=side, size=(x @ random.normal(size=10)).astype(np.float32))
  return path


def settings(data, balancing=None, **more):
  values = {
    'network': {'name': 'mlp', 'hidden': [8, 6]},
    'target': {'data': {'name': f'npz:{data}', 'label': TASKS, 'validation': 0.2, 'batch_size': 16}},
    'phases': [{'steps': 12, 'learning_rate': 1e-2}],
    'evaluation': {'every': 4},
    'checkpoint': {'every': 4},
    'logging': {'every': 1},
    **({'balancing': balancing} if balancing else {}),
    **more,
  }
  return config.validate(Run, values)


def first_step(run, unlabelled=None):
  """(prepared, member, batch, the gradient of the first step as the optimizer gets it, metrics): by plain SGD at 1.

  The batch is of the first examples, or of those without a label of the task `unlabelled`.
  """
  phases = [{'steps': 1, 'learning_rate': 1.0, 'optimizer': 'sgd'}]
  prepared = prepare(run.model_copy(update={'phases': settings('x', phases=phases).phases}))
  member = start(prepared, None)
  method, rows = member.stretches[0].method, np.arange(16)
  if unlabelled:
    rows = np.flatnonzero(member.arrays['label'][unlabelled] < 0)[:16]
  from transferlab.training.terms import with_terms

  whole = with_terms(prepared.network, [method.objective], member.variables, member.arrays, 0)
  batch = {
    'x': member.arrays['x'][rows],
    'label': jax.tree.map(lambda leaf: leaf[rows], member.arrays['label']),
    'place': rows.astype(np.int32),
    'row': rows.astype(np.int32),
    'mask': None,
  }
  state = training_step.begin(method, whole['params'], whole['stats'], whole['term_stats'], 0)
  frozen = partition.split(whole['params'], method.trainable)[1]
  constants = {**member.stretches[0].constants(member, 0), 'frozen': frozen}
  new, metrics = jax.jit(training_step.train_step, static_argnums=0)(method, state, constants, batch)
  moved = jax.tree.map(lambda a, b: a - b, state['trainable'], new['trainable'])
  return prepared, member, batch, moved, metrics


def losses_by_hand(prepared, batch):
  """Each task's loss of the parameters, and of what the last shared stage gives, written without the step."""
  shift, scale = (np.asarray(prepared.record[name], np.float32) for name in ('shift', 'scale'))
  x, label = (batch['x'] - shift) / scale, batch['label']

  def of_outputs(out):
    log = [jax.nn.log_softmax(out[name]) for name in ('kind', 'side')]
    entropy = [-own[np.arange(len(x)), label[name]].mean() for own, name in zip(log, ('kind', 'side'))]
    return jnp.stack([*entropy, jnp.square(out['size'] - label['size']).mean()])

  def trunk(params):
    for layer in ('layer1', 'layer2'):
      own = params[layer]['linear']
      value = jax.nn.relu((x if layer == 'layer1' else value) @ own['kernel'] + own['bias'])  # noqa: F821
    return value

  def heads(params, value):
    return of_outputs({name: value @ own['kernel'] + own['bias'] for name, own in params['head'].items()})

  return trunk, heads


SOLVED = {
  'equal': (lambda g: g.sum(0)),
  'mgda': lambda g: balancing.combine(balancing.mgda(g), g),
  'nash': lambda g: balancing.combine(balancing.nash(g), g),
  'imtl_g': lambda g: balancing.combine(balancing.imtl_g(g), g),
  'aligned_mtl': lambda g: balancing.combine(balancing.aligned_mtl(g), g),
  'cagrad': lambda g: balancing.cagrad(g, 0.5),
}


@pytest.mark.parametrize('level', ['parameters', 'representation'])
@pytest.mark.parametrize('name', ['mgda', *(pytest.param(n, marks=LONG) for n in SOLVED if n != 'mgda')])
def test_what_is_shared_moves_by_the_combined_gradient_and_heads_by_their_own(data, name, level):
  if (name, level) == ('equal', 'representation'):
    pytest.skip('the sum needs no gradients of a representation')
  spec = {'name': name, **({'diagnose': True} if name == 'equal' else {'level': level})}
  prepared, member, batch, moved, metrics = first_step(settings(data, spec))
  trunk, heads = losses_by_hand(prepared, batch)
  params = member.variables['params']
  shared = {stage: own for stage, own in params.items() if stage != 'head'}
  flatten = jax.flatten_util.ravel_pytree
  own = lambda p: heads({**p, 'head': params['head']}, trunk(p))
  if level == 'parameters':
    jacobian = jax.jacobian(own)(shared)
    rows = jnp.stack([flatten(jax.tree.map(lambda leaf, i=i: leaf[i], jacobian))[0] for i in range(3)])
    expected = SOLVED[name](rows)
  else:
    value, pull = jax.vjp(trunk, shared)
    rows = jax.jacobian(lambda v: heads(params, v))(value).reshape(3, -1)
    expected = flatten(pull(SOLVED[name](rows).reshape(value.shape))[0])[0]
  found = flatten({stage: own for stage, own in moved.items() if stage != 'head'})[0]
  np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-5 * float(jnp.abs(expected).max()))
  summed = jax.grad(lambda h: heads({'head': h}, trunk(params)).sum())(params['head'])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), moved['head'], summed)
  for i, task in enumerate(TASKS):
    norm = np.linalg.norm(np.asarray(rows[i], np.float64))
    np.testing.assert_allclose(metrics[f'balancing/norm_{task}'], norm, rtol=1e-4)
  unit = np.asarray(rows, np.float64) / np.linalg.norm(np.asarray(rows, np.float64), axis=1, keepdims=True)
  np.testing.assert_allclose(metrics['balancing/cosine_kind_size'], unit[0] @ unit[2], atol=1e-5)
  assert metrics['balancing/stationary'] == 0


def test_a_step_along_one_tasks_gradient_says_which_others_it_helps(data):
  """Fifty et al. 2021: 1 - L_j(shared - rate * gradient of L_i) / L_j(shared), the heads as they are."""
  rate, spec = 0.3, {'name': 'pcgrad'}
  prepared, member, batch, moved, metrics = first_step(settings(data, {**spec, 'lookahead': rate}))
  trunk, heads = losses_by_hand(prepared, batch)
  params = member.variables['params']
  losses = lambda p: heads(p, trunk(p))
  slopes, before = jax.jacobian(losses)(params), np.asarray(losses(params))
  for i, one in enumerate(TASKS):
    step = lambda leaf, slope, i=i: leaf - rate * slope[i]
    after = np.asarray(losses({**jax.tree.map(step, params, slopes), 'head': params['head']}))
    for j, other in enumerate(TASKS):
      name = f'balancing/affinity_{one}_{other}'
      if i == j:
        assert name not in metrics
      else:
        assert metrics[name] == pytest.approx(1 - after[j] / before[j], rel=1e-3, abs=1e-6)
  assert metrics['balancing/affinity_kind_side'] != metrics['balancing/affinity_side_kind']
  alone = first_step(settings(data, spec))[3]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), moved, alone)


def test_a_task_without_labels_neither_helps_nor_is_helped(data):
  run = settings(data, {'name': 'mgda', 'lookahead': 0.1})
  values = run.model_dump(mode='json')
  values['target']['data']['keep_labels'] = {'side': 0.3}
  *_, metrics = first_step(config.validate(Run, values), unlabelled='side')
  assert metrics['balancing/affinity_side_kind'] == metrics['balancing/affinity_kind_side'] == 0
  assert metrics['balancing/affinity_kind_size'] != 0


@pytest.mark.parametrize(
  'spec', [{'name': 'uncertainty'}, {'name': 'equal'}, {'name': 'mgda', 'level': 'representation'}]
)
def test_looking_ahead_asks_for_gradients_of_parameters(data, spec):
  with pytest.raises(UserError, match=r'lookahead moves what tasks share.*diagnose=True'):
    prepare(settings(data, {**spec, 'lookahead': 0.1}))


def test_weights_of_losses_scale_every_gradient(data):
  prepared, member, batch, moved, metrics = first_step(settings(data, {'name': 'random_weights'}))
  trunk, heads = losses_by_hand(prepared, batch)
  weights = jnp.stack([metrics[f'balancing/weight_{task}'] for task in TASKS])
  assert weights.sum() == pytest.approx(1, abs=1e-6) and float(weights.max() - weights.min()) > 0.01
  expected = jax.grad(lambda p: weights @ heads(p, trunk(p)))(member.variables['params'])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), moved, expected)


def test_uncertainty_trains_its_variances_as_kendall_has_it(data):
  """d/ds of e^-s L + s/2 is 1/2 - e^-s L; of a regression, whose L is not halved, 1/2 - e^-s L / 2."""
  prepared, member, batch, moved, _ = first_step(settings(data, {'name': 'uncertainty'}))
  trunk, heads = losses_by_hand(prepared, batch)
  params = member.variables['params']
  losses = np.asarray(heads(params, trunk(params)))
  expected = 0.5 - np.array([1, 1, 0.5]) * losses
  np.testing.assert_allclose(moved['terms']['balancing']['log_variances'], expected, rtol=1e-4)


def flops(run):
  prepared = prepare(run)
  member = start(prepared, None)
  method, n = member.stretches[0].method, 64
  batch = {
    'x': member.arrays['x'][:n],
    'label': jax.tree.map(lambda leaf: leaf[:n], member.arrays['label']),
    'place': np.arange(n, dtype=np.int32),
    'row': np.arange(n, dtype=np.int32),
    'mask': None,
  }
  state = training_step.begin(method, member.variables['params'], {}, {}, 0)
  frozen = partition.split(member.variables['params'], method.trainable)[1]
  constants = {**member.stretches[0].constants(member, 0), 'frozen': frozen}
  lowered = jax.jit(training_step.train_step, static_argnums=0).lower(method, state, constants, batch)
  return lowered.compile().cost_analysis()['flops']


def test_one_forward_pass_and_as_many_backward_passes_as_the_level_needs(data):
  """Of a deep trunk with small heads: forward F and backward about 2 F, by the compiler's count of operations."""
  deep = {'network': {'name': 'mlp', 'hidden': [128] * 6}}
  phases = [{'steps': 1, 'learning_rate': 1.0, 'optimizer': 'sgd'}]
  count = {
    name: flops(settings(data, spec, phases=phases, **deep))
    for name, spec in {
      'sum': None,
      'parameters': {'name': 'pcgrad'},
      'representation': {'name': 'pcgrad', 'level': 'representation'},
      'famo': {'name': 'random_weights'},
    }.items()
  }
  layers = 10 * 128 + 5 * 128 * 128
  forward, backward = 2 * 64 * layers, 2 * 64 * (2 * layers - 10 * 128)
  assert count['sum'] == pytest.approx(forward + backward, rel=0.15)
  assert count['famo'] == pytest.approx(count['sum'], rel=0.02)
  # Rows of the matrix [tasks, parameters] are added up and compared, which is what is left beside the passes.
  assert forward + 3 * backward < count['parameters'] < (forward + 3 * backward) * 1.35
  assert count['representation'] == pytest.approx(count['sum'], rel=0.06)


@pytest.mark.parametrize(
  'name',
  ['gradvac', *(pytest.param(name, marks=LONG) for name in ('uncertainty', *STATEFUL))],
)
def test_what_a_balancer_keeps_survives_a_stop(data, name, tmp_path):
  spec = {'name': name, **({'every': 3} if name == 'dynamic_weight_average' else {})}
  run = settings(data, spec)
  assert_a_stop_changes_nothing(run, 8, tmp_path)
  kept = checkpoints.load(checkpoints.find(str(tmp_path / 'whole')))
  assert any('balancing' in path for path in leaves(kept)) == (name != 'pcgrad')
  lines = [json.loads(line) for line in (tmp_path / 'whole' / 'metrics.jsonl').read_text().splitlines()]
  logged = [line['values'] for line in lines if line['split'] == 'train']
  assert all(np.isfinite(own['loss']) for own in logged)
  if name not in ('gradvac', 'pcgrad'):
    weights = np.array([[own[f'balancing/weight_{task}'] for task in TASKS] for own in logged])
    assert np.ptp(weights, axis=0).max() > 1e-4


def test_dynamic_weights_follow_from_the_means_of_two_windows(data, tmp_path):
  """Liu et al. 2019, eq. 7, from the losses that were logged."""
  transferlab.run(config.resolved(settings(data, {'name': 'dynamic_weight_average', 'every': 3})), tmp_path / 'run')
  lines = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
  logged = [line['values'] for line in lines if line['split'] == 'train']
  names = ['cross_entropy_kind', 'cross_entropy_side', 'squared_error_size']
  losses = np.array([[own[name] for name in names] for own in logged], np.float64)
  weights = np.array([[own[f'balancing/weight_{task}'] for task in TASKS] for own in logged])
  np.testing.assert_allclose(weights[:6], 1, rtol=1e-6)
  for start_ in (6, 9):
    ratio = losses[start_ - 3 : start_].mean(0) / losses[start_ - 6 : start_ - 3].mean(0)
    power = np.exp(ratio / 2)
    np.testing.assert_allclose(weights[start_ : start_ + 3], [3 * power / power.sum()] * 3, rtol=1e-4)


def test_a_balancer_leaves_no_trace_in_the_network(data, tmp_path):
  transferlab.run(config.resolved(settings(data, {'name': 'uncertainty'})), tmp_path / 'run')
  weights = checkpoints.weights(checkpoints.find(str(tmp_path / 'run')), 'last')
  assert set(weights['params']) == {'layer1', 'layer2', 'head'}
  model = transferlab.load(tmp_path / 'run')
  assert set(model.outputs(np.zeros((2, 10), np.float32))) == set(TASKS)


def test_a_phase_that_trains_nothing_shared_has_nothing_to_balance(data, tmp_path):
  """Heads alone: the bits of a run without a balancer, and no gradients beside their own."""
  phases = [{'steps': 6, 'train': 'head', 'learning_rate': 1e-2}]
  found = {}
  for name, spec in {'plain': None, 'balanced': {'name': 'mgda'}}.items():
    found[name] = transferlab.run(config.resolved(settings(data, spec, phases=phases)), tmp_path / name)
  assert found['plain']['last'] == found['balanced']['last']


def test_a_batch_without_labels_of_a_task_drops_the_task(data):
  for name in ('mgda', 'nash', 'gradnorm', 'famo'):
    run = settings(data, {'name': name})
    target = run.target.model_copy(update={'data': run.target.data.model_copy(update={'keep_labels': {'side': 0.02}})})
    run = run.model_copy(update={'target': target})
    _, _, batch, moved, metrics = first_step(run, unlabelled='side')
    assert (batch['label']['side'] < 0).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(moved)), name
    assert not np.asarray(moved['head']['side']['kernel']).any(), name
    if name in ('mgda', 'nash', 'imtl_g'):
      assert metrics['balancing/weight_side'] == 0 and metrics['balancing/norm_side'] == 0


def test_regularizers_that_belong_to_no_task_are_added_as_they_are(data):
  """Without a task a term is in no gradient that is balanced: its own comes on top."""
  objective = [
    {'term': 'cross_entropy', 'task': 'kind'},
    {'term': 'cross_entropy', 'task': 'side'},
    {'term': 'squared_error', 'task': 'size'},
  ]
  for level in ('parameters', 'representation'):
    spec = {'name': 'mgda', 'level': level}
    _, _, _, without, _ = first_step(settings(data, spec, objective=objective))
    further = [*objective, {'term': 'test_balanced.half_squares', 'weight': 0.1}]
    _, member, _, moved, _ = first_step(settings(data, spec, objective=further))
    expected = jax.tree.map(lambda a, p: a + 0.1 * p, without, member.variables['params'])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), moved, expected)


def half_squares(params):
  return 0.5 * sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(params))


def test_a_run_of_one_task_is_the_single_task_step_written_by_hand(data):
  """Losses and gradients to float rounding, with the label named as a task and as the only one."""
  target = {'data': {'name': f'npz:{data}', 'label': ['kind'], 'batch_size': 16}}
  prepared, member, batch, moved, metrics = first_step(settings(data, target=target))
  shift, scale = (np.asarray(prepared.record[name], np.float32) for name in ('shift', 'scale'))
  x, label = (batch['x'] - shift) / scale, batch['label']['kind']

  def loss(params):
    value = x
    for layer in ('layer1', 'layer2'):
      value = jax.nn.relu(value @ params[layer]['linear']['kernel'] + params[layer]['linear']['bias'])
    logits = value @ params['head']['kind']['kernel'] + params['head']['kind']['bias']
    return -jax.nn.log_softmax(logits)[np.arange(16), label].mean()

  value, slope = jax.value_and_grad(loss)(member.variables['params'])
  np.testing.assert_allclose(metrics['loss'], value, rtol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), moved, slope)


@pytest.mark.parametrize('sharing', [
  {'name': 'branched', 'stage': 'layer2'},
  pytest.param({'name': 'mmoe', 'stage': 'layer2', 'experts': 3}, marks=LONG),
  pytest.param({'name': 'cross_stitch'}, marks=LONG),
], ids=lambda own: own['name'])  # fmt: skip
def test_networks_that_share_in_other_ways_train_balance_and_stop(data, sharing, tmp_path):
  network = {'name': 'mlp', 'hidden': [8, 6], 'sharing': sharing}
  assert_a_stop_changes_nothing(settings(data, {'name': 'cagrad'}, network=network), 8, tmp_path)
  results = json.loads((tmp_path / 'whole' / 'results.json').read_text())
  assert set(results['last']['test']) >= {f'{task}/{"r2" if task == "size" else "accuracy"}' for task in TASKS}


def test_a_trunk_of_several_tasks_is_a_source_like_any_other(data, tmp_path):
  transferlab.run(config.resolved(settings(data, {'name': 'pcgrad'})), tmp_path / 'many')
  one = {
    'network': {'name': 'mlp', 'hidden': [8, 6]},
    'source': {'weights': str(tmp_path / 'many')},
    'transplant': [('head/(.*)', r'copy:head/side/\1'), ('.*', 'copy')],
    'target': {'data': {'name': f'npz:{data}', 'label': 'side', 'validation': 0.2}},
    'phases': [{'steps': 1, 'learning_rate': 0.0, 'optimizer': 'sgd'}],
  }
  done = transferlab.run(one, tmp_path / 'one')
  many = json.loads((tmp_path / 'many' / 'results.json').read_text())
  assert done['last']['validation']['accuracy'] == many['selected']['validation']['side/accuracy']


@pytest.mark.parametrize(
  'change, message',
  [
    ({'balancing': {'name': 'pcgard'}}, "unknown balancer 'pcgard'; nearest: pcgrad"),
    ({'balancing': {'name': 'cagrad', 'c': -1.0}}, 'config.balancing: cagrad'),
    ({'balancing': {'name': 'mgda', 'levels': 'parameters'}}, 'mgda.levels: no such key; nearest: level'),
    ({'network': {'name': 'mlp', 'hidden': []}, 'balancing': {'name': 'imtl_g', 'level': 'representation'}}, None),
    ({'objective': [{'term': 'squared_error', 'task': 'size', 'name': 'balancing'}]}, 'name of config.balancing'),
    (
      {
        'balancing': {'name': 'imtl_g'},
        'objective': [{'term': 'center_loss', 'stage': 'layer1', 'task': 'kind'}],
      },
      "looks at stage 'layer1', before the representation that is balanced, 'layer2'",
    ),
    ({'network': {'name': 'mlp', 'sharing': {'name': 'branched', 'stage': 'layer9'}}}, "'layer9'; nearest: layer1"),
    ({'network': {'name': 'mlp', 'sharing': {'name': 'mmoe'}}}, 'stage is where branches and experts begin'),
    (
      {'network': {'name': 'mlp', 'sharing': {'name': 'cross_stitch'}}, 'balancing': {'name': 'imtl_g'}},
      "no representation that all tasks share; nearest: level='parameters'",
    ),
  ],
  ids=range(9),
)  # fmt: skip
def test_mistakes_end_in_one_message(data, change, message):
  if message is None:
    assert prepare(settings(data, **change)).stretches[0].method.objective.balancer is None
    return
  with pytest.raises(UserError, match=message):
    prepare(settings(data, **change))


def test_one_task_has_nothing_to_balance(data):
  target = {'data': {'name': f'npz:{data}', 'label': 'kind', 'batch_size': 16}}
  with pytest.raises(UserError, match="'mgda' balances several tasks, and these data have one"):
    prepare(settings(data, {'name': 'mgda'}, target=target))


def test_every_balancer_is_listed_and_built():
  for name in balancers.BALANCERS:
    assert balancers.build(balancers.Balancing(name=name)).level in ('losses', 'parameters', 'representation')


def test_auxiliary_tasks_help_to_train_and_are_left_behind(data, tmp_path):
  target = {'data': {'name': f'npz:{data}', 'label': TASKS, 'auxiliary': ['side', 'size'], 'batch_size': 16}}
  done = transferlab.run(config.resolved(settings(data, target=target)), tmp_path / 'run')
  assert (
    done['last']['test']['accuracy'] == done['last']['test']['kind/accuracy'] != done['last']['test']['side/accuracy']
  )
  assert 'mean_squared_error' not in done['last']['test'] and 'size/mean_squared_error' in done['last']['test']
  model = transferlab.load(tmp_path / 'run')
  answers = model.predict(np.zeros((2, 10), np.float32))
  assert set(answers) == {'kind'} and answers['kind'].dtype.kind == 'i'
  commands.export(tmp_path / 'run', str(tmp_path / 'kind.npz'))
  with np.load(tmp_path / 'kind.npz') as arrays:
    assert {name for name in arrays if 'head' in name} == {'params/head/kind/kernel', 'params/head/kind/bias'}


@pytest.mark.parametrize('name', ['famo', 'geometric_mean', 'uncertainty', 'random_weights', 'dynamic_weight_average'])
def test_a_task_that_a_batch_lacks_leaves_the_weights_to_the_others(name):
  """With the losses of one task alone, its gradient is that of a run without the other."""
  kinds = {'here': 'classification', 'away': 'classification'}
  balancer = balancers.build(balancers.Balancing(name=name))
  own = balancer.init(kinds)

  def combined(losses, present):
    given = balancers.Tasks(kinds, losses, jax.random.key(0), jnp.array(present))
    return balancer.apply(given, own)[0]

  slope = jax.grad(combined)(jnp.array([2.0, 0.0]), [1.0, 0.0])
  np.testing.assert_allclose(slope[0], 1, rtol=1e-5)
  assert combined(jnp.zeros(2), [0.0, 0.0]) == 0


def test_windows_of_losses_count_the_batches_that_had_the_task():
  kinds = {'often': 'classification', 'rare': 'classification'}
  balancer = balancers.build(balancers.Balancing(name='dynamic_weight_average', every=4))
  own = balancer.init(kinds)
  for step, rare in enumerate([3.0, 0.0, 0.0, 1.0]):
    present = jnp.array([1.0, float(rare > 0)])
    given = balancers.Tasks(kinds, jnp.array([step + 1.0, rare]), jax.random.key(0), present)
    own = {'params': {}, 'stats': balancer.apply(given, own)[2]}
  np.testing.assert_allclose(own['stats']['previous'], [2.5, 2.0])


def test_a_run_can_teach_and_one_of_several_tasks_says_that_it_cannot(data, tmp_path):
  plain = {'network': {'name': 'mlp', 'hidden': [8]}, 'phases': [{'steps': 4, 'learning_rate': 1e-2}]}
  target = {'data': {'name': f'npz:{data}', 'label': 'kind'}}
  transferlab.run({**plain, 'target': target}, tmp_path / 'teacher')
  terms = [{'term': 'cross_entropy'}, {'term': 'kd'}]
  teachers = {'run': {'weights': str(tmp_path / 'teacher')}}
  transferlab.run({**plain, 'target': target, 'objective': terms, 'teachers': teachers}, tmp_path / 'student')
  many = {'name': 'mlp', 'hidden': [8, 6], 'sharing': {'name': 'branched', 'stage': 'layer2'}}
  transferlab.run(config.resolved(settings(data, network=many)), tmp_path / 'many')
  with pytest.raises(UserError, match="those of several tasks with 'branched' sharing"):
    teachers = {'run': {'weights': str(tmp_path / 'many')}}
    prepare(config.validate(Run, {**plain, 'target': target, 'objective': terms, 'teachers': teachers}))


def test_the_first_task_that_counts_says_by_what_is_chosen(data):
  target = {'data': {'name': f'npz:{data}', 'label': ['size', 'kind'], 'auxiliary': ['size'], 'validation': 0.2}}
  assert prepare(settings(data, target=target)).select_metric() == 'accuracy'
  with pytest.raises(UserError, match="metric of a classification task 'mean_squared_error'"):
    prepare(settings(data, target=target, evaluation={'select': 'mean_squared_error'}))
