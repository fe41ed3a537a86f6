"""Networks that tasks share: branches, experts with gates, cross-stitch units; by hand, and in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transferlab import paths
from transferlab.errors import UserError
from transferlab.networks import layers
from transferlab.networks.convnet import convnet
from transferlab.networks.mlp import mlp
from transferlab.networks.network import network
from transferlab.networks.resnet import resnet
from transferlab.networks.sharing import branched, cross_stitch, last_shared, mmoe, shared_stages

pytestmark = pytest.mark.usefixtures('quick_compilation')

# Not in the order of the alphabet: dicts come back sorted from jit.
SIZES = {'zoo': 3, 'age': 2}
KINDS = {
  'mlp': lambda size: mlp((6,), size, hidden=[8, 7, 5], dropout=0.4),
  'convnet': lambda size: convnet((4, 4, 2), size, width=4, features=8, batch_norm=True, dropout=0.4),
  'resnet': lambda size: resnet((4, 4, 3), size, depth=8, width=2, dropout=0.4),
}
SHAPES = {'mlp': (6,), 'convnet': (4, 4, 2), 'resnet': (4, 4, 3)}
MIDDLE = {'mlp': 'layer2', 'convnet': 'block2', 'resnet': 'block2'}
WAYS = {
  'branched': lambda kind: branched(_single(kind), MIDDLE[kind]),
  'mmoe': lambda kind: mmoe(_single(kind), MIDDLE[kind], experts=3, input_shape=SHAPES[kind]),
  'cross_stitch': lambda kind: cross_stitch(_single(kind)),
}


@functools.cache
def _single(kind):
  return {task: KINDS[kind](size) for task, size in SIZES.items()}


def _inputs(shape, batch=4, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, *shape)), jnp.float32)


def _variables(net, seed=0):
  """Random variables, made by NumPy, since compiling `init` costs seconds."""
  random = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: jnp.asarray(random.uniform(0.1, 1, leaf.shape), leaf.dtype), net.shapes())


def _restricted(variables, stages):
  return {kind: {name: leaf for name, leaf in tree.items() if name in stages} for kind, tree in variables.items()}


def _of(variables, task, stages):
  """The variables of a task's own network, picked by hand: its copy in `stages`, the common one in others."""
  return {
    kind: {stage: tree[task] if stage in stages else tree for stage, tree in trees.items()}
    for kind, trees in variables.items()
  }


def _equal(a, b):
  a, b = paths.flatten(a), paths.flatten(b)
  assert a.keys() == b.keys()
  for path in a:
    np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def _masked(value, mask):
  return {**(value if isinstance(value, dict) else {'x': value}), 'example_mask': mask}


def _double(tree):
  return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def _dense(x, stage):
  return np.maximum(x @ stage['linear']['kernel'] + stage['linear']['bias'], 0)


def _linear(x, stage):
  return x @ stage['kernel'] + stage['bias']


# ------------------------------------------------------------------------------------------------------------- branches
@pytest.mark.parametrize('per_example', [False, True])
@pytest.mark.parametrize(('kind', 'stage'), [('mlp', 'layer3'), ('resnet', 'block2'), ('convnet', 'dense')])
def test_each_branch_is_its_single_task_network_behind_the_common_trunk(kind, stage, per_example):
  """In training mode, with dropout, statistics and padded examples; copy i draws from fold_in(key, stages + i)."""
  single, x, mask = _single(kind), _inputs(SHAPES[kind]), jnp.array([True, True, True, False])
  net = branched(single, stage)
  variables, key = _variables(net), jax.random.key(1)
  key = jax.random.split(key, 4) if per_example else key
  found, moved = net.apply(variables, _masked(x, mask), train=True, key=key)
  cut = net.stages.index(stage)
  branch = net.stages[cut:]
  trunk, trunk_stats = single['zoo'].apply(
    _of(variables, 'zoo', branch), _masked(x, mask), train=True, key=key, stop=stage
  )
  _equal({name: found[name] for name in net.stages[:cut]}, trunk)
  _equal(_restricted({'stats': moved}, net.stages[:cut])['stats'], trunk_stats)
  for number, (task, own) in enumerate(single.items()):
    fold = lambda one: jax.random.fold_in(one, len(net.stages) + number)  # noqa: B023 (called here)
    own_key = jax.vmap(fold)(key) if per_example else fold(key)
    value = _masked(trunk[net.stages[cut - 1]], mask)
    expected, stats = own.apply(_of(variables, task, branch), value, train=True, key=own_key, start=stage)
    _equal({name: found[name][task] for name in branch}, expected)
    _equal({name: moved[name][task] for name in branch if name in moved}, stats)
  assert set(moved) == set(variables['stats'])


