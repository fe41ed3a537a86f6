"""How a foreign array becomes one of ours, and back: einops patterns with a name for the usual ones. Pure.

A layout is 'theirs -> ours' in einops' notation, with sizes and reversed axes behind a comma:

    'o i h w -> h w i o'                      torch's convolution kernel to ours
    'o (c h w) -> (h w c) o, h=7, w=7'        a dense layer behind torch's flattening
    'h w i o -> h w i o, reverse=i'           a first convolution on BGR images, to be used on RGB
    'o i -> i o, part=o:1/3'                  the second of three equal parts along an axis: queries, keys and values
    '1 (r c) d -> r c d, part=1:1.., r=root'  what stands from 1 on along axis 1, as a square: positions of patches

An axis that is reversed is reversed in the foreign array; a part is taken of the foreign array.
"""

import dataclasses
import functools
import math
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
  """Some of a foreign array along an axis: part `begin` of `count` equal ones, or without a count `begin` to `end`."""

  axis: int
  begin: int
  count: int | None = None
  end: int | None = None

  def of(self, array: Any) -> Any:
    """The part. Raises ValueError where the axis cannot be divided."""
    size, begin, end = array.shape[self.axis], self.begin, self.end
    if self.count is not None:
      if size % self.count:
        raise ValueError(f'{size} cannot be divided by {self.count}')
      begin, end = (size * number // self.count for number in (begin, begin + 1))
    return array[(slice(None),) * self.axis + (slice(begin, end),)]


@dataclasses.dataclass(frozen=True)
class _Layout:
  theirs: str
  ours: str
  sizes: Mapping[str, int]
  root: str | None  # the axis whose square is the length of its group
  reversed: tuple[str, ...]
  part: Part | None


# Axes by name; in a part also by number.
PART = re.compile(r'part=(\w+):([0-9]{1,9})(?:/([0-9]{1,3})|\.\.([0-9]{0,9}))')
OPTION = re.compile(rf'reverse=[^\W\d]\w*|{PART.pattern}|[^\W\d]\w*=(?:[0-9]{{1,9}}|root)')


@functools.lru_cache(maxsize=256)
def _parsed(layout: str) -> _Layout:
  """Raises `UserError` where a layout is neither a name nor a pattern."""
  pattern, *options = [part.strip() for part in LAYOUTS.get(layout, layout).split(',')]
  theirs, arrow, ours = (side.strip() for side in pattern.partition('->'))
  pairs = [option.split('=') for option in options]
  if not arrow or not all(OPTION.fullmatch(option) for option in options):
    raise UserError(f'unknown layout {layout!r}; nearest: {nearest(layout, LAYOUTS)[0]}, or a pattern o i -> i o')
  axes = [axis for axis in theirs.split() if axis.isidentifier()] if '(' not in theirs else []
  flipped = tuple(value for name, value in pairs if name == 'reverse')
  parts = [match for option in options if (match := PART.fullmatch(option))]
  chosen = [('reverse', name) for name in flipped]
  chosen += [('part', match[1]) for match in parts if not match[1].isdigit()]
  for option, name in chosen:
    if name not in axes:
      raise UserError(f'layout {layout!r}: {option}={name} names no axis of {theirs!r}: {", ".join(axes)}')
  sizes = {name: int(value) for name, value in pairs if name not in ('reverse', 'part') and value != 'root'}
  root = next((name for name, value in pairs if value == 'root'), None)
  return _Layout(theirs, ours, sizes, root, flipped, _part(layout, axes, *parts[0].groups()) if parts else None)


def _part(layout: str, axes: Sequence[str], axis: str, begin: str, count: str | None, end: str | None) -> Part:
  place = int(axis) if axis.isdigit() else axes.index(axis)
  if count is not None and int(begin) >= int(count):
    raise UserError(f'layout {layout!r}: the last of {count} parts is {int(count) - 1}')
  return Part(place, int(begin), int(count) if count else None, int(end) if end else None)


def part(layout: str) -> Part | None:
  """Which part of the foreign array a layout takes; None for all of it."""
  return _parsed(layout).part


def _root(pattern: str, axis: str, shape: Sequence[int]) -> int:
  """The side of the square that a group of axes of the pattern is."""
  groups = re.findall(r'\([^)]*\)|\S+', pattern)
  length = next(length for group, length in zip(groups, shape, strict=True) if axis in group.strip('()').split())
  if math.isqrt(length) ** 2 != length:
    raise ValueError(f'{length} places are no square')
  return math.isqrt(length)


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
      array = _flipped(how.part.of(array) if how.part else array, how.theirs, how.reversed)
      sizes = {**how.sizes, **({how.root: _root(how.theirs, how.root, array.shape)} if how.root else {})}
      return einops.rearrange(array, f'{how.theirs} -> {how.ours}', **sizes)
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
