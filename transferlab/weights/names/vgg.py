"""VGG as torchvision and as Keras write it: names, layouts, and how to tell depth and width from them."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transferlab.weights.names import UNNAMED, fits, keras_layer, numbered, torch_layer, torch_norm
from transferlab.weights.origin import CAFFE, IMAGENET, Origin, Shapes, Table

# A first convolution for blue, green, red.
REVERSED = 'h w i o -> h w i o, reverse=i'
# torch flattens channels, height, width.
FLATTENED = 'o (c h w) -> (h w c) o, h=7, w=7'
# The usual depth first: with few blocks several are the same.
DEPTHS = (16, 19, 13, 11)


def _convolutions(options: Mapping[str, Any]) -> list[tuple[int, int]]:
  """(block, convolution) of each, in order."""
  from transferlab.networks.vgg import CONVOLUTIONS

  counts = CONVOLUTIONS[options.get('depth', 16)][: options.get('blocks', 5)]
  return [(block, number) for block, count in enumerate(counts, 1) for number in range(1, count + 1)]


def _dense(options: Mapping[str, Any]) -> list[str]:
  """Our paths of the dense layers and the head."""
  return [*(f'dense{number}/linear' for number, _ in enumerate(options.get('features', [4096, 4096]), 1)), 'head']


def _flattens(options: Mapping[str, Any]) -> bool:
  return options.get('pool', 'flatten') == 'flatten'


# ------------------------------------------------------------------------------------------------------- tables
def torchvision(options: Mapping[str, Any]) -> Table:
  """`features.N` and `classifier.N`: activations, pooling and dropout have numbers too."""
  table: Table = {}
  batch_norm = options.get('batch_norm', False)
  for index, (block, number) in enumerate(_convolutions(options)):
    place = index * (3 if batch_norm else 2) + block - 1
    table |= torch_layer(f'block{block}/conv{number}', f'features.{place}', 'conv')
    if batch_norm:
      table |= torch_norm(f'block{block}/norm{number}', f'features.{place + 1}')
  for index, path in enumerate(_dense(options)):
    layout = FLATTENED if index == 0 and _flattens(options) else 'linear'
    table |= torch_layer(path, f'classifier.{3 * index}', layout)
  return table


def keras(options: Mapping[str, Any]) -> Table:
  """`block1_conv1`, …, `fc1`, …, `predictions`; Keras' VGGs have no BatchNorm."""
  layers = [f'fc{number}' for number, _ in enumerate(_dense(options)[:-1], 1)]
  return _keras(
    options, [f'block{block}_conv{number}' for block, number in _convolutions(options)], layers, 'predictions', REVERSED
  )


def keras_numbered(options: Mapping[str, Any]) -> Table:
  """`conv2d`, `conv2d_1`, …, `dense`, …: anybody's layers, so that nothing is reversed for Caffe's images."""
  *layers, last = numbered(['dense'] * len(_dense(options)))
  return _keras(options, numbered(['conv2d'] * len(_convolutions(options))), layers, last, 'same')


def _keras(options: Mapping[str, Any], convolutions: list[str], layers: list[str], head: str, first: str) -> Table:
  """`first` is the layout of the first kernel."""
  ours = [f'block{block}/conv{number}' for block, number in _convolutions(options)] + _dense(options)
  table: Table = {}
  for path, name in zip(ours, [*convolutions, *layers, head], strict=True):
    table |= keras_layer(path, name, 'same' if table else first)
  return table


# ------------------------------------------------------------------------------------------------------ options
def _torchvision_options(shapes: Shapes) -> dict[str, Any] | None:
  linear = [shapes[name][::-1] for name in (f'classifier.{3 * index}.weight' for index in range(9)) if name in shapes]
  return _options(shapes, torchvision, shapes.get('features.0.weight', ())[:1], linear, len(linear) - 1)


def _keras_options(shapes: Shapes) -> dict[str, Any] | None:
  layers = list(itertools.takewhile(shapes.__contains__, (f'fc{number}/kernel' for number in range(1, 9))))
  linear = [shapes[name] for name in [*layers, 'predictions/kernel'] if name in shapes]
  return _options(shapes, keras, shapes.get('block1_conv1/kernel', ())[-1:], linear, len(layers))


def _numbered_options(shapes: Shapes) -> dict[str, Any] | None:
  names = itertools.takewhile(shapes.__contains__, (f'{name}/kernel' for name in numbered(['dense'] * 9)))
  linear = [shapes[name] for name in names]
  return _options(shapes, keras_numbered, shapes.get('conv2d/kernel', ())[-1:], linear, len(linear) - 1)


def _options(
  shapes: Shapes,
  table: Callable[[Mapping[str, Any]], Table],
  width: Sequence[int],
  linear: Sequence[Sequence[int]],
  layers: int,
) -> dict[str, Any] | None:
  """The first options whose table the file fits.

  Args:
    width: outputs of the first convolution, where there is one.
    linear: (inputs, outputs) of the dense layers and the head, in order.
    layers: how many of them are dense layers.
  """
  from transferlab.networks.vgg import GRID, WIDTHS

  if not width or any(len(shape) != 2 for shape in linear):
    return None
  features = [int(outputs) for _, outputs in linear[: max(layers, 0)]]
  for blocks, depth, batch_norm in itertools.product((5, 4, 3, 2, 1), DEPTHS, (False, True)):
    channels = [int(width[0]) * factor for factor in WIDTHS[:blocks]]
    pool = 'flatten' if linear and linear[0][0] == GRID**2 * channels[-1] else 'average'
    options = {'depth': depth, 'batch_norm': batch_norm, 'width': channels[0], 'pool': pool, 'features': features}
    options |= {} if blocks == 5 else {'blocks': blocks}
    kernels = {f'block{block}/conv{number}': (3, channels[block - 1]) for block, number in _convolutions(options)}
    if fits(shapes, table(options), {f'{path}/kernel': kernel for path, kernel in kernels.items()}):
      return options
  return None


ORIGINS = (
  Origin('torchvision', 'vgg', _torchvision_options, torchvision, IMAGENET),
  Origin('keras', 'vgg', _keras_options, keras, CAFFE),
  Origin('keras_numbered', 'vgg', _numbered_options, keras_numbered, None, doubt=UNNAMED, exported=False),
)