@pytest.mark.parametrize('kind', KINDS)
def test_in_evaluation_mode_each_task_gets_what_its_own_network_gives(kind):
  single, x = _single(kind), _inputs(SHAPES[kind])
  for stage in single['zoo'].stages:
    net = branched(single, stage)
    variables, branch = _variables(net), net.stages[net.stages.index(stage) :]
    outputs, _ = net.apply(variables, x)
    assert list(outputs) == list(net.stages) == list(single['zoo'].stages)
    for task, own in single.items():
      expected, _ = own.apply(_of(variables, task, branch), x)
      _equal({name: outputs[name][task] if name in branch else outputs[name] for name in outputs}, expected)


@pytest.mark.parametrize('kind', KINDS)
def test_branches_at_the_head_are_the_usual_network_of_several_tasks(kind):
  net, usual, x = branched(_single(kind), 'head'), KINDS[kind](SIZES), _inputs(SHAPES[kind])
  assert net.stages == usual.stages
  described = functools.partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype))
  assert described(net.shapes()) == described(usual.shapes())
  variables, key = _variables(usual), jax.random.key(2)
  for modes in (dict(train=True, key=key), dict(train={MIDDLE[kind]}, statistics=(), key=key), {}):
    (found, stats), (expected, expected_stats) = (one.apply(variables, x, **modes) for one in (net, usual))
    _equal(found, expected)
    _equal(stats, expected_stats)
  assert shared_stages(net) == shared_stages(usual) == usual.stages[:-1]
  assert last_shared(net) == last_shared(usual) == usual.stages[-2]


def test_dropout_of_a_branch_draws_from_keys_of_its_own():
  """The kept features of each task, from the formula of the keys."""

  def one(size):
    return network(
      lambda rngs: {'square': jnp.square, 'drop': layers.Dropout(0.5), 'head': nnx.Linear(50, size, rngs=rngs)}
    )

  net = branched({'zoo': one(1), 'age': one(2)}, 'drop')
  key, x = jax.random.key(3), jnp.ones((2, 50))
  outputs, _ = net.apply(_variables(net), x, train={'drop'}, key=key)
  kept = [
    jax.random.bernoulli(jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, 3 + i), 1), 1), 0.5, x.shape)
    for i in (0, 1)
  ]
  np.testing.assert_array_equal(outputs['drop']['zoo'], 2 * kept[0])
  np.testing.assert_array_equal(outputs['drop']['age'], 2 * kept[1])
  assert not np.array_equal(*kept)
  quiet, _ = net.apply(_variables(net), x, train={'square', 'head'})
  np.testing.assert_array_equal(quiet['drop']['age'], x)


def test_branches_may_differ_in_width():
  single = {'zoo': mlp((6,), 3, hidden=[8, 4]), 'age': mlp((6,), 2, hidden=[8, 9])}
  net, x = branched(single, 'layer2'), _inputs((6,))
  variables = _variables(net)
  outputs, _ = net.apply(variables, x)
  for task, own in single.items():
    expected, _ = own.apply(_of(variables, task, ('layer2', 'head')), x)
    np.testing.assert_array_equal(outputs['head'][task], expected['head'])


def test_a_branch_gets_gradients_of_its_own_task_only_and_the_trunk_their_sum():
  single, x = _single('mlp'), _inputs((6,))
  net = branched(single, 'layer3')
  variables = _variables(net)

  def loss(params, tasks):
    outputs, _ = net.apply({'params': params, 'stats': {}}, x)
    return sum(jnp.square(outputs['head'][task]).sum() for task in tasks)

  both, *each = (jax.grad(loss)(variables['params'], tasks) for tasks in (('zoo', 'age'), ('zoo',), ('age',)))
  for stage in ('layer1', 'layer2'):
    total = jax.tree.map(jnp.add, each[0][stage], each[1][stage])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), both[stage], total)
    assert all(np.abs(leaf).max() > 0 for one in each for leaf in jax.tree.leaves(one[stage]))
  for stage in ('layer3', 'head'):
    for (task, other), own in zip((('zoo', 'age'), ('age', 'zoo')), each):
      assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(own[stage][task]))
      assert all(not np.any(leaf) for leaf in jax.tree.leaves(own[stage][other]))
      _equal(own[stage][task], both[stage][task])


