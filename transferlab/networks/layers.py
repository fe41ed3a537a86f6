"""The layers that need care: everything that depends on mode, on keys or on which examples are real.

`nnx.Linear` and its like are used as they are. Here are convolution and pooling in the form that is fast on the
backend at hand, dropout with one key per example, and BatchNorm over masked batches on any number of devices.
They learn mode, key and mask from the scope that the seam (network.py) opens around each stage, so a stage is an
ordinary `stage(x)`.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Key

from transferlab.errors import UserError
from transferlab.networks import windows


@dataclasses.dataclass
class Scope:
  """What the layers of one stage may know about the call they are part of."""

  train: bool = False
  batch_statistics: bool = False
  key: Key[Array, ''] | Key[Array, ' batch'] | None = None
  mask: Bool[Array, ' batch'] | None = None
  draws: int = 0

  def next_key(self) -> Array:
    """A fresh key (or one per example) for each layer of the stage that asks."""
    if self.key is None:
      raise ValueError('a layer in training mode needs a key: pass key= to apply')
    self.draws += 1
    return fold_in(self.key, self.draws)


_scope: ContextVar[Scope] = ContextVar('scope', default=Scope())  # noqa: B039 (never changed)
_axis: ContextVar[str | None] = ContextVar('axis', default=None)
_replace: ContextVar[bool] = ContextVar('replace', default=False)
_unlooped: ContextVar[bool] = ContextVar('unlooped', default=False)


@contextlib.contextmanager
def _setting(variable: ContextVar, value: object) -> Iterator[None]:
  token = variable.set(value)
  try:
    yield
  finally:
    variable.reset(token)


def scope(value: Scope) -> contextlib.AbstractContextManager[None]:
  """Layers called inside read this scope."""
  return _setting(_scope, value)


def over_axis(name: str | None) -> contextlib.AbstractContextManager[None]:
  """Batch statistics inside are summed over this mapped axis as well (needed under pmap only)."""
  return _setting(_axis, name)


def replacing_statistics() -> contextlib.AbstractContextManager[None]:
  """Running statistics inside are replaced by those of the batch instead of averaged with them."""
  return _setting(_replace, True)


def unlooped(function: Callable) -> Callable:
  """The function, to be compiled outside of any loop or `vmap`, where a CPU's own convolution is the faster."""

  @functools.wraps(function)
  def called(*args: Any) -> Any:
    with _setting(_unlooped, True):
      return function(*args)

  return called


def fold_in(key: Array, number: int | Array) -> Array:
  """`jax.random.fold_in` for one key or for an array of keys, one per example."""
  if key.ndim:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(key, number)
  return jax.random.fold_in(key, number)


LECUN = nnx.initializers.lecun_normal()
Padding = str | int | Sequence[tuple[int, int]]


class Dropout(nnx.Module):
  """Zeroes a share `rate` of the features and scales the rest by 1 / (1 − rate) (Srivastava et al. 2014).

  With one key per example each example's mask depends on its own key only, so it is the same on any
  number of devices.
  """

  def __init__(self, rate: float):
    self.rate = rate

  @property
  def active(self) -> bool:
    """Whether it changes anything in the call that it is part of."""
    return _scope.get().train and self.rate > 0

  def __call__(self, x: Float[Array, 'batch ...']) -> Float[Array, 'batch ...']:
    if not self.active:
      return x
    current = _scope.get()
    key, keep = current.next_key(), 1.0 - self.rate
    if key.ndim:
      kept = jax.vmap(lambda k: jax.random.bernoulli(k, keep, x.shape[1:]))(key)
    else:
      kept = jax.random.bernoulli(key, keep, x.shape)
    return jnp.where(kept, x / keep, 0)


