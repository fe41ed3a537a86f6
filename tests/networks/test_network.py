"""The functional seam: slices, modes, keys, statistics, shared parameters, heads, and modules of one's own."""

import functools
import os
from pathlib import Path

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
from transferlab.networks.network import build, configured, network
from transferlab.networks.resnet import resnet

pytestmark = pytest.mark.usefixtures('quick_compilation')
NETWORKS = {
  'mlp': lambda: mlp((6,), 3, hidden=[8, 7, 5], dropout=0.4),
  'convnet': lambda: convnet((4, 4, 2), 3, width=4, features=8, batch_norm=True, dropout=0.4),
  'resnet': lambda: resnet((4, 4, 3), 3, depth=8, width=2, dropout=0.4),
}
SHAPES = {'mlp': (6,), 'convnet': (4, 4, 2), 'resnet': (4, 4, 3)}


def _inputs(shape, batch=4, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, *shape)), jnp.float32)


def _variables(net, seed=0):
  """Random variables, made by NumPy, since compiling `init` costs seconds."""
  random = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: jnp.asarray(random.uniform(0.1, 1, leaf.shape), leaf.dtype), net.shapes())


def _restricted(variables, stages):
  return {kind: {name: leaf for name, leaf in tree.items() if name in stages} for kind, tree in variables.items()}


def _equal(a, b):
  a, b = paths.flatten(a), paths.flatten(b)
  assert a.keys() == b.keys()
  for path in a:
    np.testing.assert_array_equal(a[path], b[path], err_msg=path)


# ------------------------------------------------------------------------------------------------------ slices
@pytest.mark.parametrize(('name', 'per_example'), [('mlp', False), ('mlp', True), ('convnet', True), ('resnet', True)])
def test_slices_equal_the_whole_bit_for_bit_at_every_cut_in_training_mode(name, per_example):
  """Each half is given only its own stages' variables, and returns only its own stages' statistics."""
  net, x = NETWORKS[name](), _inputs(SHAPES[name])
  variables, key = _variables(net), jax.random.key(1)
  key = jax.random.split(key, 4) if per_example else key
  whole, stats = net.apply(variables, x, train=True, key=key)
  assert list(whole) == list(net.stages)
  for cut, stage in list(enumerate(net.stages))[1:]:
    before, after = net.stages[:cut], net.stages[cut:]
    head, head_stats = net.apply(_restricted(variables, before), x, train=True, key=key, stop=stage)
    tail, tail_stats = net.apply(
      _restricted(variables, after), head[net.stages[cut - 1]], train=True, key=key, start=stage
    )
    assert (tuple(head), tuple(tail)) == (before, after)
    _equal({**head, **tail}, whole)
    assert set(head_stats) == {s for s in before if s in stats}
    assert set(tail_stats) == {s for s in after if s in stats}
    _equal({**head_stats, **tail_stats}, stats)


def test_the_key_of_a_stage_is_the_key_folded_with_its_index():
  drop = layers.Dropout(0.5)
  net = network(lambda rngs: {'first': drop, 'second': layers.Dropout(0.5), 'head': nnx.Linear(50, 1, rngs=rngs)})
  key, x = jax.random.key(3), jnp.ones((2, 50))
  variables = net.init(jax.random.key(0))
  whole, _ = net.apply(variables, x, train=True, key=key)
  kept = [jax.random.bernoulli(layers.fold_in(jax.random.fold_in(key, i), 1), 0.5, x.shape) for i in (0, 1)]
  np.testing.assert_array_equal(whole['first'], 2 * kept[0])
  np.testing.assert_array_equal(whole['second'], 4 * (kept[0] & kept[1]))
  assert not np.array_equal(*kept)


def test_training_mode_is_a_set_of_stages():
  net, x = NETWORKS['mlp'](), _inputs((6,), batch=64)
  variables, key = net.init(jax.random.key(0)), jax.random.key(1)
  quiet, _ = net.apply(variables, x)
  only, _ = net.apply(variables, x, train={'layer2'}, key=key)
  np.testing.assert_array_equal(only['layer1'], quiet['layer1'])
  ratio = np.asarray(only['layer2'])[np.asarray(quiet['layer2']) > 0] / quiet['layer2'][quiet['layer2'] > 0]
  np.testing.assert_allclose(np.unique(ratio.round(5)), [0, 1 / 0.6], atol=1e-5)
  third, _ = net.apply(variables, only['layer2'], start='layer3')
  np.testing.assert_array_equal(only['head'], third['head'])
  with pytest.raises(ValueError, match='needs a key'):
    net.apply(variables, x, train={'layer2'})


