"""How a foreign array becomes one of ours, and back: einops patterns with a name for the usual ones. Pure.

A layout is 'theirs -> ours' in einops' notation, with sizes and reversed axes behind a comma:

    'o i h w -> h w i o'                      torch's convolution kernel to ours
    'o (c h w) -> (h w c) o, h=7, w=7'        a dense layer behind torch's flattening
    'h w i o -> h w i o, reverse=i'           a first convolution on BGR images, to be used on RGB
    'o i -> i o, part=o:1/3'                  the second of three equal parts along an axis: queries, keys and values

An axis that is reversed is reversed in the foreign array; a part is taken of the foreign array.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transferlab.errors import UserError, nearest

LAYOUTS = {
  'same': '... -> ...',
  'linear': 'o i -> i o',
  'conv': 'o i h w -> h w i o',
}


@dataclasses.dataclass(frozen=True)
class Part:
  """One of `count` equal parts of a foreign array along an axis."""

  axis: int
  number: int
  count: int


@dataclasses.dataclass(frozen=True)
class _Layout:
  theirs: str
  ours: str
  sizes: Mapping[str, int]
  reversed: tuple[str, ...]
  part: Part | None


OPTION = re.compile(r'reverse=[^\W\d]\w*|part=[^\W\d]\w*:[0-9]{1,3}/[0-9]{1,3}|[^\W\d]\w*=[0-9]{1,9}')


@functools.lru_cache(maxsize=256)
def _parsed(layout: str) -> _Layout:
  """Raises `UserError` where a layout is neither a name nor a pattern."""
  pattern, *options = [part.strip() for part in LAYOUTS.get(layout, layout).split(',')]
  theirs, arrow, ours = (side.strip() for side in pattern.partition('->'))
  pairs = [option.split('=') for option in options]
  if not arrow or not all(OPTION.fullmatch(option) for option in options):
    raise UserError(f'unknown layout {layout!r}; nearest: {nearest(layout, LAYOUTS)[0]}, or a pattern o i -> i o')
  axes = [axis for axis in theirs.split() if axis.isidentifier()] if '(' not in theirs else []
  for name, value in pairs:
    if name in ('reverse', 'part') and (axis := value.partition(':')[0]) not in axes:
      raise UserError(f'layout {layout!r}: {name}={axis} names no axis of {theirs!r}: {", ".join(axes)}')
  sizes = {name: int(value) for name, value in pairs if name not in ('reverse', 'part')}
  flipped = tuple(value for name, value in pairs if name == 'reverse')
  part = None
  for axis, number, count in (re.split('[:/]', value) for name, value in pairs if name == 'part'):
    if int(number) >= int(count):
      raise UserError(f'layout {layout!r}: of {count} parts the last one is {int(count) - 1}')
    part = Part(axes.index(axis), int(number), int(count))
  return _Layout(theirs, ours, sizes, flipped, part)


def part(layout: str) -> Part | None:
  """Which part of the foreign array a layout takes; None for all of it."""
  return _parsed(layout).part


def _taken(array: Any, part: Part | None) -> Any:
  if part is None:
    return array
  size, rest = divmod(array.shape[part.axis], part.count)
  if rest:
    raise ValueError(f'{array.shape[part.axis]} cannot be divided by {part.count}')
  return array[(slice(None),) * part.axis + (slice(part.number * size, (part.number + 1) * size),)]


def _flipped(array: Any, side: str, names: Sequence[str]) -> Any:
  axes = side.split()
  return array[tuple(slice(None, None, -1) if axis in names else slice(None) for axis in axes)] if names else array


def ours(array: Any, layout: str) -> Any:
  """The foreign array as ours. Raises `UserError` where its shape does not fit the layout."""
  return _turned(array, layout, forth=True)


def theirs(array: Any, layout: str) -> Any:
  """The inverse of `ours`: of a layout that takes a part, that part."""
  return _turned(array, layout, forth=False)


def _turned(array: Any, layout: str, *, forth: bool) -> Any:
  import einops

  how = _parsed(layout)
  if how.theirs == how.ours == '...':
    return array
  try:
    if forth:
      array = _flipped(_taken(array, how.part), how.theirs, how.reversed)
      return einops.rearrange(array, f'{how.theirs} -> {how.ours}', **how.sizes)
    return _flipped(einops.rearrange(array, f'{how.ours} -> {how.theirs}', **how.sizes), how.theirs, how.reversed)
  except (einops.EinopsError, ValueError, IndexError) as error:
    reason = str(error).strip().splitlines()[-1].strip()
    raise UserError(f'layout {layout!r} does not fit an array of shape {tuple(array.shape)}: {reason}') from None


@functools.lru_cache(maxsize=4096)
def shape(given: tuple[int, ...], layout: str) -> tuple[int, ...]:
  """The shape that `ours` gives, without an array. Raises `UserError` as it does."""
  if layout == 'same' or _parsed(layout).theirs == _parsed(layout).ours == '...':
    return given
  # One number seen through a window of that shape: copying it costs as little as the shape has small axes.
  import jax

  return tuple(jax.eval_shape(lambda array: ours(array, layout), jax.ShapeDtypeStruct(given, np.float32)).shape)
