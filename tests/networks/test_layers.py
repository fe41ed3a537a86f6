"""Layers against their formulas in float64 NumPy, against lax and against PyTorch; masks, devices, keys per example."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from transferlab.networks import layers
from transferlab.networks.network import network

pytestmark = pytest.mark.usefixtures('quick_compilation')
RANDOM = np.random.default_rng(0)


def _array(*shape):
  return jnp.asarray(RANDOM.normal(size=shape), jnp.float32)


# ------------------------------------------------------------------------------------------- convolution and pooling
@pytest.mark.parametrize('size', [1, 3, 5])
@pytest.mark.parametrize('strides', [1, 2])
@pytest.mark.parametrize('padding', ['SAME', 1])
def test_convolution_and_its_gradients_equal_those_of_lax(size, strides, padding):
  x, kernel = _array(2, 7, 6, 3), _array(size, size, 3, 4)
  pads = padding if padding == 'SAME' else [(padding, padding)] * 2

  def ours(x, kernel):
    return layers.convolve(x, kernel, strides, padding)

  def theirs(x, kernel):
    numbers = ('NHWC', 'HWIO', 'NHWC')
    return lax.conv_general_dilated(x, kernel, (strides, strides), pads, dimension_numbers=numbers)

  @jax.jit
  def compare(x, kernel):
    found, back = jax.vjp(ours, x, kernel)
    expected, expected_back = jax.vjp(theirs, x, kernel)
    cotangent = jnp.cos(jnp.arange(expected.size, dtype=jnp.float32)).reshape(expected.shape)
    return (found, *back(cotangent)), (expected, *expected_back(cotangent))

  for found, expected in zip(*compare(x, kernel)):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_same_and_explicit_padding_differ_at_stride_two():
  """XLA's SAME puts the odd zero behind, torch's padding=1 puts zeros on both sides: the trap of foreign weights."""
  x, kernel = jnp.arange(16.0).reshape(1, 4, 4, 1), jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
  np.testing.assert_array_equal(layers.convolve(x, kernel, 2, 'SAME')[0, :, :, 0], [[5, 7], [13, 15]])
  np.testing.assert_array_equal(layers.convolve(x, kernel, 2, 1)[0, :, :, 0], [[0, 2], [8, 10]])


@pytest.mark.parametrize('shape', [(4, 6), (5, 7)])
@pytest.mark.parametrize('size', [2, 3])
def test_max_pooling_takes_the_largest_of_each_window_and_leaves_an_odd_border_out(shape, size):
  x = _array(2, *shape, 3)
  rows, columns = shape[0] // size, shape[1] // size
  expected = np.empty((2, rows, columns, 3), np.float32)
  for i in range(rows):
    for j in range(columns):
      expected[:, i, j] = np.asarray(x)[:, i * size : (i + 1) * size, j * size : (j + 1) * size].max(axis=(1, 2))
  np.testing.assert_array_equal(layers.max_pool(x, size), expected)
  gradient = jax.grad(lambda x: layers.max_pool(x, size).sum())(x)
  np.testing.assert_array_equal(np.asarray(gradient) == 1, np.isin(np.asarray(x), expected))


def test_max_pooling_equals_that_of_torch():
  torch = pytest.importorskip('torch')
  x = _array(2, 7, 5, 3)
  theirs = torch.nn.functional.max_pool2d(torch.tensor(np.asarray(x).transpose(0, 3, 1, 2)), 2)
  np.testing.assert_array_equal(layers.max_pool(x), theirs.numpy().transpose(0, 2, 3, 1))


# ------------------------------------------------------------------------------------------------------- BatchNorm
def _norm(**options):
  return network(lambda rngs: {'norm': layers.BatchNorm(3, **options)})


VARIABLES = {
  'params': {'norm': {'scale': _array(3), 'bias': _array(3)}},
  'stats': {'norm': {'mean': _array(3), 'var': jnp.abs(_array(3)) + 0.5}},
}


def test_batch_norm_follows_algorithm_1_of_ioffe_and_szegedy():
  x, (params, stats) = _array(4, 5, 2, 3), (VARIABLES['params']['norm'], VARIABLES['stats']['norm'])
  outputs, moved = _norm(momentum=0.8, epsilon=1e-3).apply(VARIABLES, x, train=True)
  values = np.asarray(x, np.float64)
  mean, var = values.mean((0, 1, 2)), values.var((0, 1, 2))
  expected = params['scale'] * (values - mean) / np.sqrt(var + 1e-3) + params['bias']
  np.testing.assert_allclose(outputs['norm'], expected, atol=2e-5)
  np.testing.assert_allclose(moved['norm']['mean'], 0.8 * stats['mean'] + 0.2 * mean, rtol=1e-5)
  np.testing.assert_allclose(moved['norm']['var'], 0.8 * stats['var'] + 0.2 * var, rtol=1e-5)
  quiet, still = _norm(epsilon=1e-3).apply(VARIABLES, x)
  expected = params['scale'] * (values - stats['mean']) / np.sqrt(np.asarray(stats['var']) + 1e-3) + params['bias']
  np.testing.assert_allclose(quiet['norm'], expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(still['norm']['var'], stats['var'])


def test_batch_norm_and_its_gradient_equal_those_of_torch():
  """torch's momentum is 1 minus ours, and its running variance is the unbiased one."""
  torch = pytest.importorskip('torch')
  x, weight = _array(4, 5, 2, 3), _array(4, 5, 2, 3)
  theirs = torch.nn.BatchNorm2d(3, eps=1e-5, momentum=0.1)
  with torch.no_grad():
    theirs.weight.copy_(torch.tensor(np.asarray(VARIABLES['params']['norm']['scale'])))
    theirs.bias.copy_(torch.tensor(np.asarray(VARIABLES['params']['norm']['bias'])))
    theirs.running_mean.copy_(torch.tensor(np.asarray(VARIABLES['stats']['norm']['mean'])))
    theirs.running_var.copy_(torch.tensor(np.asarray(VARIABLES['stats']['norm']['var'])))
  inputs = torch.tensor(np.asarray(x).transpose(0, 3, 1, 2).copy(), requires_grad=True)
  output = theirs(inputs)
  (output * torch.tensor(np.asarray(weight).transpose(0, 3, 1, 2).copy())).sum().backward()

  @jax.jit
  def ours(x):
    def loss(x):
      outputs, stats = _norm().apply(VARIABLES, x, train=True)
      return (outputs['norm'] * weight).sum(), (outputs['norm'], stats['norm'])

    return jax.value_and_grad(loss, has_aux=True)(x)

  (_, (found, stats)), gradient = ours(x)
  np.testing.assert_allclose(found, output.detach().numpy().transpose(0, 2, 3, 1), atol=1e-5)
  np.testing.assert_allclose(gradient, inputs.grad.numpy().transpose(0, 2, 3, 1), atol=1e-5)
  np.testing.assert_allclose(stats['mean'], theirs.running_mean.numpy(), atol=1e-6)
  old, count = 0.9 * np.asarray(VARIABLES['stats']['norm']['var']), 40
  unbiased = old + (np.asarray(stats['var']) - old) * count / (count - 1)
  np.testing.assert_allclose(unbiased, theirs.running_var.numpy(), atol=1e-6)


