"""What is known of one family of files: how to tell it from its names, and which of our leaves each name is. Pure.

One `Origin` stands for one architecture as one framework writes it; those that exist are listed in mapping.py.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
# our path -> (their name, layout); statistics among the parameters.
Table = dict[str, tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Inputs:
  """What images the weights were trained on: x' = (x - shift) / scale per channel, for RGB values 0 … 255."""

  shift: tuple[float, ...]
  scale: tuple[float, ...]
  size: int
  note: str = ''  # how images were resized, for people

  def record(self, channels: int) -> dict[str, Any] | None:
    """As the preprocessing record of a run; None for weights on other images than the published ones."""
    if channels != len(self.shift):
      return None
    return {
      'kind': 'image',
      'shift': list(self.shift),
      'scale': list(self.scale),
      'columns': [],
      'input_shape': [self.size, self.size, channels],
      'range': [0.0, 255.0],
      'note': self.note,
    }


IMAGENET = Inputs((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), 224, 'shorter side 256, centre 224, bilinear')
CAFFE = Inputs((123.68, 116.779, 103.939), (1.0, 1.0, 1.0), 224, 'resized to 224, bilinear')
SYMMETRIC = Inputs((127.5, 127.5, 127.5), (127.5, 127.5, 127.5), 224, 'resized to 224, bilinear')


@dataclasses.dataclass(frozen=True)
class Origin:
  """An architecture as one framework writes it.

  Attributes:
    name: the framework or publisher: 'torchvision', 'keras'.
    network: the name of our network.
    options: `options(shapes)` gives our network's options from names and shapes; None where the file is another.
    table: `table(options)` gives every leaf of our network with these options, head included; 'input_shape' stands
      among them where a file of ours says it.
    inputs: the images that published weights of this kind were trained on; None: nothing is known of them.
    valueless: names (a regular expression) that carry nothing of use, such as counts of batches.
    size: side of the images for which the network is built where `inputs` is None.
    doubt: a sentence for the report on what a file of this origin leaves unsaid.
    exported: whether a network can be written under these names.
    others: names (a regular expression) of parts of the origin's model that our network does not have.
    stated: `stated(config)` gives options that names and shapes do not show from the config.json beside the weights;
      None: it says nothing that is understood.
    states: those of them that it can say of any network.
    input_shape: `input_shape(options, shapes)` of one example, where the weights decide it; None: square images.
    unstated: a sentence for the report on what is assumed where no config.json lies beside the weights.
  """

  name: str
  network: str
  options: Callable[[Shapes], dict[str, Any] | None]
  table: Callable[[Mapping[str, Any]], Table]
  inputs: Inputs | None
  valueless: str = r'.*num_batches_tracked'
  size: int = 224
  doubt: str = ''
  exported: bool = True
  others: str = '(?!)'
  stated: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
  states: tuple[str, ...] = ()
  input_shape: Callable[[Mapping[str, Any], Shapes], tuple[int, ...]] | None = None
  unstated: str = ''

  def skips(self, name: str) -> bool:
    """Whether a name is of no use to our network."""
    return bool(re.fullmatch(f'{self.valueless}|{self.others}', name))