def test_statistics_move_in_another_set_of_stages_than_dropout():
  net, x = NETWORKS['convnet'](), _inputs((4, 4, 2))
  variables = _variables(net)
  _, stats = net.apply(variables, x, train={'block1', 'dense'}, statistics={'block2'}, key=jax.random.key(1))
  old = variables['stats']
  _equal(stats['block1'], old['block1'])
  assert np.abs(stats['block2']['norm']['mean'] - old['block2']['norm']['mean']).max() > 1e-3
  _, by_mode = net.apply(variables, x, train={'block1'}, key=jax.random.key(1))
  assert np.abs(by_mode['block1']['norm']['mean'] - old['block1']['norm']['mean']).max() > 1e-3
  _equal(by_mode['block2'], old['block2'])


def test_evaluation_mode_moves_no_statistics_and_needs_no_key():
  net, x = NETWORKS['resnet'](), _inputs((4, 4, 3))
  variables = _variables(net)
  outputs, stats = net.apply(variables, x)
  _equal(stats, variables['stats'])
  one, _ = net.apply(variables, x[:1])
  np.testing.assert_allclose(outputs['head'][:1], one['head'], rtol=1e-5)


def test_stages_keep_their_order_through_jit():
  """Dicts come back from jit sorted (block10 before block2): stages must be walked in the order of depth."""
  net = mlp((4,), 2, hidden=[3] * 11)
  variables, x = _variables(net), _inputs((4,))
  outputs, _ = net.apply(variables, x)
  jitted, _ = jax.jit(net.apply)(jax.jit(lambda v: v)(variables), x)
  value = np.asarray(x, np.float64)
  for number in range(1, 12):
    linear = variables['params'][f'layer{number}']['linear']
    value = np.maximum(value @ np.asarray(linear['kernel'], np.float64) + linear['bias'], 0)
    np.testing.assert_allclose(outputs[f'layer{number}'], value, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(jitted[f'layer{number}'], value, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------------------- modules and functions of one's own
class Theirs(nnx.Module):
  """A user's module with nnx's own layers, nested in the ways nnx allows."""

  def __init__(self, rngs):
    self.sequence = nnx.Sequential(nnx.Linear(5, 6, rngs=rngs), nnx.BatchNorm(6, momentum=0.7, rngs=rngs))
    self.parts = nnx.List([nnx.Dropout(0.5, rngs=rngs), nnx.Linear(6, 6, rngs=rngs)])

  def __call__(self, x):
    x = self.sequence(x)
    for part in self.parts:
      x = part(x)
    return x


def test_nnx_dropout_and_batch_norm_in_a_users_module_become_ours():
  net = network(lambda rngs: {'body': Theirs(rngs), 'square': jnp.square, 'head': nnx.Linear(6, 2, rngs=rngs)})
  variables, x = net.init(jax.random.key(0)), _inputs((5,), batch=6)
  mask = jnp.arange(6) < 4
  keys = jax.random.split(jax.random.key(2), 6)
  outputs, stats = net.apply(variables, {'x': x, 'example_mask': mask}, train=True, key=keys)
  alone, _ = net.apply(variables, x[:4], train=True, key=keys[:4])
  np.testing.assert_allclose(outputs['head'][:4], alone['head'], atol=1e-5)
  np.testing.assert_array_equal(outputs['square'], jnp.square(outputs['body']))
  flat = paths.flatten(variables['params'])
  hidden = np.asarray(x[:4], np.float64) @ flat['body/sequence/layers/0/kernel'] + flat['body/sequence/layers/0/bias']
  moved = stats['body']['sequence']['layers']['1']
  np.testing.assert_allclose(moved['mean'], 0.3 * hidden.mean(0), atol=1e-6)
  np.testing.assert_allclose(moved['var'], 0.7 + 0.3 * hidden.var(0), atol=1e-6)


def test_replaced_batch_norm_keeps_its_settings_and_its_initial_values():
  def create(rngs):
    bare = nnx.BatchNorm(3, use_scale=False, use_bias=False, rngs=rngs)
    scaled = nnx.BatchNorm(3, scale_init=nnx.initializers.constant(0.25), epsilon=0.5, rngs=rngs)
    return {'bare': bare, 'scaled': scaled}

  net, x = network(create), _inputs((3,), batch=8)
  variables = net.init(jax.random.key(0))
  assert set(paths.flatten(variables['params'])) == {'scaled/scale', 'scaled/bias'}
  outputs, _ = net.apply(variables, x, train=True)
  values = np.asarray(x, np.float64)
  bare = (values - values.mean(0)) / np.sqrt(values.var(0) + 1e-5)
  np.testing.assert_allclose(outputs['bare'], bare, atol=1e-5)
  np.testing.assert_allclose(outputs['scaled'], 0.25 * bare / np.sqrt(bare.var(0) + 0.5), atol=1e-5)


@pytest.mark.parametrize(
  ('create', 'message'),
  [
    (lambda rngs: {'a': nnx.BatchNorm(3, axis=1, rngs=rngs)}, 'axis=1 is not supported'),
    (lambda rngs: {'a': nnx.Dropout(0.5, broadcast_dims=(0,))}, 'broadcast_dims'),
  ],
)
def test_settings_that_ours_do_not_have_are_refused(create, message):
  with pytest.raises(UserError, match=message):
    network(create)


class Counter(nnx.Module):
  """A module with state that is neither parameter nor running statistics."""

  def __init__(self):
    self.calls = nnx.Variable(jnp.zeros(()))

  def __call__(self, x):
    return x


def test_variables_of_another_kind_are_refused_by_name():
  with pytest.raises(UserError, match=r"stage 'odd' holds calls, which is neither nnx.Param nor nnx.BatchStat"):
    network(lambda rngs: {'odd': Counter()})


def test_a_flat_dict_travels_between_stages():
  def first(value):
    return {**value, 'x': value['x'] * value['scale'][:, None]}

  net = network(lambda rngs: {'scale': first, 'sum': lambda value: value['x'].sum(-1)})
  x, scale = _inputs((3,)), jnp.arange(4.0)
  outputs, _ = net.apply({'params': {}, 'stats': {}}, {'x': x, 'scale': scale, 'example_mask': jnp.ones(4, bool)})
  assert set(outputs['scale']) == {'x', 'scale'}
  np.testing.assert_allclose(outputs['sum'], (np.asarray(x) * np.arange(4.0)[:, None]).sum(-1), rtol=1e-6)


# ----------------------------------------------------------------------------------------------- shared parameters
class Read(nnx.Module):
  """x W, or x Wᵀ."""

  def __init__(self, table, transposed):
    self.table, self.transposed = table, transposed

  def __call__(self, x):
    return x @ (self.table[...].T if self.transposed else self.table[...])


def _tied():
  def create(rngs):
    table = nnx.Param(jax.random.normal(rngs.params(), (3, 4)))
    return {'zeta': Read(table, False), 'tanh': jnp.tanh, 'alpha': Read(table, True)}

  return network(create)


def test_a_shared_parameter_is_one_leaf_in_its_first_stage_by_depth_not_by_alphabet():
  net = _tied()
  assert list(paths.flatten(net.init(jax.random.key(0))['params'])) == ['zeta/table']
  assert net.shared == {'alpha/table': 'zeta/table'}


def test_the_gradient_of_a_shared_parameter_is_the_sum_over_its_uses():
  """L = ½ ‖tanh(x W) Wᵀ‖²; dL/dW = xᵀ ((y W) ∘ (1 − t²)) + yᵀ t, with t = tanh(x W), y = t Wᵀ."""
  net, x = _tied(), _inputs((3,))
  variables = net.init(jax.random.key(0))

  def loss(params):
    return 0.5 * jnp.square(net.apply({'params': params, 'stats': {}}, x)[0]['alpha']).sum()

  found = jax.grad(loss)(variables['params'])['zeta']['table']
  w, x = np.asarray(variables['params']['zeta']['table'], np.float64), np.asarray(x, np.float64)
  t = np.tanh(x @ w)
  y = t @ w.T
  np.testing.assert_allclose(found, x.T @ ((y @ w) * (1 - t**2)) + y.T @ t, rtol=1e-4)
  sliced, _ = net.apply(variables, jnp.asarray(t, jnp.float32), start='alpha')
  np.testing.assert_allclose(sliced['alpha'], y, rtol=1e-4)


# --------------------------------------------------------------------------------------------------- heads and building
def test_a_network_of_several_tasks_gives_a_linear_layer_for_each():
  net, x = mlp((6,), {'colour': 3, 'size': 1}, hidden=[5]), _inputs((6,))
  variables = net.init(jax.random.key(0))
  outputs, _ = net.apply(variables, x)
  assert {path for path in paths.flatten(variables['params']) if path.startswith('head')} == {
    'head/colour/kernel',
    'head/colour/bias',
    'head/size/kernel',
    'head/size/bias',
  }
  features = np.asarray(outputs['layer1'], np.float64)
  for task, size in (('colour', 3), ('size', 1)):
    assert outputs['head'][task].shape == (4, size)
    kernel = variables['params']['head'][task]['kernel']
    np.testing.assert_allclose(outputs['head'][task], features @ kernel, rtol=1e-5, atol=1e-6)


def test_init_is_a_function_of_the_key():
  net = NETWORKS['mlp']()
  init = jax.jit(net.init)
  three, four = init(jax.random.key(3)), init(jax.random.key(4))
  _equal(three, init(jax.random.key(3)))
  for path, leaf in paths.flatten(three['params']).items():
    same = np.array_equal(leaf, paths.flatten(four['params'])[path])
    assert same == path.endswith('bias'), path
  described = functools.partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype))
  assert described(net.shapes()) == described(three)