class BatchNorm(nnx.Module):
  """Batch normalisation (Ioffe and Szegedy 2015, algorithm 1) over the real examples of the global batch.

  Sums and counts leave padded examples out and are added over devices, so a batch gives the same result however
  it is spread. The running averages use the biased variance and flax's momentum:
  new = momentum · old + (1 − momentum) · batch (torch's momentum is 1 minus this one).
  """

  def __init__(self, features: int, *, momentum: float = 0.9, epsilon: float = 1e-5):
    self.momentum, self.epsilon = momentum, epsilon
    self.scale: nnx.Param | None = nnx.Param(jnp.ones(features))
    self.bias: nnx.Param | None = nnx.Param(jnp.zeros(features))
    self.mean = nnx.BatchStat(jnp.zeros(features))
    self.var = nnx.BatchStat(jnp.ones(features))

  def __call__(self, x: Float[Array, 'batch ... features']) -> Float[Array, 'batch ... features']:
    current = _scope.get()
    if current.batch_statistics:
      mean, var = batch_moments(x.astype(jnp.promote_types(x.dtype, jnp.float32)), current.mask)
      momentum = 0.0 if _replace.get() else self.momentum
      self.mean.set_value(momentum * self.mean[...] + (1 - momentum) * mean)
      self.var.set_value(momentum * self.var[...] + (1 - momentum) * var)
    else:
      mean, var = self.mean[...], self.var[...]
    factor = lax.rsqrt(var + self.epsilon)
    factor = factor if self.scale is None else self.scale[...] * factor
    normalised = (x - mean) * factor
    normalised = normalised if self.bias is None else normalised + self.bias[...]
    return normalised.astype(x.dtype)  # sums are of float32, whatever x is


def batch_moments(
  x: Float[Array, 'batch ... features'], mask: Bool[Array, ' batch'] | None
) -> tuple[Float[Array, ' features'], Float[Array, ' features']]:
  """Mean and biased variance of each feature over the real examples (and places) of the global batch."""
  axes, axis = tuple(range(x.ndim - 1)), _axis.get()
  if mask is None:
    mask = jnp.ones(x.shape[0], bool)
  real = mask.reshape(-1, *[1] * (x.ndim - 1))
  places = x[0, ..., 0].size

  def total(values: Array) -> Array:
    return lax.psum(values, axis) if axis else values

  count = total(mask.sum() * places).astype(x.dtype)
  mean = total(jnp.where(real, x, 0).sum(axes)) / count
  var = total(jnp.where(real, jnp.square(x - mean), 0).sum(axes)) / count
  return mean, var


class Conv(nnx.Module):
  """2-D convolution of NHWC images with an HWIO kernel.

  Args:
    padding: 'SAME' (XLA's rule), the number of zeros on every side (torch's rule; the two differ at stride 2), or
      pairs of zeros before and behind, for height and width.
  """

  def __init__(
    self,
    inputs: int,
    outputs: int,
    size: int = 3,
    *,
    strides: int = 1,
    padding: Padding = 'SAME',
    use_bias: bool = True,
    rngs: nnx.Rngs,
    kernel_init=LECUN,
  ):
    self.strides, self.padding = strides, padding
    self.kernel = nnx.Param(kernel_init(rngs.params(), (size, size, inputs, outputs)))
    self.bias = nnx.Param(jnp.zeros(outputs)) if use_bias else None

  def __call__(self, x: Float[Array, 'batch height width inputs']) -> Float[Array, 'batch rows columns outputs']:
    y = convolve(x, self.kernel[...], self.strides, self.padding)
    return y if self.bias is None else y + self.bias[...]


class DepthwiseConv(nnx.Module):
  """Convolution of each channel with a filter of its own, without bias; kernel [height, width, 1, channels]."""

  def __init__(
    self,
    channels: int,
    size: int = 3,
    *,
    strides: int = 1,
    padding: Padding = 'SAME',
    rngs: nnx.Rngs,
    kernel_init=LECUN,
  ):
    self.strides, self.padding = strides, padding
    self.kernel = nnx.Param(kernel_init(rngs.params(), (size, size, 1, channels)))

  def __call__(self, x: Float[Array, 'batch height width channels']) -> Float[Array, 'batch rows columns channels']:
    return convolve_depthwise(x, self.kernel[...], self.strides, self.padding)