# ------------------------------------------------------------------------------------------------------------ the seam
@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize(
  ('kind', 'per_example'),
  [('mlp', False), ('convnet', True), pytest.param('resnet', True, marks=pytest.mark.long)],
)
def test_slices_equal_the_whole_bit_for_bit_at_every_cut_in_training_mode(way, kind, per_example):
  """Each half is given only its own stages' variables, and returns only its own stages' statistics."""
  net, x, mask = WAYS[way](kind), _inputs(SHAPES[kind]), jnp.array([True, False, True, True])
  variables, key = _variables(net), jax.random.key(1)
  key = jax.random.split(key, 4) if per_example else key
  modes = dict(train=True, key=key)
  whole, stats = net.apply(variables, _masked(x, mask), **modes)
  assert list(whole) == list(net.stages)
  assert set(stats) == set(variables['stats'])
  for cut, stage in list(enumerate(net.stages))[1:]:
    before, after = net.stages[:cut], net.stages[cut:]
    head, head_stats = net.apply(_restricted(variables, before), _masked(x, mask), **modes, stop=stage)
    value = _masked(head[net.stages[cut - 1]], mask)
    tail, tail_stats = net.apply(_restricted(variables, after), value, **modes, start=stage)
    assert (tuple(head), tuple(tail)) == (before, after)
    _equal({**head, **tail}, whole)
    assert set(head_stats) == {s for s in before if s in stats}
    assert set(tail_stats) == {s for s in after if s in stats}
    _equal({**head_stats, **tail_stats}, stats)


@pytest.mark.parametrize('way', WAYS)
def test_one_stage_at_a_time_equals_the_whole_without_a_mask(way):
  """Also where values were kept meanwhile: their dicts come back sorted."""
  net, x = WAYS[way]('mlp'), _inputs((6,))
  variables, key = _variables(net), jax.random.key(1)
  whole, _ = net.apply(variables, x, train=True, key=key)
  value = x
  for stage, following in zip(net.stages, [*net.stages[1:], None]):
    part, _ = net.apply(_restricted(variables, [stage]), value, train=True, key=key, start=stage, stop=following)
    assert list(part) == [stage]
    value = jax.tree.map(jnp.asarray, part[stage])
    _equal({'': value}, {'': whole[stage]})


@pytest.mark.parametrize('way', WAYS)
def test_padded_examples_change_nothing_and_copies_keep_the_keys_of_examples(way):
  net, x = WAYS[way]('resnet'), _inputs((4, 4, 3), batch=5)
  variables, keys = _variables(net), jax.random.split(jax.random.key(2), 5)
  padded, stats = net.apply(variables, _masked(x, jnp.arange(5) < 3), train=True, key=keys)
  alone, alone_stats = net.apply(variables, x[:3], train=True, key=keys[:3])
  for task in SIZES:
    np.testing.assert_allclose(padded['head'][task][:3], alone['head'][task], rtol=1e-4)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4), stats, alone_stats)


@pytest.mark.parametrize('way', WAYS)
def test_copies_draw_different_random_numbers(way):
  """Copies with the same weights differ by their dropout alone."""
  net, x = WAYS[way]('mlp'), _inputs((6,), batch=32)
  same = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5, leaf.dtype), net.shapes())
  quiet, _ = net.apply(same, x)
  loud, _ = net.apply(same, x, train={'layer2'}, key=jax.random.key(0))
  names = [name for name in quiet['layer2'] if name != 'gate_features']
  for one in names[1:]:
    np.testing.assert_array_equal(quiet['layer2'][names[0]], quiet['layer2'][one])
    differ = (loud['layer2'][names[0]] != loud['layer2'][one]).mean()
    assert differ == pytest.approx(2 * 0.4 * 0.6 * float((quiet['layer2'][one] > 0).mean()), abs=0.12)


@pytest.mark.parametrize('way', WAYS)
def test_a_compiled_network_knows_its_tasks_although_jit_sorts_them(way):
  net, x = WAYS[way]('mlp'), _inputs((6,))
  variables, key = _variables(net), jax.random.key(1)
  outputs, _ = net.apply(variables, x, train=True, key=key)
  run = jax.jit(lambda v, x, key: net.apply(v, x, train=True, key=key))
  jitted, _ = run(jax.jit(lambda v: v)(variables), x, key)
  for task in SIZES:
    np.testing.assert_allclose(jitted['head'][task], outputs['head'][task], rtol=1e-4)