def test_convolutions_start_with_the_variance_of_he_et_al():
  """Var w = 2 / fan-in (He et al. 2015, eq. 10)."""
  net = resnet((8, 8, 3), 3, depth=8, width=32)
  kernel = jax.jit(lambda key: net.init(key)['params']['block3']['conv2']['kernel'])(jax.random.key(0))
  assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 128)), rel=0.02)


@pytest.mark.parametrize(
  ('name', 'options', 'shape', 'message'),
  [
    ('convnett', {}, (8, 8, 1), "unknown network 'convnett'; nearest: convnet"),
    ('no.such.module', {}, (8,), 'unknown network'),
    ('mlp', {'hiden': [3]}, (8,), 'hiden: no such key; nearest: hidden'),
    ('mlp', {'hidden': [0]}, (8,), 'hidden.0: input should be greater than 0'),
    ('mlp', {'dropout': 1.0}, (8,), 'dropout: input should be less than 1, not 1.0'),
    ('mlp', {'dropout': -0.5}, (8,), 'dropout: input should be greater than or equal to 0'),
    ('mlp', {'embedding': 4}, (8,), 'embedding is for tables with categories'),
    ('convnet', {}, (8,), 'takes images'),
    ('convnet', {'blocks': 4}, (8, 9, 1), 'at most 3 fit'),
    ('resnet', {'depth': 19}, (8, 8, 3), 'nearest: 20'),
    ('resnet', {'depth': 14, 'blocks': 7}, (8, 8, 3), 'depth 14 has 6 blocks, not 7; nearest: 6'),
    ('resnet', {'shortcut': 'C'}, (8, 8, 3), "should be 'A' or 'B'"),
  ],
)
def test_a_mistaken_network_is_answered_with_the_nearest(name, options, shape, message):
  with pytest.raises(UserError, match=message):
    build(name, options, shape, 3)


