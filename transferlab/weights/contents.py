"""What a file of weights holds: names, shapes and dtypes at once, values when they are asked for. Pure."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
  """One array of a file, not read yet.

  Attributes:
    read: gives the values, of this shape and dtype, in memory of their own; reads the file each time.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Contents(Mapping[str, np.ndarray]):
  """The arrays of a file by name, read one by one; `dict(contents)` reads all.

  Attributes:
    file: as the user named it.
    format: for people: 'PyTorch', 'safetensors', 'Keras', ….
    tensors: by name, in the file's order; wrapper prefixes such as 'module.' are gone.
    part: the entry of the file that they were taken from ('state_dict'), where it has several.
    others: entries of the file that hold further tensors, and how many: {'optimizer': 120, 'ema': 62}.
    metadata: what the file says of itself beside tensors: plain values.
    notes: sentences for the report.
  """

  file: str
  format: str
  tensors: Mapping[str, Tensor]
  part: str | None = None
  others: Mapping[str, int] = dataclasses.field(default_factory=dict)
  metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  notes: tuple[str, ...] = ()

  def __getitem__(self, name: str) -> np.ndarray:
    return self.tensors[name].read()

  def __iter__(self) -> Iterator[str]:
    return iter(self.tensors)

  def __len__(self) -> int:
    return len(self.tensors)
