"""Image files to arrays of one size: deterministic, on the host, with OpenCV.

What is random happens on the device (augmentation.py). cv2 is imported where it is used.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from pydantic import Field

from transferlab.config import Schema
from transferlab.errors import UserError

Side = Annotated[int, Field(gt=0, le=2**14)]


class Resize(Schema):
  """The size to which the host brings every image."""

  size: Side | list[Side] = Field(description='pixels: of a square, or [height, width]')
  mode: Literal['shorter', 'exact', 'pad'] = Field(
    default='shorter',
    description='shorter: scale until the image just covers the size, and keep its centre; exact: height and width, '
    'whatever the aspect ratio; pad: scale until it just fits, with zeros around it',
  )

  @pydantic.field_validator('size')
  @classmethod
  def _two(cls, size: Any) -> Any:
    if isinstance(size, list) and len(size) != 2:
      raise ValueError('should be one number, or [height, width]')
    return size

  @property
  def sides(self) -> tuple[int, int]:
    """(height, width)."""
    return (self.size, self.size) if isinstance(self.size, int) else (self.size[0], self.size[1])


def decode(data: bytes, channels: int, sides: tuple[int, int] | None = None) -> np.ndarray | None:
  """The image as uint8 [height, width, channels] in RGB (or grey), turned as its EXIF says; None for no image.

  Args:
    channels: 1 or 3.
    sides: the (height, width) it is wanted for. A JPEG at least twice as large in both directions is decoded at a
      half, a quarter or an eighth of its size, which costs a fraction of the time.
  """
  cv2 = _quiet()
  factor = reduction(data, sides) if sides else 1
  grey, colour = {
    1: (cv2.IMREAD_GRAYSCALE, cv2.IMREAD_COLOR_RGB),
    2: (cv2.IMREAD_REDUCED_GRAYSCALE_2, cv2.IMREAD_REDUCED_COLOR_2),
    4: (cv2.IMREAD_REDUCED_GRAYSCALE_4, cv2.IMREAD_REDUCED_COLOR_4),
    8: (cv2.IMREAD_REDUCED_GRAYSCALE_8, cv2.IMREAD_REDUCED_COLOR_8),
  }[factor]
  try:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), grey if channels == 1 else colour)
  except cv2.error:
    return None
  if image is None:
    return None
  if channels == 1:
    image = image[..., None]
  if factor == 1:
    return image
  # A last row or column that stands for less than half of `factor` pixels would count as a full one from now on.
  height, width = _whole_size(image, data)
  image = image[: max(1, round(height / factor)), : max(1, round(width / factor))]
  return image if channels == 1 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _whole_size(image: np.ndarray, data: bytes) -> tuple[int, int]:
  """(height, width) of an image, turned as its EXIF says, before it was reduced."""
  height, width = jpeg_size(data) or image.shape[:2]
  turned = (height - width) * (image.shape[0] - image.shape[1]) < 0
  return (width, height) if turned else (height, width)


def reduction(data: bytes, sides: tuple[int, int]) -> int:
  """The largest of 8, 4, 2 and 1 by which a JPEG can shrink and still cover `sides` either way round."""
  size = jpeg_size(data)
  if size is None:
    return 1
  room = min(size) / max(sides)
  return next((factor for factor in (8, 4, 2) if room >= factor), 1)


def jpeg_size(data: bytes) -> tuple[int, int] | None:
  """(height, width) from a JPEG's frame header (ITU T.81, B.2.2), before EXIF turns it; None where there is none."""
  for marker, place in _jpeg_segments(data):
    if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and place + 7 <= len(data):
      return int.from_bytes(data[place + 3 : place + 5], 'big'), int.from_bytes(data[place + 5 : place + 7], 'big')
  return None


_MARKER = re.compile(rb'\xff+([\x02-\xcf\xd9-\xfe])')  # neither stuffed bytes nor restarts, which stand among pixels


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
  """(marker, where its length and contents stand) of a JPEG up to its end (ITU T.81, B.1.1), skipping pixels.

  Segments are skipped by their length: the thumbnail in one of them is a whole JPEG.
  """
  place = 2 if data.startswith(b'\xff\xd8') else len(data)
  while found := _MARKER.search(data, place):
    place = found.end()
    yield found[1][0], place
    if found[1] == b'\xd9':
      return
    place += int.from_bytes(data[place : place + 2], 'big')


def _png_ends(data: bytes) -> bool:
  """Whether a PNG's chunks lead to its last one."""
  place = 8
  while place + 8 <= len(data) and data[place + 4 : place + 8] != b'IEND':
    place += 12 + int.from_bytes(data[place : place + 4], 'big')
  return place + 8 <= len(data)


