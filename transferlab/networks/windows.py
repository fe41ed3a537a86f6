"""Windows of images: shifted, side by side, and their products with a kernel, summed: convolutions, fast on a CPU."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

# Kernels of more places than this are large.
SMALL = 9


def shifted(x: Array, size: Sequence[int], strides: int) -> list[Array]:
  """[batch, height, width, channels] as one view [batch, rows, columns, channels] for each place of the window."""
  rows, columns = ((extent - part) // strides + 1 for extent, part in zip(x.shape[1:3], size))
  return [
    x[:, i : i + (rows - 1) * strides + 1 : strides, j : j + (columns - 1) * strides + 1 : strides]
    for i in range(size[0])
    for j in range(size[1])
  ]


def apart(x: Array, size: int) -> Array:
  """[batch, height, width, channels] as its windows, side by side: [batch, rows, columns, size · size · channels]."""
  if size == 1:
    return x
  batch, height, width, channels = x.shape
  rows, columns = height // size, width // size
  x = x[:, : rows * size, : columns * size].reshape(batch, rows, size, columns, size, channels)
  return x.swapaxes(2, 3).reshape(batch, rows, columns, size * size * channels)


def _sum_of_products(x: Array, kernel: Array, strides: int) -> Array:
  factors = kernel.reshape(-1, kernel.shape[-1])
  return functools.reduce(jnp.add, map(jnp.multiply, shifted(x, kernel.shape[:2], strides), factors))


def _products_back(strides: int, saved: tuple[Array, Array], back: Array) -> tuple[Array, Array]:
  x, kernel = saved
  if strides == 1 and kernel[..., 0, 0].size > SMALL:
    return _large_products_back(x, kernel, back)

  def add(total: Array, example: tuple[Array, Array]) -> tuple[Array, None]:
    windows = shifted(example[0][None], kernel.shape[:2], strides)
    return total + jnp.stack([(window[0] * example[1]).sum(axis=(0, 1)) for window in windows]), None

  # One example after the other: XLA writes every shifted image to memory, a kernel's size times the whole batch, and
  # that takes two to eight times as long. The compiler drops it where the kernel is frozen.
  empty = jnp.zeros((kernel[..., 0, 0].size, kernel.shape[-1]), jnp.result_type(x, back))
  total, _ = lax.scan(add, empty, (x, back))
  by_image = jax.vjp(lambda x: _sum_of_products(x, kernel, strides), x)[1](back)[0]
  return by_image, total.reshape(kernel.shape).astype(kernel.dtype)


def _large_products_back(x: Array, kernel: Array, back: Array) -> tuple[Array, Array]:
  """One place after the other: what small kernels get takes XLA six seconds to compile at 7×7, and longer to run."""
  height, width = kernel.shape[:2]

  def at(place: Array) -> Array:
    window = lax.dynamic_slice(x, (0, place // width, place % width, 0), back.shape)
    return (window * back).sum(axis=(0, 1, 2))

  by_kernel = lax.map(at, jnp.arange(height * width)).reshape(kernel.shape).astype(kernel.dtype)
  around = jnp.pad(back, [(0, 0), (height - 1, height - 1), (width - 1, width - 1), (0, 0)])
  return _sum_of_products(around, kernel[::-1, ::-1], 1), by_kernel


shifted_products = jax.custom_vjp(_sum_of_products, nondiff_argnums=(2,))
shifted_products.defvjp(lambda x, kernel, strides: (_sum_of_products(x, kernel, strides), (x, kernel)), _products_back)