def _whole_and_gradient(x, mask=None, weight=1.0):
  def loss(x):
    inputs = x if mask is None else {'x': x, 'example_mask': mask}
    outputs, stats = _norm().apply(VARIABLES, inputs, train=True)
    return (jnp.sin(outputs['norm']) * weight).sum(), (outputs['norm'], stats['norm'])

  return jax.value_and_grad(loss, has_aux=True)(x)


def test_batch_norm_of_a_padded_batch_equals_that_of_the_unpadded_one():
  """Output, running statistics and gradient of the real examples; whatever stands in the padding."""
  x = _array(5, 2, 3)
  (_, (expected, stats)), gradient = _whole_and_gradient(x)
  for filling in (0.0, 1e6):
    padded = jnp.concatenate([x, jnp.full((3, 2, 3), filling)])
    mask = jnp.arange(8) < 5
    (_, (found, moved)), back = _whole_and_gradient(padded, mask, mask[:, None, None])
    np.testing.assert_allclose(found[:5], expected, atol=1e-6)
    np.testing.assert_allclose(back[:5], gradient, atol=1e-6)
    np.testing.assert_array_equal(back[5:], 0)
    for name in ('mean', 'var'):
      np.testing.assert_allclose(moved[name], stats[name], atol=1e-6)


@pytest.mark.parametrize('real', [8, 5, 4])
def test_batch_norm_over_mapped_devices_is_over_the_global_batch_even_where_a_device_has_only_padding(real):
  """flax's axis_name averages local means: wrong where shards hold different numbers of real examples, NaN at none."""
  x, mask = _array(8, 2, 3), jnp.arange(8) < real
  expected, stats = _norm().apply(VARIABLES, {'x': x, 'example_mask': mask}, train=True)

  def shard(x, mask):
    with layers.over_axis('devices'):
      return _norm().apply(VARIABLES, {'x': x, 'example_mask': mask}, train=True)

  parts = jax.vmap(shard, axis_name='devices')(x.reshape(2, 4, 2, 3), mask.reshape(2, 4))
  np.testing.assert_allclose(parts[0]['norm'].reshape(8, 2, 3)[:real], expected['norm'][:real], atol=1e-6)
  for name in ('mean', 'var'):
    np.testing.assert_allclose(parts[1]['norm'][name], np.stack([stats['norm'][name]] * 2), atol=1e-6)