@pytest.mark.parametrize('way', WAYS)
def test_statistics_move_in_another_set_of_stages_than_dropout(way):
  net, x = WAYS[way]('convnet'), _inputs((4, 4, 2))
  variables = _variables(net)
  _, stats = net.apply(variables, x, train={'block1', 'dense'}, statistics={'block2'}, key=jax.random.key(1))
  _equal(stats['block1'], variables['stats']['block1'])
  for name, own in stats['block2'].items():
    assert np.abs(own['norm']['mean'] - variables['stats']['block2'][name]['norm']['mean']).max() > 1e-3


class Scale(nnx.Module):
  """x times a learnt factor times the mask that travels with it, which is passed on."""

  def __init__(self):
    self.factor = nnx.Param(jnp.ones(()))

  def __call__(self, value):
    return {**value, 'x': value['x'] * self.factor[...] * value['mask'][..., None]}


class Total(nnx.Module):
  """A linear function of the sum over the places that the mask counts."""

  def __init__(self, size, rngs):
    self.linear = nnx.Linear(3, size, rngs=rngs)

  def __call__(self, value):
    return self.linear((value['x'] * value['mask'][..., None]).sum(axis=1))


def _masking(size):
  def see(x):
    return {'x': x, 'mask': (x[..., 0] > 0).astype(jnp.float32)}

  return network(lambda rngs: {'see': see, 'one': Scale(), 'two': Scale(), 'head': Total(size, rngs)})


@pytest.mark.parametrize('way', WAYS)
def test_what_travels_beside_the_features_reaches_every_copy(way):
  """Values {'x', 'mask'}: 'x' is mixed, the mask is passed on as it is."""
  single = {task: _masking(size) for task, size in SIZES.items()}
  make = {
    'branched': lambda: branched(single, 'two'),
    'mmoe': lambda: mmoe(single, 'one', experts=2, input_shape=(4, 3)),
    'cross_stitch': lambda: cross_stitch(single, ['one']),
  }
  net, x = make[way](), _inputs((4, 3))
  variables = _variables(net)
  outputs, _ = net.apply(variables, {'x': x, 'example_mask': jnp.ones(4, bool)})
  p, x = _double(variables['params']), np.asarray(x, np.float64)
  mask = (x[..., 0] > 0).astype(float)
  for row, task in enumerate(SIZES):
    if way == 'branched':
      factor, before = p['one']['factor'] * p['two'][task]['factor'], outputs['two'][task]
    elif way == 'mmoe':
      gates = np.exp(x.mean(1) @ p['gates'][task]['kernel'])
      factors = np.array([p['one'][expert]['factor'] * p['two'][expert]['factor'] for expert in ('expert0', 'expert1')])
      factor, before = ((gates / gates.sum(1, keepdims=True)) @ factors)[:, None, None], outputs['gates'][task]
    else:
      mixed = sum(p['one_stitch']['alpha'][row, s] * p['one'][name]['factor'] for s, name in enumerate(SIZES))
      factor, before = mixed * p['two'][task]['factor'], outputs['one_stitch'][task]
    np.testing.assert_array_equal(before['mask'], mask)
    expected = _linear((x * factor * mask[..., None]).sum(1), p['head'][task]['linear'])
    np.testing.assert_allclose(outputs['head'][task], expected, rtol=1e-4, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------- parameters
def _paths(net, stages=None):
  return [path for path in paths.flatten(net.shapes()['params']) if stages is None or paths.stage_of(path) in stages]


def test_copies_stand_under_their_stage_by_name():
  net = branched(_single('convnet'), 'block2')
  assert _paths(net, ['block1']) == ['block1/conv/bias', 'block1/conv/kernel', 'block1/norm/bias', 'block1/norm/scale']
  assert set(_paths(net, ['block2'])) == {
    f'block2/{task}/{leaf}' for task in SIZES for leaf in ('conv/kernel', 'conv/bias', 'norm/scale', 'norm/bias')
  }
  assert set(_paths(net, ['head'])) == {f'head/{task}/{leaf}' for task in SIZES for leaf in ('kernel', 'bias')}
  assert set(paths.flatten(net.shapes()['stats'])) == {
    *('block1/norm/mean', 'block1/norm/var'),
    *(f'block2/{task}/norm/{leaf}' for task in SIZES for leaf in ('mean', 'var')),
  }


def test_experts_gates_and_units_stand_in_stages_of_theirs():
  net = mmoe(_single('mlp'), 'layer2', experts=2, input_shape=(6,))
  assert net.stages == ('layer1', 'layer2', 'layer3', 'gates', 'head')
  assert {path: leaf.shape for path, leaf in paths.flatten(net.shapes()['params']).items() if 'bias' not in path} == {
    'layer1/linear/kernel': (6, 8),
    'layer2/expert0/linear/kernel': (8, 7),
    'layer2/expert1/linear/kernel': (8, 7),
    'layer3/expert0/linear/kernel': (7, 5),
    'layer3/expert1/linear/kernel': (7, 5),
    'gates/zoo/kernel': (8, 2),
    'gates/age/kernel': (8, 2),
    'head/zoo/kernel': (5, 3),
    'head/age/kernel': (5, 2),
  }
  net = cross_stitch(_single('resnet'))
  assert net.stages == (
    *('stem', 'stem_stitch', 'block1', 'block1_stitch', 'block2', 'block2_stitch', 'block3', 'block3_stitch'),
    *('pool', 'head'),
  )
  assert _paths(net, ['block1_stitch']) == ['block1_stitch/alpha']
  assert {paths.stage_of(path) for path in _paths(net)} == set(net.stages) - {'pool'}
  assert cross_stitch(_single('resnet'), ['pool', 'stem']).stages == (
    *('stem', 'stem_stitch', 'block1', 'block2', 'block3', 'pool', 'pool_stitch', 'head'),
  )


def test_the_trunk_starts_as_the_first_networks_and_every_copy_from_a_key_of_its_own():
  single, key = _single('mlp'), jax.random.key(5)
  made = branched(single, 'layer2').init(key)['params']
  _equal(made['layer1'], single['zoo'].init(key)['params']['layer1'])
  for number, (task, own) in enumerate(single.items()):
    alone = own.init(jax.random.fold_in(key, number))['params']
    _equal(
      {stage: made[stage][task] for stage in ('layer2', 'layer3', 'head')},
      {s: alone[s] for s in alone if s != 'layer1'},
    )
  assert np.abs(made['layer2']['zoo']['linear']['kernel'] - made['layer2']['age']['linear']['kernel']).max() > 0.1


@pytest.mark.parametrize('way', WAYS)
def test_no_two_kernels_start_alike(way):
  net = WAYS[way]('mlp')
  made = jax.jit(net.init)(jax.random.key(5))
  described = functools.partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype))
  assert described(net.shapes()) == described(made)
  flat = paths.flatten(made['params'])
  kernels = [tuple(np.ravel(leaf)[:4]) for path, leaf in flat.items() if path.endswith('kernel')]
  assert len(set(kernels)) == len(kernels)
  again = net.init(jax.random.key(6))
  assert all(
    np.abs(leaf - flat[path]).max() > 0 for path, leaf in paths.flatten(again['params']).items() if 'kernel' in path
  )