def convolve(x: Array, kernel: Array, strides: int, padding: Padding) -> Array:
  """The one place that chooses how to convolve.

  On a CPU inside a scan XLA's convolution loses its threads (760 ms instead of 18), while patches times a matrix
  keeps them; outside of scans, and on accelerators, the library's convolution is right. Windows that do not overlap
  (patches, and every 1×1 convolution) are rows of a matrix there too.
  """
  height, width, inputs, outputs = kernel.shape
  pads = _pads(x, (height, width), strides, padding)
  if jax.default_backend() == 'cpu' and height == width == strides:
    return windows.apart(jnp.pad(x, [(0, 0), *pads, (0, 0)]), strides) @ kernel.reshape(-1, outputs)
  if jax.default_backend() != 'cpu' or _unlooped.get():
    return _library(x, kernel, strides, pads)
  patches = jnp.concatenate(windows.shifted(jnp.pad(x, [(0, 0), *pads, (0, 0)]), (height, width), strides), axis=-1)
  return patches @ kernel.reshape(height * width * inputs, outputs)


def convolve_depthwise(x: Array, kernel: Array, strides: int, padding: Padding) -> Array:
  """Each channel with a filter of its own; kernel [height, width, 1, channels].

  On a CPU as a sum of shifted products, in a scan and outside: XLA's grouped convolution takes 20 to 60 times as long.
  """
  height, width, _, channels = kernel.shape
  pads = _pads(x, (height, width), strides, padding)
  if jax.default_backend() != 'cpu':
    return _library(x, kernel, strides, pads, groups=channels)
  return windows.shifted_products(jnp.pad(x, [(0, 0), *pads, (0, 0)]), kernel, strides)


def _library(x: Array, kernel: Array, strides: int, pads: Sequence[tuple[int, int]], groups: int = 1) -> Array:
  x, kernel = (array.astype(jnp.result_type(x, kernel)) for array in (x, kernel))
  numbers = ('NHWC', 'HWIO', 'NHWC')
  return lax.conv_general_dilated(
    x, kernel, (strides, strides), pads, dimension_numbers=numbers, feature_group_count=groups
  )


def _pads(x: Array, size: tuple[int, int], strides: int, padding: Padding) -> Sequence[tuple[int, int]]:
  if isinstance(padding, str):
    return lax.padtype_to_pads(x.shape[1:3], size, (strides, strides), padding)
  return [(padding, padding)] * 2 if isinstance(padding, int) else padding


def max_pool(
  x: Float[Array, 'batch height width channels'], size: int = 2, strides: int | None = None, *, ceil_mode: bool = False
) -> Float[Array, 'batch rows columns channels']:
  """Maximum over windows; where several are largest, they share the gradient.

  As the maximum of strided slices: the backward pass of XLA's reduce_window is 6 to 30 times slower on a CPU.

  Args:
    strides: distance between windows; None: `size`, windows that do not overlap.
    ceil_mode: a border that windows do not fill has a window of its own (torch's rule) instead of being left out.
  """
  strides = strides or size
  if ceil_mode:
    pads = [(0, pooled_extent(n, size, strides, ceil_mode=True) * strides + size - strides - n) for n in x.shape[1:3]]
    x = jnp.pad(x, [(0, 0), *((0, max(pad, 0)) for _, pad in pads), (0, 0)], constant_values=-jnp.inf)
  return functools.reduce(jnp.maximum, windows.shifted(x, (size, size), strides))


