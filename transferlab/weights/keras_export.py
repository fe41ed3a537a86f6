"""Writes weights as an .h5 file that Keras loads, by order and by name. Writes files.

The layout is the legacy one of HDF5 weights, which Keras 2 and 3 both read; reading it back is keras_files.py's.
"""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transferlab.errors import UserError

# HDF5 keeps an attribute in an object's header, which holds 64 KiB; Keras leaves 1 KiB of it to the rest.
_ATTRIBUTE = 64512
# What the format was last current in, and whose kernels are not turned.
_METADATA = {'keras_version': '2.15.0', 'backend': 'tensorflow'}

Layers = Sequence[tuple[str, Sequence[tuple[str, np.ndarray]]]]


def write(path: Path, layers: Layers, metadata: Mapping[str, str] = {}) -> None:
  """Writes the weights of a model's layers, so that `keras_model.load_weights('x.h5')` accepts them.

  Keras fills the model's layers that have weights one after the other, so the order is that of `model.layers`; of a
  sub-model, which is one layer here, trainable weights stand before the others. With `by_name=True` names decide.
  bfloat16 and float8 become float32, exactly, as Keras reads neither from this format.

  Args:
    path: `NAME.h5`; the file appears whole or not at all.
    layers: (layer, [(weight, array)]), for example ('conv1', [('kernel', …), ('bias', …)]); kernels HWIO, dense ones
      [in, out]. Layers without weights may be left out.
    metadata: further attributes of the file; 'keras_version' and 'backend' replace the usual ones.

  Raises:
    UserError: a name given twice, too long or empty, or a file that cannot be written.
  """
  import h5py

  _check(layers, path)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    if not path.parent.is_dir():
      raise UserError(f'cannot write {path}: there is no folder {str(path.parent)!r}')
    with h5py.File(temporary, 'w') as file:
      for key, value in {**_METADATA, **metadata}.items():
        file.attrs[key] = value
      _write_texts(file, 'layer_names', [name for name, _ in layers], path)
      for name, weights in layers:
        group = file.require_group(name)  # which exists already where another layer's name begins with this one
        names = [f'{name}/{weight}:0' for weight, _ in weights]
        _write_texts(group, 'weight_names', names, path)
        for own, (_, array) in zip(names, weights):
          group.create_dataset(own, data=_plain(array))
    os.replace(temporary, path)
  except (OSError, RuntimeError) as error:  # HDF5 raises either, and names the temporary file
    raise UserError(f'cannot write {path}: {_reason(error)}') from None
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink()


def _reason(error: Exception) -> str:
  """What the system said, without the name of a file."""
  if number := getattr(error, 'errno', None):
    return os.strerror(number)
  said = re.search("error message = '([^']+)'", str(error))
  return said[1] if said else f'HDF5 says: {str(error).partition("(")[0].strip() or type(error).__name__}'


def _check(layers: Layers, path: Path) -> None:
  for kind, names in (
    ('layers', [name for name, _ in layers]),
    *((f'weights of {x}', [w for w, _ in y]) for x, y in layers),
  ):
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
      raise UserError(f'{path}: two {kind} are called {repeated[0]!r}; Keras needs a name for each')
    bad = [name for name in names if not all(part not in ('', '.') for part in name.split('/'))]
    if bad:
      raise UserError(f'{path}: {bad[0]!r} among the {kind} is no name for Keras')


def _write_texts(group: Any, name: str, texts: Sequence[str], path: Path) -> None:
  """A list of names as an attribute; as several, numbered from 0, where it is too long for one."""
  encoded = [text.encode() for text in texts]
  if not encoded:
    group.attrs[name] = np.array([], 'S1')
    return
  width = max(map(len, encoded))
  if width > _ATTRIBUTE:
    raise UserError(f'{path}: a name of {width} bytes is too long for Keras: {texts[0][:40]}…')
  per_chunk = _ATTRIBUTE // width
  chunks = [encoded[start : start + per_chunk] for start in range(0, len(encoded), per_chunk)]
  for number, chunk in enumerate(chunks):
    group.attrs[name if len(chunks) == 1 else f'{name}{number}'] = np.array(chunk, f'S{width}')


def _plain(array: np.ndarray) -> np.ndarray:
  """The array in a type that HDF5 knows."""
  array = np.asarray(array)
  return array.astype(np.float32) if array.dtype.kind == 'V' else array