def test_gates_start_with_the_variance_of_lecun_and_units_as_they_are_told():
  """Var w = 1 / fan-in; α: `same` on the diagonal, and 1 − same shared by the others of a row."""
  single = {f'task{number}': mlp((400,), 2, hidden=[4]) for number in range(3)}
  gates = mmoe(single, 'layer1', experts=16, input_shape=(400,)).init(jax.random.key(0))['params']['gates']
  for task in single:
    assert gates[task]['kernel'].std() == pytest.approx(1 / 20, rel=0.05)
  alpha = cross_stitch(single, same=0.8).init(jax.random.key(0))['params']['layer1_stitch']['alpha']
  np.testing.assert_allclose(alpha, [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]], rtol=1e-6)
  usual = cross_stitch(_single('mlp')).init(jax.random.key(0))['params']['layer2_stitch']['alpha']
  np.testing.assert_allclose(usual, [[0.9, 0.1], [0.1, 0.9]], rtol=1e-6)


# -------------------------------------------------------------------------------------------------------------- experts
@pytest.mark.parametrize('stage', ['layer1', 'layer2', 'layer3'])
def test_experts_and_gates_follow_the_formula(stage):
  """y_t = h_t(Σ_i softmax(W_t x)_i f_i(x)) (Ma et al. 2018), x the value that enters `stage`, in float64."""
  net, x = mmoe(_single('mlp'), stage, experts=3, input_shape=(6,)), _inputs((6,))
  variables = _variables(net)
  outputs, _ = net.apply(variables, x)
  p, value = _double(variables['params']), np.asarray(x, np.float64)
  names = ['layer1', 'layer2', 'layer3']
  cut = names.index(stage)
  for name in names[:cut]:
    value = _dense(value, p[name])
  experts = []
  for number in range(3):
    experts.append(functools.reduce(lambda x, name: _dense(x, p[name][f'expert{number}']), names[cut:], value))
  for task in SIZES:
    logits = value @ p['gates'][task]['kernel']
    gates = np.exp(logits - logits.max(1, keepdims=True))
    gates /= gates.sum(1, keepdims=True)
    assert gates.std(0).max() > 0.01  # or examples would not be told from one another
    mixed = sum(gates[:, i, None] * expert for i, expert in enumerate(experts))
    np.testing.assert_allclose(outputs['gates'][task], mixed, rtol=1e-4)
    np.testing.assert_allclose(outputs['head'][task], _linear(mixed, p['head'][task]), rtol=1e-4)