def pooled_extent(extent: int, size: int, strides: int, *, ceil_mode: bool = False) -> int:
  """How many windows fit into a side of `extent` pixels; torch's rule: the last one begins inside."""
  if not ceil_mode:
    return max((extent - size) // strides + 1, 0)
  windows = -((size - extent) // strides) + 1
  return max(windows - ((windows - 1) * strides >= extent), 0)


def adaptive_average_pool(
  x: Float[Array, 'batch height width channels'], rows: int, columns: int
) -> Float[Array, 'batch rows columns channels']:
  """Means over rows × columns windows that cover the image, as torch cuts them: window i begins at ⌊i·height/rows⌋ and
  ends before ⌈(i+1)·height/rows⌉, so windows overlap, or repeat, where the division has a remainder.
  """
  if x.shape[1:3] == (rows, columns):
    return x
  vertical, horizontal = _window_means(x.shape[1], rows), _window_means(x.shape[2], columns)
  return jnp.einsum('rh,cw,bhwf->brcf', vertical, horizontal, x, precision='highest')


def _window_means(extent: int, windows: int) -> Float[Array, 'windows extent']:
  starts, ends = (np.arange(windows) * extent) // windows, -(-np.arange(1, windows + 1) * extent // windows)
  places = np.arange(extent)
  inside = (places >= starts[:, None]) & (places < ends[:, None])
  return jnp.asarray(inside / inside.sum(axis=1, keepdims=True), jnp.float32)


def check_images(name: str, input_shape: tuple[int, ...], extent: Callable[[int], int]) -> None:
  """Checks that a network can take these inputs.

  Args:
    extent: `extent(pixels)` is the side of the last map for an image of that side; 0 where nothing is left.

  Raises:
    UserError: the inputs are no images, or too small for the network; it says the smallest that fit.
  """
  if len(input_shape) != 3:
    raise UserError(f'network {name!r} takes images [height, width, channels], not inputs {list(input_shape)}')
  height, width, _ = input_shape
  smallest = next(pixels for pixels in itertools.count(1) if extent(pixels) > 0)
  if min(height, width) < smallest:
    raise UserError(
      f'network {name!r}: nothing is left of images of {height}×{width} pixels; the smallest that fit are '
      f'{smallest}×{smallest}'
    )


class Heads(nnx.Module):
  """One layer per task on the same features; gives `{task: output}`."""

  def __init__(self, features: int, outputs: dict[str, int], rngs: nnx.Rngs, layer: Callable[..., nnx.Module]):
    self.tasks = tuple(outputs)
    for task, size in outputs.items():
      setattr(self, task, layer(features, size, rngs=rngs))

  def __call__(self, x: Float[Array, 'batch ... features']) -> dict[str, Float[Array, 'batch outputs']]:
    return {task: getattr(self, task)(x) for task in self.tasks}


def head(
  features: int, outputs: int | dict[str, int], rngs: nnx.Rngs, layer: Callable[..., nnx.Module] = nnx.Linear
) -> nnx.Module:
  """The last stage of every network: one layer, linear unless said otherwise, or one per task."""
  if isinstance(outputs, int):
    return layer(features, outputs, rngs=rngs)
  return Heads(features, outputs, rngs, layer)


def owned(module: object) -> object:
  """The module with every `nnx.Dropout` and `nnx.BatchNorm` in it replaced by ours of the same settings and variables.

  Raises:
    UserError: a setting that ours do not have.
  """
  if isinstance(module, nnx.Dropout):
    if module.broadcast_dims:
      raise UserError(f'nnx.Dropout with broadcast_dims={module.broadcast_dims} is not supported; write a layer')
    return Dropout(module.rate)
  if isinstance(module, nnx.BatchNorm):
    if module.axis != -1:
      raise UserError(f'nnx.BatchNorm with axis={module.axis} is not supported; features stand on the last axis')
    ours = BatchNorm(module.num_features, momentum=module.momentum, epsilon=module.epsilon)
    ours.scale, ours.bias, ours.mean, ours.var = module.scale, module.bias, module.mean, module.var
    return ours
  if isinstance(module, nnx.List):
    for index, item in enumerate(module):
      module[index] = owned(item)
  elif isinstance(module, nnx.Module):
    for name, item in list(vars(module).items()):
      if isinstance(item, nnx.Module):
        setattr(module, name, owned(item))
  return module
