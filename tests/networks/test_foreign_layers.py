"""Layers that foreign weights need, against PyTorch: strides, padding, borders, gradients, and every mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from transferlab.errors import UserError
from transferlab.networks import layers

pytestmark = pytest.mark.usefixtures('quick_compilation')
RANDOM = np.random.default_rng(0)


def _array(*shape):
  return RANDOM.normal(size=shape).astype(np.float32)


def _to_torch(x):
  torch = pytest.importorskip('torch')
  return torch.tensor(np.moveaxis(np.asarray(x), -1, 1).copy(), requires_grad=True)


def _from_torch(x):
  return np.moveaxis(x.detach().numpy(), 1, -1)


def _compare(ours, theirs, x, *, atol=2e-5):
  """Compares values and the gradient by x of a weighted sum of them; gives the weights."""
  inputs = _to_torch(x)
  expected = theirs(inputs)
  weight = np.cos(np.arange(expected.numel(), dtype=np.float32)).reshape(_from_torch(expected).shape)
  (expected * _to_torch(weight).detach()).sum().backward()

  @jax.jit
  def both(x):
    found, back = jax.vjp(ours, x)
    return found, back(weight)[0]

  found, gradient = both(x)
  np.testing.assert_allclose(found, _from_torch(expected), atol=atol)
  np.testing.assert_allclose(gradient, _from_torch(inputs.grad), atol=atol)
  return weight


# ------------------------------------------------------------------------------------------------------ convolution
@pytest.mark.parametrize('unlooped', [False, True])
@pytest.mark.parametrize(('strides', 'padding'), [(1, 1), (2, 0), (2, ((0, 1), (0, 1))), (2, ((1, 0), (2, 1)))])
def test_convolution_with_explicit_pairs_of_zeros_equals_that_of_torch(strides, padding, unlooped):
  functional = pytest.importorskip('torch').nn.functional
  x, kernel = _array(2, 7, 6, 3), _array(3, 3, 3, 4)
  (top, bottom), (left, right) = padding if isinstance(padding, tuple) else [(padding, padding)] * 2
  theirs_kernel = _to_torch(kernel.transpose(3, 0, 1, 2)).detach()

  def ours(x):
    return layers.convolve(x, kernel, strides, padding)

  def theirs(x):
    return functional.conv2d(functional.pad(x, (left, right, top, bottom)), theirs_kernel, stride=strides)

  _compare(layers.unlooped(ours) if unlooped else ours, theirs, x)


@pytest.mark.parametrize(('strides', 'padding'), [(1, 1), (1, 'SAME'), (2, 1), (2, ((0, 1), (0, 1)))])
def test_a_depthwise_convolution_and_its_gradients_equal_those_of_torch(strides, padding):
  torch = pytest.importorskip('torch')
  x, kernel = _array(3, 7, 6, 5), _array(3, 3, 1, 5)
  (top, bottom), (left, right) = padding if isinstance(padding, tuple) else [(1, 1)] * 2
  weight = torch.tensor(kernel.transpose(3, 2, 0, 1).copy(), requires_grad=True)

  def theirs(x):
    padded = torch.nn.functional.pad(x, (left, right, top, bottom))
    return torch.nn.functional.conv2d(padded, weight, stride=strides, groups=5)

  weight_of = _compare(lambda x: layers.convolve_depthwise(x, kernel, strides, padding), theirs, x)

  def weighted(kernel):
    return (layers.convolve_depthwise(x, kernel, strides, padding) * weight_of).sum()

  gradient = jax.jit(jax.grad(weighted))(kernel)
  np.testing.assert_allclose(gradient, weight.grad.numpy().transpose(2, 3, 1, 0), atol=2e-5)


def test_the_sum_of_shifted_products_equals_the_convolution_of_accelerators(monkeypatch):
  x, kernel = _array(2, 6, 5, 4), _array(3, 3, 1, 4)
  found = layers.convolve_depthwise(x, kernel, 2, 1)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  np.testing.assert_allclose(found, layers.convolve_depthwise(x, kernel, 2, 1), atol=2e-6)


def test_gradients_of_a_large_depthwise_kernel_equal_those_of_the_convolution_of_accelerators(monkeypatch):
  x, kernel = _array(2, 6, 9, 3), _array(7, 5, 1, 3)
  weighted = lambda x, kernel: jnp.sin(layers.convolve_depthwise(x, kernel, 1, ((3, 3), (2, 2)))).sum()
  found = jax.grad(weighted, (0, 1))(x, kernel)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  for ours, expected in zip(found, jax.grad(weighted, (0, 1))(x, kernel)):
    np.testing.assert_allclose(ours, expected, atol=2e-5)


@pytest.mark.parametrize('size', [3, 4])
def test_depthwise_convolution_agrees_with_itself_under_vmap_scan_and_both(size):
  """A population: each member has its own kernel and its own images."""
  x, kernels = _array(3, 2, 5, 5, 4), _array(3, size, size, 1, 4)

  def gradients(x, kernel):
    return jax.grad(lambda x, kernel: jnp.sin(layers.convolve_depthwise(x, kernel, 1, 1)).sum(), (0, 1))(x, kernel)

  expected = [gradients(x[member], kernels[member]) for member in range(3)]
  mapped = jax.jit(jax.vmap(gradients))(x, kernels)
  _, scanned = jax.jit(lambda: lax.scan(lambda _, pair: (0, gradients(*pair)), 0, (x, kernels)))()
  for found in (mapped, scanned):
    for part in range(2):
      np.testing.assert_allclose(found[part], np.stack([one[part] for one in expected]), atol=1e-5)


@pytest.mark.parametrize('size', [3, 7])
def test_a_frozen_depthwise_kernel_costs_no_backward_pass_of_its_own(size):
  x, kernel = _array(4, 8, 8, 16), _array(size, size, 1, 16)

  def loss(x, kernel):
    return jnp.sin(layers.convolve_depthwise(x, kernel, 1, 1)).sum()

  def loops(arguments):
    return jax.jit(jax.grad(loss, arguments)).lower(x, kernel).compile().as_text().count(' while(')

  assert loops(0) == 0 < loops((0, 1))


# ---------------------------------------------------------------------------------------------------------- pooling
@pytest.mark.parametrize('ceil_mode', [False, True])
@pytest.mark.parametrize(
  ('size', 'strides', 'shape'), [(3, 2, (7, 8)), (3, 2, (6, 3)), (2, 2, (5, 6)), (3, 1, (4, 5)), (2, 3, (7, 9))]
)
def test_max_pooling_and_its_gradient_equal_those_of_torch(size, strides, shape, ceil_mode):
  functional = pytest.importorskip('torch').nn.functional
  x = _array(2, *shape, 3)
  _compare(
    lambda x: layers.max_pool(x, size, strides, ceil_mode=ceil_mode),
    lambda x: functional.max_pool2d(x, size, strides, ceil_mode=ceil_mode),
    x,
  )
  found = layers.max_pool(x, size, strides, ceil_mode=ceil_mode)
  assert found.shape[1:3] == tuple(layers.pooled_extent(n, size, strides, ceil_mode=ceil_mode) for n in shape)


def test_windows_that_share_a_maximum_share_its_gradient_and_equal_maxima_divide_it():
  peak = jnp.zeros((1, 5, 5, 1)).at[0, 2, 2, 0].set(1.0)
  gradient = jax.jit(jax.grad(lambda x: layers.max_pool(x, 3, 2).sum()))(peak)
  np.testing.assert_array_equal(gradient, 4 * peak)
  flat = jax.jit(jax.grad(lambda x: layers.max_pool(x, 2).sum()))(jnp.ones((1, 2, 2, 1)))
  np.testing.assert_allclose(flat.sum(), 1)


@pytest.mark.parametrize('shape', [(1, 2), (6, 8), (7, 7), (13, 14), (20, 3)])
@pytest.mark.parametrize(('rows', 'columns'), [(7, 7), (1, 3)])
def test_adaptive_average_pooling_and_its_gradient_equal_those_of_torch(shape, rows, columns):
  functional = pytest.importorskip('torch').nn.functional
  _compare(
    lambda x: layers.adaptive_average_pool(x, rows, columns),
    lambda x: functional.adaptive_avg_pool2d(x, (rows, columns)),
    _array(2, *shape, 3),
    atol=2e-6,
  )


# ------------------------------------------------------------------------------------------------- sizes of images
def test_too_small_an_image_is_answered_with_the_smallest_that_fits():
  layers.check_images('net', (9, 12, 3), lambda pixels: pixels - 8)
  with pytest.raises(UserError, match=r"network 'net': nothing is left of images of 12×8 pixels; .* 9×9"):
    layers.check_images('net', (12, 8, 3), lambda pixels: pixels - 8)
  with pytest.raises(UserError, match=r"network 'net' takes images \[height, width, channels\], not inputs \[12\]"):
    layers.check_images('net', (12,), lambda pixels: pixels)