def test_gates_read_the_mean_of_maps_and_the_whole_of_inputs():
  single, x = _single('convnet'), _inputs((4, 4, 2))
  inside, first = (mmoe(single, stage, experts=2, input_shape=(4, 4, 2)) for stage in ('block2', 'block1'))
  outputs, _ = inside.apply(_variables(inside), x)
  expected = np.asarray(outputs['block1'], np.float64).mean((1, 2))
  for stage in ('block2', 'dense'):
    np.testing.assert_allclose(outputs[stage]['gate_features'], expected, rtol=1e-5)
  outputs, _ = first.apply(_variables(first), x)
  np.testing.assert_array_equal(outputs['dense']['gate_features'], x.reshape(4, 32))
  assert first.shapes()['params']['gates']['age']['kernel'].shape == (32, 2)
  assert inside.shapes()['params']['gates']['age']['kernel'].shape == (4, 2)


def test_maps_are_mixed_example_by_example():
  """Experts that end in maps: a head that pools them itself."""

  class Pooled(nnx.Module):
    def __init__(self, size, rngs):
      self.linear = nnx.Linear(3, size, rngs=rngs)

    def __call__(self, x):
      return self.linear(x.mean(axis=(1, 2)))

  def one(size):
    return network(lambda rngs: {'conv': layers.Conv(2, 3, rngs=rngs), 'head': Pooled(size, rngs)})

  single, x = {task: one(size) for task, size in SIZES.items()}, _inputs((4, 4, 2))
  net = mmoe(single, 'conv', experts=2, input_shape=(4, 4, 2))
  variables = _variables(net)
  outputs, _ = net.apply(variables, x)
  logits = np.asarray(x, np.float64).reshape(4, -1) @ np.asarray(
    variables['params']['gates']['age']['kernel'], np.float64
  )
  gates = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  maps = _double(outputs['conv'])
  mixed = np.einsum('b,bhwc->bhwc', gates[:, 0], maps['expert0']) + np.einsum(
    'b,bhwc->bhwc', gates[:, 1], maps['expert1']
  )
  np.testing.assert_allclose(outputs['gates']['age'], mixed, rtol=1e-4, atol=1e-6)


# --------------------------------------------------------------------------------------------------------- cross-stitch
def test_cross_stitch_follows_the_formula():
  """x_t ← Σ_s α_ts x_s after the chosen stages (Misra et al. 2016, eq. 1), three tasks in float64."""
  sizes = {'zoo': 3, 'age': 2, 'mid': 1}
  net, x = cross_stitch({task: KINDS['mlp'](size) for task, size in sizes.items()}, ['layer3', 'layer1']), _inputs((6,))
  variables = _variables(net)
  outputs, _ = net.apply(variables, x)
  p = _double(variables['params'])
  columns = [np.asarray(x, np.float64)] * 3
  for name in ('layer1', 'layer2', 'layer3'):
    columns = [_dense(column, p[name][task]) for column, task in zip(columns, sizes)]
    if name != 'layer2':
      columns = list(np.einsum('ts,sbf->tbf', p[f'{name}_stitch']['alpha'], np.stack(columns)))
  for column, task in zip(columns, sizes):
    np.testing.assert_allclose(outputs['layer3_stitch'][task], column, rtol=1e-4)
    np.testing.assert_allclose(outputs['head'][task], _linear(column, p['head'][task]), rtol=1e-4)