def test_statistics_are_replaced_rather_than_averaged_where_asked_for():
  x = _array(6, 2, 3)
  with layers.replacing_statistics():
    _, stats = _norm().apply(VARIABLES, x, statistics={'norm'})
  np.testing.assert_allclose(stats['norm']['mean'], np.asarray(x, np.float64).mean((0, 1)), atol=1e-6)
  np.testing.assert_allclose(stats['norm']['var'], np.asarray(x, np.float64).var((0, 1)), atol=1e-6)


# --------------------------------------------------------------------------------------------------------- dropout
def _drop(rate, x, key):
  with layers.scope(layers.Scope(train=True, key=key)):
    return np.asarray(layers.Dropout(rate)(x))


def test_the_dropout_of_an_example_does_not_depend_on_the_batch_around_it():
  x, keys = jnp.ones((6, 40)), jax.random.split(jax.random.key(0), 6)
  whole = _drop(0.5, x, keys)
  np.testing.assert_array_equal(_drop(0.5, x[2:4], keys[2:4]), whole[2:4])
  np.testing.assert_array_equal(_drop(0.5, x, keys[::-1]), whole[::-1])
  assert len({row.tobytes() for row in whole}) == 6


@pytest.mark.parametrize('per_example', [False, True])
def test_dropout_zeroes_its_share_and_keeps_the_mean(per_example):
  """Over 80,000 numbers both shares stand within five standard deviations of their expectation."""
  key = jax.random.key(1)
  dropped = _drop(0.3, jnp.full((8, 10_000), 2.0), jax.random.split(key, 8) if per_example else key)
  np.testing.assert_allclose(np.unique(dropped), [0, 2 / 0.7], rtol=1e-6)
  assert abs((dropped == 0).mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 80_000)
  assert abs(dropped.mean() - 2) < 5 * 2 * np.sqrt(0.3 / 0.7 / 80_000)


def test_two_dropouts_in_a_stage_draw_different_masks():
  x, key = jnp.ones((2, 50)), jax.random.key(0)
  with layers.scope(layers.Scope(train=True, key=key)):
    first, second = layers.Dropout(0.5)(x), layers.Dropout(0.5)(x)
  assert not np.array_equal(first, second)


def test_dropout_passes_its_input_through_in_evaluation_and_at_rate_zero():
  x = _array(3, 4)
  with layers.scope(layers.Scope(train=False)):
    np.testing.assert_array_equal(layers.Dropout(0.5)(x), x)
  with layers.scope(layers.Scope(train=True)):
    np.testing.assert_array_equal(layers.Dropout(0.0)(x), x)


def test_a_scope_ends_with_its_block_even_after_an_error():
  x = jnp.ones((2, 50))
  with contextlib.suppress(RuntimeError), layers.scope(layers.Scope(train=True, key=jax.random.key(0))):
    raise RuntimeError
  np.testing.assert_array_equal(layers.Dropout(0.5)(x), x)


def test_a_convolution_layer_adds_its_bias_and_can_do_without():
  layer = layers.Conv(2, 3, 1, rngs=nnx.Rngs(0))
  layer.bias[...] = jnp.arange(3.0)
  x = _array(1, 2, 2, 2)
  expected = np.einsum('bhwi,io->bhwo', np.asarray(x, np.float64), layer.kernel[...][0, 0]) + np.arange(3.0)
  np.testing.assert_allclose(layer(x), expected, atol=1e-6)
  assert layers.Conv(2, 3, use_bias=False, rngs=nnx.Rngs(0)).bias is None