# ------------------------------------------------------------------------------------------------ published networks
def _count(net):
  return sum(leaf.size for leaf in jax.tree.leaves(net.shapes()['params']))


@pytest.mark.parametrize(('depth', 'millions'), [(20, 0.27), (32, 0.46), (56, 0.85)])
def test_cifar_resnets_have_the_published_number_of_parameters(depth, millions):
  """He et al. 2016, table 6."""
  count = _count(resnet((32, 32, 3), 10, depth=depth)) / 1e6
  assert count == pytest.approx(millions, abs=0.006)


def test_resnet_20_has_the_parameters_of_its_layers():
  """Shortcut A has none: 269,722. B adds two 1×1 convolutions (16·32, 32·64) and their BatchNorms (2·32, 2·64)."""
  assert _count(resnet((32, 32, 3), 10)) == 269_722
  assert _count(resnet((32, 32, 3), 10, shortcut='B')) == 269_722 + 16 * 32 + 32 * 64 + 2 * (32 + 64)


def test_the_first_blocks_of_a_resnet_are_those_of_the_whole():
  whole, part = (resnet((8, 8, 3), 5, depth=14, width=2, shortcut='B', blocks=blocks) for blocks in (None, 3))
  assert whole.stages == ('stem', *(f'block{number}' for number in range(1, 7)), 'pool', 'head')
  assert part.stages == ('stem', 'block1', 'block2', 'block3', 'pool', 'head')
  variables, x = _variables(whole), _inputs((8, 8, 3), batch=2)
  variables['params']['head'] = {'kernel': jnp.ones((4, 5)), 'bias': jnp.zeros(5)}
  outputs, _ = part.apply(_restricted(variables, part.stages), x)
  expected, _ = whole.apply(variables, x, stop='block4')
  np.testing.assert_array_equal(outputs['block3'], expected['block3'])
  np.testing.assert_allclose(outputs['pool'], np.asarray(expected['block3'], np.float64).mean((1, 2)), rtol=1e-5)
  assert part.shapes()['params']['head']['kernel'].shape == (4, 5)


