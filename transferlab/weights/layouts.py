"""How a foreign array becomes one of ours, and back: einops patterns with a name for the usual ones. Pure.

A layout is 'theirs -> ours' in einops' notation, with sizes and reversed axes behind a comma:

    'o i h w -> h w i o'                      torch's convolution kernel to ours
    'o (c h w) -> (h w c) o, h=7, w=7'        a dense layer behind torch's flattening
    'h w i o -> h w i o, reverse=i'           a first convolution on BGR images, to be used on RGB

An axis that is reversed is reversed in the foreign array.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from transferlab.errors import UserError, nearest

LAYOUTS = {
  'same': '... -> ...',
  'linear': 'o i -> i o',
  'conv': 'o i h w -> h w i o',
}


@functools.lru_cache(maxsize=256)
def _parsed(layout: str) -> tuple[str, str, dict[str, int], tuple[str, ...]]:
  """(theirs, ours, sizes, reversed axes). Raises `UserError` where a layout is neither a name nor a pattern."""
  pattern, *options = [part.strip() for part in LAYOUTS.get(layout, layout).split(',')]
  theirs, arrow, ours = pattern.partition('->')
  pairs = [option.partition('=') for option in options]
  if not arrow or not all(re.fullmatch(r'reverse=[^\W\d]\w*|[^\W\d]\w*=[0-9]{1,9}', option) for option in options):
    raise UserError(f'unknown layout {layout!r}; nearest: {nearest(layout, LAYOUTS)[0]}, or a pattern o i -> i o')
  axes = [axis for axis in theirs.split() if axis.isidentifier()] if '(' not in theirs else []
  for name, _, value in pairs:
    if name == 'reverse' and value not in axes:
      raise UserError(f'layout {layout!r}: reverse={value} names no axis of {theirs.strip()!r}: {", ".join(axes)}')
  sizes = {name: int(value) for name, _, value in pairs if name != 'reverse'}
  return theirs.strip(), ours.strip(), sizes, tuple(value for name, _, value in pairs if name == 'reverse')


def _flipped(array: Any, side: str, names: Sequence[str]) -> Any:
  axes = side.split()
  return array[tuple(slice(None, None, -1) if axis in names else slice(None) for axis in axes)] if names else array


def ours(array: Any, layout: str) -> Any:
  """The foreign array as ours. Raises `UserError` where its shape does not fit the layout."""
  return _turned(array, layout, forth=True)


def theirs(array: Any, layout: str) -> Any:
  """The inverse of `ours`."""
  return _turned(array, layout, forth=False)


def _turned(array: Any, layout: str, *, forth: bool) -> Any:
  import einops

  left, right, sizes, flipped = _parsed(layout)
  pattern = f'{left} -> {right}' if forth else f'{right} -> {left}'
  if left == right == '...':
    return array
  try:
    if forth:
      return einops.rearrange(_flipped(array, left, flipped), pattern, **sizes)
    return _flipped(einops.rearrange(array, pattern, **sizes), left, flipped)
  except (einops.EinopsError, ValueError, IndexError) as error:
    reason = str(error).strip().splitlines()[-1].strip()
    raise UserError(f'layout {layout!r} does not fit an array of shape {tuple(array.shape)}: {reason}') from None


@functools.lru_cache(maxsize=4096)
def shape(given: tuple[int, ...], layout: str) -> tuple[int, ...]:
  """The shape that `ours` gives, without an array. Raises `UserError` as it does."""
  if _parsed(layout)[:2] == ('...', '...'):
    return given
  # One number seen through a window of that shape: copying it costs as little as the shape has small axes.
  import jax

  return tuple(jax.eval_shape(lambda array: ours(array, layout), jax.ShapeDtypeStruct(given, np.float32)).shape)
