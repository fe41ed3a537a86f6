"""Values of a source as a leaf of another shape: what a transplant's actions do to an array. Pure."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def with_positions(table: Any, own: Any, way: str, before: int = 0) -> Any:
  """A table [m, width] of learned positions as one of n rows, as `own` has.

  linear   row i of n is what lies at i (m − 1) / (n − 1) between the rows of the source: the ends stay the ends
  first    the first rows as they are; where the source has no more, `own`

  Args:
    before: rows at the beginning that stand for no position; they stay as they are.
  """
  import jax.numpy as jnp

  if way == 'first':
    kept = min(len(table), len(own))
    return own.at[:kept].set(table[:kept])
  given, last = table[before:], len(table) - before - 1
  at = jnp.linspace(0, last, len(own) - before)
  low = jnp.clip(jnp.floor(at).astype(jnp.int32), 0, max(last - 1, 0))
  share = (at - low)[:, None]
  between = (1 - share) * given[low] + share * given[jnp.minimum(low + 1, last)]
  return jnp.concatenate([table[:before], between]).astype(own.dtype)


def with_grid(grid: Any, rows: int, columns: int) -> Any:
  """Positions [R, C, width] at rows × columns places: bicubic (Keys 1981, a = −1/2), wider where the grid shrinks.

  As timm's `resample_abs_pos_embed` has it; weights at the border add up to one.
  """
  import jax

  return jax.image.resize(grid, (rows, columns, grid.shape[2]), 'cubic', antialias=True)


def with_patches(kernel: Any, size: int) -> Any:
  """A kernel [p, p, channels, width] for patches of `size` pixels (Beyer et al. 2023, FlexiViT, eqs. 1 to 3).

  The weights ŵ that answer a patch made larger by B as w answers the patch itself: ŵ = (Bᵀ)⁺ w, B bilinear. Where
  patches shrink it is the best in the mean over patches of independent pixels.
  """
  import jax.numpy as jnp

  side = kernel.shape[0]
  inverse = np.linalg.pinv(_bilinear(side, size).T)
  flat = jnp.reshape(kernel, (side * side, -1))
  return jnp.reshape(jnp.asarray(inverse, kernel.dtype) @ flat, (size, size, *kernel.shape[2:]))


def with_channels(kernel: Any, channels: int, way: str) -> Any:
  """A convolution's kernel [h, w, I, O] for J = `channels` inputs.

  sum    K'_j = Σ_i K_i / J: on J equal channels it answers as K does on I channels equal to these
  tile   K'_j = K_(j mod I) · I / J
  zero   K'_j = K_j, and 0 from j = I on
  """
  import jax.numpy as jnp

  given = kernel.shape[2]
  if way == 'sum':
    return jnp.repeat(kernel.sum(axis=2, keepdims=True) / channels, channels, axis=2)
  if way == 'tile':
    return kernel[:, :, jnp.arange(channels) % given] * (given / channels)
  return jnp.pad(kernel, [(0, 0), (0, 0), (0, channels - given), (0, 0)])


def with_tokens(theirs: Any, own: Any, axis: int, pairs: Sequence[tuple[int, int]], way: str) -> Any:
  """The target's leaf with the rows that it takes from the source.

  Args:
    axis: of tokens; pairs: (place of the target, place of the source) on it.
    way: what other rows become: 'mean' of all of the source's, 'zero', or '', as they are.
  """
  import jax.numpy as jnp

  theirs, own = (jnp.moveaxis(jnp.asarray(leaf), axis, 0) for leaf in (theirs, own))
  start = {'': own, 'mean': jnp.broadcast_to(theirs.mean(axis=0), own.shape), 'zero': jnp.zeros_like(own)}[way]
  mine, places = (jnp.array(numbers) for numbers in zip(*pairs))
  return jnp.moveaxis(start.at[mine].set(theirs[places]), 0, axis)


def _bilinear(side: int, size: int) -> np.ndarray:
  """B [size², side²], which resizes a flat image."""
  import jax

  resized = lambda image: jax.image.resize(image.reshape(side, side), (size, size), 'linear').reshape(-1)
  return np.asarray(jax.vmap(resized, out_axes=1)(np.eye(side * side, dtype=np.float32)), np.float64)