def test_a_dense_stage_stands_between_pool_and_head_where_features_are_asked_for():
  net = resnet((8, 8, 3), 5, depth=8, width=4, features=7)
  assert net.stages[-3:] == ('pool', 'dense', 'head')
  variables = net.init(jax.random.key(0))
  outputs, _ = net.apply(variables, jnp.ones((2, 8, 8, 3)))
  dense = variables['params']['dense']['linear']
  expected = np.maximum(np.asarray(outputs['pool'], np.float64) @ dense['kernel'] + dense['bias'], 0)
  assert dense['kernel'].shape == (16, 7)
  np.testing.assert_allclose(outputs['dense'], expected, rtol=1e-5, atol=1e-6)


def test_resnet_20_with_published_weights_gives_the_logits_of_pytorch():
  """Weights of akamaster/pytorch_resnet_cifar10, names mapped by hand."""
  folder = os.environ.get('TRANSFERLAB_TEST_DATA')
  if not folder:
    pytest.skip('TRANSFERLAB_TEST_DATA is not set')
  torch = pytest.importorskip('torch')
  file = Path(folder) / 'weights' / 'cifar10_resnet20.th'
  theirs = torch.load(file, map_location='cpu', weights_only=True)['state_dict']
  theirs = {name.removeprefix('module.'): value.numpy() for name, value in theirs.items()}
  flat = {'params': {}, 'stats': {}}

  def norm(ours, name):
    flat['params'][f'{ours}/scale'], flat['params'][f'{ours}/bias'] = theirs[f'{name}.weight'], theirs[f'{name}.bias']
    flat['stats'][f'{ours}/mean'] = theirs[f'{name}.running_mean']
    flat['stats'][f'{ours}/var'] = theirs[f'{name}.running_var']

  def conv(ours, name):
    flat['params'][f'{ours}/kernel'] = theirs[f'{name}.weight'].transpose(2, 3, 1, 0)

  conv('stem/conv', 'conv1')
  norm('stem/norm', 'bn1')
  for number in range(9):
    for part in (1, 2):
      conv(f'block{number + 1}/conv{part}', f'layer{number // 3 + 1}.{number % 3}.conv{part}')
      norm(f'block{number + 1}/norm{part}', f'layer{number // 3 + 1}.{number % 3}.bn{part}')
  flat['params']['head/kernel'], flat['params']['head/bias'] = theirs['linear.weight'].T, theirs['linear.bias']
  variables = {kind: paths.unflatten(leaves) for kind, leaves in flat.items()}
  net = resnet((32, 32, 3), 10)
  assert jax.tree.map(jnp.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, net.shapes())

  reference = np.load(Path(folder) / 'weights' / 'cifar10_resnet20_reference.npz')
  x = (reference['image'][:32] / np.float32(255) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  outputs, _ = jax.jit(functools.partial(net.apply))(variables, jnp.asarray(x, jnp.float32))
  for ours, name in (('head', 'logits'), ('pool', 'features')):
    expected = reference[name][:32]
    assert np.abs(outputs[ours] - expected).max() < 1e-4 * np.abs(expected).max()


# ------------------------------------------------------------------------------------------------ dtype, memory
def _deep(**how):
  options = dict(depth=8, width=4)
  network = configured(build('resnet', options, (8, 8, 3), 5), **how)
  return network, network.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (6, 8, 8, 3))