LONGEST = 16  # times as long as what is kept of it: more of an image is not scaled up only to be cut off


def resize(image: np.ndarray, to: Resize, whole: tuple[int, int] | None = None) -> np.ndarray:
  """The image [h, w, C] at the size asked for, uint8 [height, width, C].

  A side that shrinks is averaged over areas, then a side that grows is interpolated linearly.

  Args:
    whole: (height, width) that a reduced image had, which decides what is cut off; None: it is not reduced.
  """
  height, width = to.sides
  if to.mode == 'exact':
    return _scaled(image, (height, width))
  whole = whole or (image.shape[0], image.shape[1])
  fit = max if to.mode == 'shorter' else min
  scale = fit(height / whole[0], width / whole[1])
  inner = max(1, round(whole[0] * scale)), max(1, round(whole[1] * scale))
  if to.mode == 'shorter':
    return _middle(_scaled(*_not_too_long(image, inner, to.sides)), height, width)
  above, left = (height - inner[0]) // 2, (width - inner[1]) // 2
  below, right = height - inner[0] - above, width - inner[1] - left
  return np.pad(_scaled(image, inner), ((above, below), (left, right), (0, 0)))


def _not_too_long(
  image: np.ndarray, inner: tuple[int, int], sides: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
  """The image without ends that would be scaled up only to be cut off, and the size to scale the rest to."""
  for axis in (0, 1):
    if inner[axis] > LONGEST * sides[axis]:
      before = image.shape[axis]
      kept = math.ceil(LONGEST * sides[axis] * before / inner[axis])
      kept += (before - kept) % 2  # so that the centre stays
      image = image.take(range((before - kept) // 2, (before + kept) // 2), axis)
      size = round(kept * inner[axis] / before)
      inner = (size, inner[1]) if axis == 0 else (inner[0], size)
  return image, inner


def _middle(image: np.ndarray, height: int, width: int) -> np.ndarray:
  """At most so much of the image, from its centre."""
  above, left = max(0, image.shape[0] - height) // 2, max(0, image.shape[1] - width) // 2
  return image[above : above + height, left : left + width]


def _scaled(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  import cv2

  smaller = min(size[0], image.shape[0]), min(size[1], image.shape[1])
  for inner, way in ((smaller, cv2.INTER_AREA), (size, cv2.INTER_LINEAR)):
    if inner != image.shape[:2]:
      image = cv2.resize(image, inner[::-1], interpolation=way).reshape(*inner, image.shape[2])
  return image


def read_image(data: bytes, channels: int, to: Resize | None, name: str) -> np.ndarray:
  """One image at its final size. Raises `UserError` where `name` holds no image."""
  image = decode(data, channels, to.sides if to else None)
  if image is None:
    raise UserError(f'{name} is damaged, or no image')
  return image if to is None else resize(image, to, _whole_size(image, data))


# How the formats that OpenCV reads begin, and how a complete file of them ends.
_BEGINNINGS = (
  b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n', b'GIF8', b'BM', b'II*\0', b'MM\0*', b'P1', b'P2', b'P3', b'P4', b'P5', b'P6',
  b'\0\0\0\x0cjP  ', b'\xff\x4f\xff\x51',
)  # fmt: skip


def fault(data: bytes) -> str | None:
  """What is wrong with an image file, or None: no image, or cut short. That it can be decoded is not looked at.

  A JPEG or PNG that was cut short decodes into a picture with a grey rest, so its end is looked for; what follows its
  end is nobody's concern (phones append films).
  """
  webp = data[:4] == b'RIFF' and data[8:12] == b'WEBP'
  if not data:
    return 'is empty'
  if not (webp or data[4:12] == b'ftypavif' or data.startswith(_BEGINNINGS)):
    return 'is no image that can be read'
  if data.startswith(b'\xff\xd8') and all(marker != 0xD9 for marker, _ in _jpeg_segments(data)):
    return 'is a JPEG that was cut short'
  if data.startswith(b'\x89PNG') and not _png_ends(data):
    return 'is a PNG that was cut short'
  if webp and len(data) < 8 + int.from_bytes(data[4:8], 'little'):
    return 'is a WebP that was cut short'
  return None


@functools.cache
def _quiet() -> Any:
  """cv2, which would write about damaged images to the screen beside our own message."""
  import cv2

  opencv: Any = cv2
  silence = opencv.setLogLevel if hasattr(cv2, 'setLogLevel') else opencv.utils.logging.setLogLevel  # 4 or 5
  silence(0)
  return cv2
