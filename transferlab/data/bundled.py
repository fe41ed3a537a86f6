"""The data sets that scikit-learn brings along: no download, no files of one's own."""

from collections.abc import Callable
from typing import Any

import numpy as np

from transferlab.data.examples import Examples, Info, from_arrays


def digits() -> Examples:
  """1,797 handwritten digits, 8×8×1, float32 in 0 … 16."""
  from sklearn.datasets import load_digits

  bunch = load_digits()
  info = Info(
    'image',
    'classification',
    tuple(map(str, bunch.target_names)),
    low=0.0,
    high=16.0,
    origin='scikit-learn load_digits (UCI optical recognition of handwritten digits, its test part)',
  )
  return from_arrays(bunch.images[..., None].astype(np.float32), bunch.target.astype(np.int32), info)


def _bundled(name: str, **options: Any) -> Examples:
  """A table that scikit-learn brings along."""
  import sklearn.datasets

  bunch = getattr(sklearn.datasets, f'load_{name}')(**options)
  columns, origin = tuple(map(str, bunch.feature_names)), f'scikit-learn load_{name}'
  x, y = bunch.data.astype(np.float32), bunch.target
  if y.dtype.kind == 'i':
    info = Info('table', 'classification', tuple(map(str, bunch.target_names)), columns, origin=origin)
    return from_arrays(x, y.astype(np.int32), info)
  targets = tuple(map(str, bunch.get('target_names', ['progression'])))
  return from_arrays(
    x,
    y.reshape(len(x), -1).astype(np.float32),
    Info('table', 'regression', (), columns, targets, origin=origin),
  )


def iris() -> Examples:
  """150 flowers, 4 columns, 3 classes."""
  return _bundled('iris')


def wine() -> Examples:
  """178 wines, 13 columns, 3 classes."""
  return _bundled('wine')


def breast_cancer() -> Examples:
  """569 tumours, 30 columns, 2 classes."""
  return _bundled('breast_cancer')


def diabetes() -> Examples:
  """442 patients, 10 unscaled columns; the progression of the disease after a year."""
  return _bundled('diabetes', scaled=False)


def linnerud() -> Examples:
  """20 men, 3 exercises; weight, waist and pulse."""
  return _bundled('linnerud')


READERS: dict[str, Callable[[], Examples]] = {
  'digits': digits,
  'iris': iris,
  'wine': wine,
  'breast_cancer': breast_cancer,
  'diabetes': diabetes,
  'linnerud': linnerud,
}
