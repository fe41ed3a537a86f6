"""MobileNet v1: published sizes, widths, padding at odd sides, partial depth, tasks; parity is in tests/weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transferlab import paths
from transferlab.errors import UserError
from transferlab.networks.mobilenet import mobilenet
from transferlab.networks.network import build

pytestmark = pytest.mark.usefixtures('quick_compilation')


def _variables(net, seed=0):
  random = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: jnp.asarray(random.uniform(0.1, 0.5, leaf.shape), leaf.dtype), net.shapes())


@pytest.mark.parametrize(
  ('width', 'parameters'), [(1.0, 4_253_864), (0.75, 2_601_976), (0.5, 1_342_536), (0.25, 475_544)]
)
def test_it_has_as_many_parameters_as_keras_publishes(width, parameters):
  """Keras counts the running statistics too."""
  net = mobilenet((224, 224, 3), 1000, width=width)
  assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(net.shapes())) == parameters


def test_numbers_of_channels_are_rounded_down():
  shapes = paths.flatten(mobilenet((32, 32, 3), 2, width=0.35).shapes()['params'])
  assert shapes['stem/conv/kernel'].shape == (3, 3, 3, 11)
  assert shapes['block4/depthwise/kernel'].shape == (3, 3, 1, 44)
  assert shapes['block4/pointwise/kernel'].shape == (1, 1, 44, 89)
  assert shapes['head/kernel'].shape == (358, 2)


@pytest.mark.parametrize(('side', 'sides'), [(32, (16, 8, 4, 2, 1)), (31, (16, 8, 4, 2, 1)), (75, (38, 19, 9, 4, 2))])
def test_the_stem_rounds_odd_sides_up_and_strided_blocks_round_them_down(side, sides):
  net = mobilenet((side, side, 3), 2, width=1 / 32)
  outputs = jax.eval_shape(lambda v, x: net.apply(v, x)[0], net.shapes(), jnp.ones((1, side, side, 3)))
  found = [outputs[name].shape[1] for name in ('stem', 'block2', 'block4', 'block6', 'block12')]
  assert tuple(found) == sides


def test_features_are_clipped_at_six():
  net = mobilenet((31, 31, 3), 2, width=1 / 32, blocks=2)
  variables = jax.tree.map(lambda leaf: 100 * leaf, _variables(net))
  outputs, _ = jax.jit(net.apply)(variables, jnp.full((1, 31, 31, 3), 1e4))
  assert {float(outputs[name].max()) for name in ('stem', 'block1', 'block2')} == {6.0}


def test_fewer_blocks_are_the_first_part_of_the_network_and_dense_layers_stand_before_the_head():
  net = mobilenet((8, 8, 3), {'a': 2, 'b': 3}, width=1 / 32, blocks=3, features=[5, 4])
  assert net.stages == ('stem', 'block1', 'block2', 'block3', 'pool', 'dense1', 'dense2', 'head')
  outputs, _ = jax.jit(net.apply)(_variables(net), jnp.ones((2, 8, 8, 3)))
  assert outputs['dense2'].shape == (2, 4)
  assert {task: value.shape for task, value in outputs['head'].items()} == {'a': (2, 2), 'b': (2, 3)}


def test_the_stem_pads_behind_divides_by_the_variance_plus_a_thousandth_and_moves_statistics_by_a_hundredth():
  """In float64; with a variance of zero the thousandth alone divides."""
  net = mobilenet((4, 4, 1), 2, width=1 / 32, blocks=1)
  variables, x = _variables(net), np.random.default_rng(1).normal(size=(3, 4, 4, 1)).astype(np.float32) / 50
  params, stats = variables['params']['stem'], variables['stats']['stem']['norm']
  stats['var'] = jnp.zeros_like(stats['var'])
  padded, kernel = np.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)]).astype(np.float64), np.asarray(params['conv']['kernel'])
  places = [(i, j) for i in (0, 2) for j in (0, 2)]
  products = [(padded[:, i : i + 3, j : j + 3] * kernel[..., 0]).sum((1, 2, 3)) for i, j in places]
  convolved = np.stack(products, axis=1).reshape(3, 2, 2, 1)
  normalised = params['norm']['scale'] * (convolved - stats['mean']) / np.sqrt(1e-3) + params['norm']['bias']
  np.testing.assert_allclose(net.apply(variables, x)[0]['stem'], np.clip(normalised, 0, 6), atol=1e-4)
  _, moved = net.apply(variables, x, statistics={'stem'})
  expected = 0.99 * stats['mean'] + 0.01 * convolved.mean()
  np.testing.assert_allclose(moved['stem']['norm']['mean'], expected, rtol=1e-6)


def test_depthwise_kernels_begin_as_he_normal_by_their_own_fan_in():
  kernel = mobilenet((4, 4, 3), 2, width=8.0, blocks=1).init(jax.random.key(0))['params']['block1']['depthwise'][
    'kernel'
  ]
  assert kernel.shape == (3, 3, 1, 256)
  assert abs(kernel.std() / np.sqrt(2 / 9) - 1) < 5 / np.sqrt(2 * kernel.size)


def test_too_small_images_are_refused_with_the_smallest_that_fit():
  with pytest.raises(UserError, match='30×30 pixels; the smallest that fit are 31×31'):
    build('mobilenet', {}, (30, 30, 3), 2)
  with pytest.raises(UserError, match='images'):
    build('mobilenet', {}, (30,), 2)


@pytest.mark.parametrize('options', [{'width': 0.01}, {'blocks': 14}, {'dropout': 1.0}])
def test_impossible_options_are_refused(options):
  with pytest.raises(UserError, match=f'mobilenet.*{next(iter(options))}'):
    build('mobilenet', options, (32, 32, 3), 2)
