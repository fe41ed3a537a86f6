"""The bias of classes that training has seen too rarely, or alone: one offset of their logits mends it. Pure NumPy.

Hinton et al. 2015, section 3: a student that never saw a 3 knows them once the bias of that class is raised.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


def shifted(
  logits: Float[np.ndarray, 'examples classes'], classes: Sequence[int], offset: float
) -> Float[np.ndarray, 'examples classes']:
  """The logits with the offset added to those classes."""
  moved = np.array(logits, np.float64)
  moved[:, list(classes)] += offset
  return moved


def best_offset(
  logits: Float[np.ndarray, 'examples classes'], labels: Int[np.ndarray, ' examples'], classes: Sequence[int]
) -> float:
  """The offset of the classes' logits with which the fewest examples are wrong; of equally good ones the smallest.

  It is exact: an example goes over to these classes where the offset passes the distance of its best logit outside
  from its best within, so between neighbouring distances nothing changes; the middle is taken, or 0 if it lies there.
  """
  logits = np.asarray(logits, np.float64)
  inside = np.isin(np.arange(logits.shape[1]), list(classes))
  within, outside = (np.where(chosen, logits, -np.inf) for chosen in (inside, ~inside))
  distance = outside.max(axis=1) - within.max(axis=1)
  gain = (within.argmax(axis=1) == labels).astype(int) - (outside.argmax(axis=1) == labels)
  order = np.argsort(distance)
  edges = distance[order]
  gained = np.concatenate([[0], np.cumsum(gain[order])])  # by the examples that have gone over
  low, high = np.concatenate([[-np.inf], edges]), np.concatenate([edges, [np.inf]])
  middle = np.where(np.isinf(low), high - 1, np.where(np.isinf(high), low + 1, (low + high) / 2))
  offsets = np.where((low < 0) & (high > 0), 0.0, middle)
  best = np.flatnonzero((gained == gained[high > low].max()) & (high > low))
  return float(min(offsets[best], key=abs))
