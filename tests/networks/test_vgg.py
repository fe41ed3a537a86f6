"""VGG: published sizes, depth and partial depth, pooling, initialisation, tasks; parity is in tests/weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transferlab import paths
from transferlab.errors import UserError
from transferlab.networks.network import build
from transferlab.networks.vgg import vgg

pytestmark = pytest.mark.usefixtures('quick_compilation')


def _count(net):
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(net.shapes()['params']))


def _variables(net, seed=0):
  random = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: jnp.asarray(random.uniform(-0.3, 0.5, leaf.shape), leaf.dtype), net.shapes())


@pytest.mark.parametrize(
  ('options', 'parameters'),
  [
    (dict(depth=11), 132_863_336),
    (dict(depth=13), 133_047_848),
    (dict(), 138_357_544),
    (dict(depth=19), 143_667_240),
    (dict(batch_norm=True), 138_365_992),
    (dict(pool='average', features=[], blocks=5), 14_714_688 + 513_000),
  ],
)
def test_a_vgg_has_as_many_parameters_as_torchvision_and_keras_publish(options, parameters):
  assert _count(vgg((224, 224, 3), 1000, **options)) == parameters


def test_its_stages_are_blocks_pool_dense_layers_and_head():
  net = vgg((32, 32, 3), 2, width=2, features=[4, 5])
  assert net.stages == ('block1', 'block2', 'block3', 'block4', 'block5', 'pool', 'dense1', 'dense2', 'head')
  expected = {'block1/conv1/kernel', 'block1/conv2/bias', 'block5/conv3/kernel', 'dense1/linear/kernel', 'head/bias'}
  assert expected < set(paths.flatten(net.shapes()['params']))


def test_fewer_blocks_are_the_first_part_of_the_network_bit_for_bit():
  whole, part = (vgg((32, 32, 3), 2, width=2, features=[], blocks=blocks) for blocks in (5, 3))
  variables, x = _variables(whole), jnp.asarray(np.random.default_rng(1).normal(size=(1, 32, 32, 3)), jnp.float32)
  kept = {kind: {name: tree[name] for name in tree if name != 'head'} for kind, tree in variables.items()}
  expected, _ = jax.jit(lambda v, x: whole.apply(v, x, stop='pool'))(variables, x)
  found, _ = jax.jit(lambda v, x: part.apply(v, x, stop='head'))(kept, x)
  assert list(part.stages) == ['block1', 'block2', 'block3', 'pool', 'head']
  np.testing.assert_array_equal(found['block3'], expected['block3'])
  assert found['pool'].shape == (1, 7 * 7 * 8)


@pytest.mark.parametrize('side', [2, 14, 21])
def test_a_map_of_another_size_is_averaged_to_seven_by_seven_places(side):
  """With one block of halving, and sides that seven divides or that divide seven's windows evenly."""
  net = vgg((2 * side, 2 * side, 3), 2, width=2, features=[], blocks=1)
  outputs, _ = net.apply(_variables(net), jnp.asarray(np.random.default_rng(1).normal(size=(1, 2 * side, 2 * side, 3))))
  maps = np.asarray(outputs['block1'], np.float64)
  window = lambda i: slice(i * side // 7, -(-(i + 1) * side // 7))
  expected = [maps[0, window(i), window(j)].mean((0, 1)) for i in range(7) for j in range(7)]
  np.testing.assert_allclose(outputs['pool'][0], np.concatenate(expected), rtol=1e-5)


def test_average_pooling_is_the_global_mean():
  net = vgg((8, 6, 3), 2, width=2, features=[], blocks=1, pool='average')
  outputs, _ = net.apply(_variables(net), jnp.ones((1, 8, 6, 3)))
  np.testing.assert_allclose(outputs['pool'], np.asarray(outputs['block1']).mean((1, 2)), rtol=1e-6)


def test_convolutions_begin_with_he_normal_kernels_by_fan_out_and_no_bias():
  params = vgg((2, 2, 3), 2, width=32, blocks=1, features=[], pool='average').init(jax.random.key(0))['params']
  for number, fan in ((1, 9 * 32), (2, 9 * 32)):
    kernel = params['block1'][f'conv{number}']['kernel']
    assert abs(kernel.std() / np.sqrt(2 / fan) - 1) < 5 / np.sqrt(2 * kernel.size)
    np.testing.assert_array_equal(params['block1'][f'conv{number}']['bias'], 0)


def test_dropout_stands_behind_each_dense_layer():
  net = vgg((2, 2, 3), 2, width=2, blocks=1, features=[200, 100], dropout=0.5)
  variables = jax.tree.map(jnp.ones_like, _variables(net))
  outputs, _ = net.apply(variables, jnp.ones((2, 2, 2, 3)), train=True, key=jax.random.key(0))
  for stage in ('dense1', 'dense2'):
    assert 0.3 < (np.asarray(outputs[stage]) == 0).mean() < 0.7
  assert (np.asarray(outputs['pool']) != 0).all()


def test_several_tasks_have_a_head_each():
  net = vgg((2, 2, 3), {'a': 2, 'b': 3}, width=2, blocks=1, features=[4])
  outputs, _ = net.apply(_variables(net), jnp.ones((1, 2, 2, 3)))
  assert {task: value.shape for task, value in outputs['head'].items()} == {'a': (1, 2), 'b': (1, 3)}


def test_too_small_images_are_refused_with_the_smallest_that_fit():
  with pytest.raises(UserError, match='31×40 pixels; the smallest that fit are 32×32'):
    build('vgg', {}, (31, 40, 3), 2)
  with pytest.raises(UserError, match='smallest that fit are 4×4'):
    build('vgg', {'blocks': 2}, (3, 3, 1), 2)
  with pytest.raises(UserError, match='images'):
    build('vgg', {}, (31,), 2)


@pytest.mark.parametrize('options', [{'depth': 12}, {'blocks': 6}, {'blocks': 0}, {'pool': 'max'}, {'features': [0]}])
def test_impossible_options_are_refused(options):
  with pytest.raises(UserError, match=f'vgg.*{next(iter(options))}'):
    build('vgg', options, (32, 32, 3), 2)