@pytest.mark.parametrize('stages', [None, ()])
def test_units_that_are_the_identity_and_none_at_all_leave_networks_separate(stages):
  single, x = _single('resnet'), _inputs((4, 4, 3))
  net = cross_stitch(single, stages, same=1.0)
  variables = _variables(net)
  for name in variables['params']:
    if name.endswith('_stitch'):
      variables['params'][name]['alpha'] = jnp.eye(2)
  keys = jax.random.split(jax.random.key(0), 4)
  outputs, moved = net.apply(variables, x, train=True, key=keys)
  for number, (task, own) in enumerate(single.items()):
    own_keys = jax.vmap(lambda key: jax.random.fold_in(key, 6 + number))(keys)  # noqa: B023 (called here)
    expected, stats = own.apply(_of(variables, task, own.stages), x, train=True, key=own_keys)
    for name in own.stages:
      np.testing.assert_allclose(outputs[name][task], expected[name], rtol=1e-5, atol=1e-6)
    found = {name: moved[name][task] for name in stats}
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), found, stats)


# ------------------------------------------------------------------------------------------------------- what is shared
SHARED = {
  'usual': (lambda: mlp((6,), SIZES, hidden=[8, 7, 5]), ('layer1', 'layer2', 'layer3'), 'layer3'),
  'linear': (lambda: mlp((6,), SIZES, hidden=[]), (), None),
  'branched': (lambda: branched(_single('mlp'), 'layer3'), ('layer1', 'layer2'), 'layer2'),
  'apart': (lambda: branched(_single('mlp'), 'layer1'), (), None),
  'mmoe': (lambda: WAYS['mmoe']('mlp'), ('layer1', 'layer2', 'layer3'), 'layer3'),
  'experts': (
    lambda: mmoe(_single('mlp'), 'layer1', experts=2, input_shape=(6,)),
    ('layer1', 'layer2', 'layer3'),
    'layer3',
  ),
  'stitched': (lambda: cross_stitch(_single('mlp'), ['layer1', 'layer2']), ('layer1', 'layer1_stitch', 'layer2'), None),
  'columns': (lambda: cross_stitch(_single('mlp'), ()), (), None),
}


@pytest.mark.parametrize('name', SHARED)
def test_the_shared_stages_are_those_of_which_every_leaf_gets_a_gradient_from_every_task(name):
  make, stages, last = SHARED[name]
  net, x = make(), jnp.abs(_inputs((6,)))  # with positive weights: no unit of a ReLU is dead
  variables = _variables(net)

  def loss(params, task):
    return jnp.square(net.apply({'params': params, 'stats': {}}, x)[0]['head'][task]).sum()

  served = set(net.stages)
  for task in SIZES:
    for path, leaf in paths.flatten(jax.grad(loss)(variables['params'], task)).items():
      served -= set() if np.all(np.any(np.atleast_2d(leaf), axis=-1)) else {paths.stage_of(path)}
  assert shared_stages(net) == tuple(stage for stage in net.stages if stage in served) == stages
  assert last_shared(net) == last


def test_a_single_task_network_shares_all_but_its_head():
  net = _single('resnet')['zoo']
  assert shared_stages(net) == ('stem', 'block1', 'block2', 'block3', 'pool')
  assert last_shared(net) == 'pool'


# ------------------------------------------------------------------------------------------------------ tied parameters
class Read(nnx.Module):
  """x W, or x Wᵀ."""

  def __init__(self, table, transposed):
    self.table, self.transposed = table, transposed

  def __call__(self, x):
    return x @ (self.table[...].T if self.transposed else self.table[...])


def _tied(size):
  def create(rngs):
    table = nnx.Param(jax.random.normal(rngs.params(), (3, 4)))
    stages = {'first': nnx.Linear(3, 3, rngs=rngs), 'down': Read(table, False), 'bend': jnp.tanh}
    return {**stages, 'up': Read(table, True), 'head': nnx.Linear(3, size, rngs=rngs)}

  return network(create)


def test_parameters_that_stages_on_one_side_share_stay_one_leaf():
  single, x = {task: _tied(size) for task, size in SIZES.items()}, _inputs((3,))
  trunk, branch, columns = branched(single, 'head'), branched(single, 'down'), cross_stitch(single, ['down'])
  assert trunk.shared == {'up/table': 'down/table'}
  assert branch.shared == columns.shared == {f'up/{task}/table': f'down/{task}/table' for task in SIZES}
  experts = mmoe(single, 'down', experts=2, input_shape=(3,))
  assert experts.shared == {f'up/expert{number}/table': f'down/expert{number}/table' for number in (0, 1)}
  for net in (branch, columns):
    assert not [path for path in _paths(net) if path.startswith('up')]
    variables = _variables(net)
    whole, _ = net.apply(variables, x)
    leaves = _restricted(variables, ['down', 'head'])
    tail, _ = net.apply(leaves, whole['bend'], start='up')
    _equal(tail, {name: whole[name] for name in ('up', 'head')})
    table = np.asarray(variables['params']['down']['age']['table'], np.float64)
    np.testing.assert_allclose(whole['up']['age'], np.asarray(whole['bend']['age'], np.float64) @ table.T, rtol=1e-5)


