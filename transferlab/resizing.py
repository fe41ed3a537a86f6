"""Weights that belong to a resolution or a number of channels, carried to another. Pure."""

from typing import Any

import numpy as np


def positions(grid: Any, rows: int, columns: int) -> Any:
  """Positions [R, C, width] at rows × columns places: bicubic (Keys 1981, a = −1/2), wider where the grid shrinks.

  As timm's `resample_abs_pos_embed` has it; weights at the border add up to one.
  """
  import jax

  return jax.image.resize(grid, (rows, columns, grid.shape[2]), 'cubic', antialias=True)


def patches(kernel: Any, size: int) -> Any:
  """A kernel [p, p, channels, width] for patches of `size` pixels (Beyer et al. 2023, FlexiViT, eqs. 1 to 3).

  The weights ŵ that answer a patch made larger by B as w answers the patch itself: ŵ = (Bᵀ)⁺ w, B bilinear. Where
  patches shrink it is the best in the mean over patches of independent pixels.
  """
  import jax.numpy as jnp

  side = kernel.shape[0]
  inverse = np.linalg.pinv(_bilinear(side, size).T)
  flat = jnp.reshape(kernel, (side * side, -1))
  return jnp.reshape(jnp.asarray(inverse, kernel.dtype) @ flat, (size, size, *kernel.shape[2:]))


def channels(kernel: Any, count: int, way: str) -> Any:
  """A convolution's kernel [h, w, I, O] for J = `count` inputs.

  sum    K'_j = Σ_i K_i / J: on J equal channels it answers as K does on I channels equal to these
  tile   K'_j = K_(j mod I) · I / J
  zero   K'_j = K_j, and 0 from j = I on
  """
  import jax.numpy as jnp

  given = kernel.shape[2]
  if way == 'sum':
    return jnp.repeat(kernel.sum(axis=2, keepdims=True) / count, count, axis=2)
  if way == 'tile':
    return kernel[:, :, jnp.arange(count) % given] * (given / count)
  return jnp.pad(kernel, [(0, 0), (0, 0), (0, count - given), (0, 0)])


def _bilinear(side: int, size: int) -> np.ndarray:
  """B [size², side²], which resizes a flat image."""
  import jax

  resized = lambda image: jax.image.resize(image.reshape(side, side), (size, size), 'linear').reshape(-1)
  return np.asarray(jax.vmap(resized, out_axes=1)(np.eye(side * side, dtype=np.float32)), np.float64)