def _slopes(network, variables, x):
  def loss(params):
    outputs, stats = network.apply({**variables, 'params': params}, x, train=True, key=jax.random.key(2))
    return jnp.square(outputs['head']).sum(), (outputs, stats)

  return jax.value_and_grad(loss, has_aux=True), loss


def test_rematerialised_stages_give_the_same_gradients_and_keep_less():
  plain, again = _deep(), _deep(rematerialise='block.*')
  (a, _), (b, _) = (_slopes(*which) for which in (plain, again))
  params = plain[1]['params']
  for one, other in zip(jax.tree.leaves(jax.jit(a)(params)), jax.tree.leaves(jax.jit(b)(params))):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
  count = lambda function: str(jax.make_jaxpr(function)(params)).count('remat')
  assert count(_slopes(*plain)[1]) == 0 and count(_slopes(*again)[1]) == 3
  pulls = [jax.vjp(_slopes(*which)[1], params, has_aux=True)[1] for which in (plain, again)]
  kept = [sum(leaf.size for leaf in jax.tree.leaves(pull)) for pull in pulls]
  assert kept[1] < 0.8 * kept[0]


def test_a_network_in_bfloat16_computes_in_it_and_keeps_everything_else_in_float32():
  exact, rough = _deep(), _deep(dtype='bfloat16')
  (loss, (outputs, stats)), slopes = jax.jit(_slopes(*rough)[0])(rough[1]['params'])
  assert {leaf.dtype for leaf in jax.tree.leaves((loss, outputs, stats, slopes))} == {jnp.dtype('float32')}
  (_, (expected, moved)), _ = jax.jit(_slopes(*exact)[0])(exact[1]['params'])
  difference = np.abs(outputs['head'] - expected['head']).max() / np.abs(expected['head']).max()
  assert 1e-4 < difference < 0.05
  np.testing.assert_allclose(stats['stem']['norm']['var'], moved['stem']['norm']['var'], rtol=0.02)
  program = str(jax.make_jaxpr(_slopes(*rough)[1])(rough[1]['params']))
  products = [line.split(' = ')[0] for line in program.splitlines() if ' = dot_general' in line]
  assert products and all(':bf16[' in result for result in products)


def test_stages_that_are_not_there_cannot_be_rematerialised():
  with pytest.raises(UserError, match=r"rematerialise 'blocks'; nearest: .*block"):
    _deep(rematerialise='blocks')


def test_initial_values_are_those_of_nnxs_own_keys():
  create = lambda rngs: {'first': nnx.Linear(4, 5, rngs=rngs), 'head': nnx.Linear(5, 3, rngs=rngs)}
  made, own = network(create).init(jax.random.key(7))['params'], create(nnx.Rngs(jax.random.key(7)))
  for stage, layer in own.items():
    np.testing.assert_array_equal(made[stage]['kernel'], layer.kernel[...])


def test_neither_building_nor_tracing_writes_down_a_trace_for_an_error_that_nobody_sees(monkeypatch):
  from jax._src.interpreters import partial_eval

  written, origin = [], partial_eval.DynamicJaxprTracer._origin_msg
  monkeypatch.setattr(
    partial_eval.DynamicJaxprTracer, '_origin_msg', lambda tracer: written.append(tracer) or origin(tracer)
  )
  small = build('resnet', dict(depth=8, width=5), (8, 8, 3), 2)
  jax.eval_shape(functools.partial(small.apply, train=True), small.shapes(), small.example(2, (8, 8, 3)))
  assert not written