def test_parameters_shared_across_a_place_where_copies_begin_are_refused():
  single = {task: _tied(size) for task, size in SIZES.items()}
  with pytest.raises(UserError, match=r"network of 'zoo': up/table is down/table, but .* at 'bend'"):
    branched(single, 'bend')
  with pytest.raises(UserError, match="at 'up'"):
    mmoe(single, 'up', experts=2, input_shape=(3,))

  def create(rngs):
    table = nnx.Param(jax.random.normal(rngs.params(), (3, 4)))
    return {'down': Read(table, False), 'head': Read(table, True)}

  with pytest.raises(UserError, match=r"head/table is down/table, but .* at 'head'"):
    mmoe({'one': network(create)}, 'down', experts=2, input_shape=(3,))


# --------------------------------------------------------------------------------------------------------------- errors
def _stage_named(stage):
  return {'one': network(lambda rngs: {'layer': jnp.tanh, stage: jnp.tanh, 'head': nnx.Linear(6, 1, rngs=rngs)})} | {
    'two': network(lambda rngs: {'layer': jnp.tanh, stage: jnp.tanh, 'head': nnx.Linear(6, 1, rngs=rngs)})
  }


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda one: branched(one, 'layer4'), "unknown stage 'layer4'; nearest: layer"),
    (lambda one: mmoe(one, 'layr2', experts=2, input_shape=(6,)), "unknown stage 'layr2'; nearest: layer2"),
    (lambda one: cross_stitch(one, ['layer1', 'head']), "unknown stage 'head'; nearest: layer1"),
    (lambda one: mmoe(one, 'head', experts=2, input_shape=(6,)), "'head' is the head; experts begin before it: layer1"),
    (lambda one: mmoe(one, 'layer1', experts=0, input_shape=(6,)), 'experts: at least 1, not 0'),
    (lambda one: branched({}, 'head'), 'give one network per task'),
    (lambda one: branched({**one, 'x': one['age']}, 'head'), "a task cannot be called 'x'"),
    (lambda one: branched({**one, 'example_mask': one['age']}, 'head'), "cannot be called 'example_mask'"),
    (lambda one: mmoe({'a/b': one['age']}, 'layer1', experts=1, input_shape=(6,)), "cannot be called 'a/b'"),
    (
      lambda one: branched({**one, 'odd': mlp((6,), 2, hidden=[8])}, 'layer1'),
      "'zoo' has layer1, layer2, layer3, head; 'odd' has layer1, head",
    ),
    (
      lambda one: branched({**one, 'wide': mlp((6,), 2, hidden=[8, 9, 5])}, 'layer3'),
      r"layer2/linear/bias is \[7\] in the network of 'zoo' and \[9\] in that of 'wide'",
    ),
    (
      lambda one: mmoe({**one, 'wide': mlp((6,), 2, hidden=[8, 7, 6])}, 'layer2', experts=2, input_shape=(6,)),
      r'layer3/linear/bias is \[5\]',
    ),
    (lambda one: cross_stitch({**one, 'wide': mlp((6,), 2, hidden=[8, 7, 6])}), r'layer3/linear/bias is \[5\]'),
    (
      lambda one: branched({'a': convnet((4, 4, 2), 2, batch_norm=True), 'b': convnet((4, 4, 2), 2)}, 'head'),
      r"block1/norm/bias is \[32\] in the network of 'a' and missing in that of 'b'",
    ),
    (lambda one: cross_stitch({'age': one['age']}), 'two tasks or more'),
    (lambda one: cross_stitch(one, same=1.5), 'same: between 0 and 1, not 1.5'),
    (lambda one: mmoe(_stage_named('gates'), 'layer', experts=2, input_shape=(6,)), "have a stage 'gates' already"),
    (lambda one: cross_stitch(_stage_named('layer_stitch'), ['layer']), "have a stage 'layer_stitch' already"),
  ],
)
def test_what_cannot_be_shared_is_refused_by_name(make, message):
  with pytest.raises(UserError, match=message):
    make(_single('mlp'))
