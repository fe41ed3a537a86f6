"""SqueezeNet 1.1: published sizes, where pooling stands, its two heads, partial depth; parity is in tests/weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transferlab import paths
from transferlab.errors import UserError
from transferlab.networks.network import build
from transferlab.networks.squeezenet import squeezenet

pytestmark = pytest.mark.usefixtures('quick_compilation')
FIRES = tuple(f'fire{number}' for number in range(2, 10))


def _variables(net, seed=0):
  random = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: jnp.asarray(random.uniform(-0.2, 0.3, leaf.shape), leaf.dtype), net.shapes())


@pytest.mark.parametrize('head_type', ['linear', 'convolution'])
def test_both_heads_have_the_same_parameters_as_many_as_torchvision_publishes(head_type):
  net = squeezenet((224, 224, 3), 1000, head_type=head_type)
  assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(net.shapes())) == 1_235_496
  assert paths.flatten(net.shapes()['params'])['head/kernel'].shape == (512, 1000)
  assert net.stages == ('stem', *FIRES, *(['pool'] if head_type == 'linear' else []), 'head')


@pytest.mark.parametrize(
  ('ceil_mode', 'side', 'sides'),
  [
    (False, 224, (55, 27, 13, 13)),
    (True, 224, (55, 27, 13, 13)),
    (True, 61, (15, 7, 3, 3)),
    (False, 36, (8, 3, 1, 1)),
    (True, 36, (8, 4, 2, 2)),
  ],
)
def test_pooling_belongs_to_stem_fire3_and_fire5(ceil_mode, side, sides):
  net = squeezenet((side, side, 3), 2, ceil_mode=ceil_mode)
  outputs = jax.eval_shape(lambda v, x: net.apply(v, x)[0], net.shapes(), jnp.ones((1, side, side, 3)))
  assert tuple(outputs[name].shape[1] for name in ('stem', 'fire3', 'fire5', 'fire9')) == sides
  assert outputs['fire2'].shape == (1, sides[0], sides[0], 128)


def test_the_published_head_is_the_mean_of_rectified_maps_and_the_linear_one_of_the_features():
  x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 17, 21, 3)), jnp.float32)
  nets = {
    kind: squeezenet((17, 21, 3), {'a': 3, 'b': 2}, head_type=kind, ceil_mode=True)
    for kind in ('linear', 'convolution')
  }
  variables = _variables(nets['linear'])
  for kind, net in nets.items():
    outputs, _ = jax.jit(net.apply)(variables, x)
    maps = np.asarray(outputs['fire9'], np.float64)
    for task, found in outputs['head'].items():
      kernel, bias = (np.asarray(variables['params']['head'][task][name], np.float64) for name in ('kernel', 'bias'))
      if kind == 'convolution':
        expected = np.maximum(maps @ kernel + bias, 0).mean((1, 2))
      else:
        expected = maps.mean((1, 2)) @ kernel + bias
      np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize('head_type', ['linear', 'convolution'])
def test_dropout_acts_before_the_head_in_training_only(head_type):
  net = squeezenet((17, 17, 3), 5, blocks=1, head_type=head_type)
  variables, x = _variables(net), jnp.ones((1, 17, 17, 3))
  apply = jax.jit(lambda train, seed: net.apply(variables, x, train=train, key=jax.random.key(seed)), static_argnums=0)
  first, second, quiet, again = (apply(*call)[0] for call in ((True, 0), (True, 1), (False, 0), (False, 1)))
  np.testing.assert_array_equal(first['fire2'], second['fire2'])
  assert not np.allclose(first['head'], second['head'])
  np.testing.assert_array_equal(quiet['head'], again['head'])


def test_fewer_blocks_are_the_first_part_of_the_network():
  net = squeezenet((19, 19, 3), 2, blocks=2)
  assert net.stages == ('stem', 'fire2', 'fire3', 'pool', 'head')
  outputs, _ = jax.jit(net.apply)(_variables(net), jnp.ones((1, 19, 19, 3)))
  assert outputs['fire3'].shape == (1, 1, 1, 128)


def test_convolutions_begin_as_he_normal_and_the_published_head_small():
  params = squeezenet((17, 17, 3), 100, head_type='convolution', blocks=1).init(jax.random.key(0))['params']
  for kernel, scale in (
    (params['stem']['conv']['kernel'], np.sqrt(2 / 27)),
    (params['fire2']['expand3x3']['kernel'], np.sqrt(2 / 144)),
    (params['head']['kernel'], 0.01),
  ):
    assert abs(kernel.std() / scale - 1) < 5 / np.sqrt(2 * kernel.size)
  assert all((leaf == 0).all() for path, leaf in paths.flatten(params).items() if path.endswith('bias'))


@pytest.mark.parametrize(
  ('options', 'smallest'), [({}, 31), ({'ceil_mode': True}, 17), ({'blocks': 1}, 7), ({'padding': 1}, 29)]
)
def test_too_small_images_are_refused_with_the_smallest_that_fit(options, smallest):
  with pytest.raises(UserError, match=f'the smallest that fit are {smallest}×{smallest}'):
    build('squeezenet', options, (smallest - 1, 64, 3), 2)
  net = build('squeezenet', options, (smallest, smallest, 3), 2)
  outputs = jax.eval_shape(lambda v, x: net.apply(v, x)[0], net.shapes(), jnp.ones((1, smallest, smallest, 3)))
  assert 0 not in outputs[net.stages[-3]].shape
