"""The layers that need care: everything that depends on mode, on keys or on which examples are real.

`nnx.Linear` and its like are used as they are. Here are convolution and pooling in the form that is fast on the
backend at hand, dropout with one key per example, and BatchNorm over masked batches on any number of devices.
They learn mode, key and mask from the scope that the seam (network.py) opens around each stage, so a stage is an
ordinary `stage(x)`.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Key

from transferlab.errors import UserError


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


class Dropout(nnx.Module):
  """Zeroes a share `rate` of the features and scales the rest by 1 / (1 − rate) (Srivastava et al. 2014).

  With one key per example each example's mask depends on its own key only, so it is the same on any
  number of devices.
  """

  def __init__(self, rate: float):
    self.rate = rate

  def __call__(self, x: Float[Array, 'batch ...']) -> Float[Array, 'batch ...']:
    current = _scope.get()
    if not current.train or self.rate == 0:
      return x
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
      mean, var = batch_moments(x, current.mask)
      momentum = 0.0 if _replace.get() else self.momentum
      self.mean[...] = momentum * self.mean[...] + (1 - momentum) * mean
      self.var[...] = momentum * self.var[...] + (1 - momentum) * var
    else:
      mean, var = self.mean[...], self.var[...]
    factor = lax.rsqrt(var + self.epsilon)
    factor = factor if self.scale is None else self.scale[...] * factor
    normalised = (x - mean) * factor
    return normalised if self.bias is None else normalised + self.bias[...]


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
    padding: 'SAME' (XLA's rule), or the number of zeros on every side (torch's rule; the two differ at stride 2).
  """

  def __init__(
    self,
    inputs: int,
    outputs: int,
    size: int = 3,
    *,
    strides: int = 1,
    padding: str | int = 'SAME',
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


def convolve(x: Array, kernel: Array, strides: int, padding: str | int) -> Array:
  """The one place that chooses how to convolve.

  On a CPU inside a scan XLA's convolution loses its threads (760 ms instead of 18), while patches times a matrix
  keeps them; outside of scans, and on accelerators, the library's convolution is right.
  """
  height, width, inputs, outputs = kernel.shape
  if padding == 'SAME':
    pads = lax.padtype_to_pads(x.shape[1:3], (height, width), (strides, strides), 'SAME')
  else:
    pads = [(int(padding), int(padding))] * 2
  if jax.default_backend() != 'cpu' or _unlooped.get():
    x, kernel = (array.astype(jnp.result_type(x, kernel)) for array in (x, kernel))
    return lax.conv_general_dilated(x, kernel, (strides, strides), pads, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  windows = jnp.concatenate(_windows(jnp.pad(x, [(0, 0), *pads, (0, 0)]), (height, width), strides), axis=-1)
  return windows @ kernel.reshape(height * width * inputs, outputs)


def max_pool(x: Float[Array, 'batch height width channels'], size: int = 2) -> Float[Array, 'batch ...']:
  """Maximum over non-overlapping windows; an odd border is left out.

  As the maximum of strided slices: the backward pass of XLA's reduce_window is 10 times slower on a CPU.
  """
  slices = _windows(x, (size, size), size)
  return jnp.stack(slices).max(axis=0)


def _windows(x: Array, size: Sequence[int], strides: int) -> list[Array]:
  rows, columns = ((extent - part) // strides + 1 for extent, part in zip(x.shape[1:3], size))
  return [
    x[:, i : i + (rows - 1) * strides + 1 : strides, j : j + (columns - 1) * strides + 1 : strides]
    for i in range(size[0])
    for j in range(size[1])
  ]


class Heads(nnx.Module):
  """One linear layer per task on the same features; gives `{task: output}`."""

  def __init__(self, features: int, outputs: dict[str, int], rngs: nnx.Rngs):
    self.tasks = tuple(outputs)
    for task, size in outputs.items():
      setattr(self, task, nnx.Linear(features, size, rngs=rngs))

  def __call__(self, x: Float[Array, 'batch features']) -> dict[str, Float[Array, 'batch outputs']]:
    return {task: getattr(self, task)(x) for task in self.tasks}


def head(features: int, outputs: int | dict[str, int], rngs: nnx.Rngs) -> nnx.Module:
  """The last stage of every network: one linear layer, or one per task."""
  if isinstance(outputs, int):
    return nnx.Linear(features, outputs, rngs=rngs)
  return Heads(features, outputs, rngs)


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
