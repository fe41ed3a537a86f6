"""Two images in one: each laid over another of its split, both of whose classes are to be told (MultiMNIST). Pure."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from pydantic import Field

from transferlab.config import Positive, Schema
from transferlab.data.examples import Examples
from transferlab.errors import UserError

TASKS = ('left', 'right')
SPLITS = ('train', 'validation', 'test')
OVERLAY = 1000  # what a random order is for; splits.py has small numbers


class Overlay(Schema):
  """The image at the top left of a canvas, another at the bottom right; where both are, the larger value counts."""

  canvas: Positive = Field(default=36, description='side of the canvas in pixels')
  size: Positive | None = Field(
    default=None, description='side to which the canvas is brought, by area; None: it stays as it is'
  )


def overlaid(examples: Examples, splits: Mapping[str, np.ndarray], overlay: Overlay, seed: int, name: str) -> Examples:
  """The examples as pairs, labelled 'left' (their own class) and 'right' (that of the other).

  The other image is one of the same split: each is the other one once, in an order drawn by the seed. So equal splits
  give equal pairs, and no test image is seen in training. The construction is Sabour et al.'s 2017 (MultiMNIST) in
  the form of Sener and Koltun 2018, where digits lie in opposite corners.

  Args:
    splits: indices by name, none in two.
    name: of the data, for messages.

  Raises:
    UserError: no square images with one class each, or a canvas smaller than they are.
  """
  info, x = examples.info, examples.arrays['x']
  if info.kind != 'image' or info.task != 'classification' or info.tasks or x.shape[1] != x.shape[2]:
    raise UserError(f'data.overlay is for square images of one class each, and {name} holds others')
  side = x.shape[1]
  if overlay.canvas < side:
    raise UserError(f'data.overlay.canvas: {overlay.canvas} pixels, and the images of {name} have {side}')
  other = np.arange(len(examples))
  for name_of, rows in splits.items():
    drawn = np.random.default_rng([seed, OVERLAY, SPLITS.index(name_of)])
    other[rows] = rows[drawn.permutation(len(rows))]
  values = np.asarray(x)
  canvas = np.full((len(values), overlay.canvas, overlay.canvas, values.shape[3]), info.low, values.dtype)
  canvas[:, :side, :side] = values
  corner = canvas[:, -side:, -side:]
  np.maximum(corner, values[other], out=corner)
  if overlay.size is not None:
    canvas = _resized(canvas, overlay.size)
  label = dict(zip(TASKS, (examples.arrays['label'], examples.arrays['label'][other])))
  arrays = {**examples.arrays, 'x': canvas, 'label': label}
  return dataclasses.replace(examples, arrays=arrays, info=dataclasses.replace(info, tasks=dict.fromkeys(TASKS, info)))


def _resized(images: np.ndarray, size: int) -> np.ndarray:
  import cv2

  shape = (len(images), size, size, images.shape[3])
  return np.stack([cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image in images]).reshape(shape)
