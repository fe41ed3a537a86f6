"""What moves and what does not: parameters as a trainable and a frozen tree, and the proof that it was so.

Both trees have the same structure, with None in the holes. Gradients, clipping, norms, weight decay and optimizer
slots only ever see the trainable one, so a frozen weight costs no backward pass and no optimizer memory.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from transferlab import paths
from transferlab.errors import UserError
from transferlab.training.phases import Phase

Tree = dict[str, Any]


def is_hole(leaf: object) -> bool:
  """For `jax.tree.map(…, is_leaf=is_hole)`: None stands for a leaf of the other tree."""
  return leaf is None


def split(params: Mapping[str, Any], trainable: Collection[str]) -> tuple[Tree, Tree]:
  """Parameters as (trainable, frozen), each with None where the other has the leaf."""
  flat, chosen = paths.flatten(params), set(trainable)
  return (
    paths.unflatten({path: leaf if path in chosen else None for path, leaf in flat.items()}),
    paths.unflatten({path: None if path in chosen else leaf for path, leaf in flat.items()}),
  )


def join(trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> Tree:
  """The inverse of `split`."""
  return jax.tree.map(lambda a, b: b if a is None else a, trainable, frozen, is_leaf=is_hole)


def trainable_paths(
  phase: Phase, leaves: Sequence[str], stages: Sequence[str], terms: Sequence[str], where: str
) -> list[str]:
  """The leaves that the phase's optimizer may move: what its patterns select, and what its terms own.

  Raises:
    UserError: a pattern selects nothing.
  """
  network = [path for path in leaves if not path.startswith(paths.TERMS)]
  chosen = set(paths.select(phase.train, network, what=f'{where}.train', stages=stages))
  own = tuple(f'{paths.TERMS}{name}/' for name in terms)
  return [path for path in leaves if path in chosen or path.startswith(own)]


def leaf_rates(
  phase: Phase, trainable: Sequence[str], leaves: Sequence[str], stages: Sequence[str], where: str
) -> dict[str, float]:
  """The learning rate of each trainable leaf.

  Rules are checked against all leaves (a rule may name a stage that this phase freezes). Leaves of terms without a
  rule of their own take the largest rate, as a new head would. `layer_decay` multiplies by
  decay^(number of stages between the leaf's and the head), Clark et al. 2020 (ELECTRA), section 3.1.
  """
  rules = phase.learning_rate
  if isinstance(rules, float | int):
    rates = dict.fromkeys(leaves, float(rules))
  else:
    largest = max(rate for _, rate in rules)
    known = [
      path for path in leaves if not path.startswith(paths.TERMS) or any(paths.matches(p, path) for p, _ in rules)
    ]
    rates = {
      **dict.fromkeys(leaves, largest),
      **paths.assign(rules, known, what=f'{where}.learning_rate', stages=stages),
    }
  if phase.layer_decay is not None:
    below = {stage: len(stages) - 1 - index for index, stage in enumerate(stages)}
    rates = {path: rate * phase.layer_decay ** below.get(paths.stage_of(path), 0) for path, rate in rates.items()}
  return {path: rates[path] for path in trainable}


def digests(tree: Mapping[str, Any]) -> dict[str, str]:
  """A fingerprint of the bytes of every leaf, by path; holes are left out."""
  flat = {path: leaf for path, leaf in paths.flatten(tree).items() if leaf is not None}
  return {
    path: hashlib.blake2b(np.ascontiguousarray(leaf).tobytes(), digest_size=8).hexdigest()
    for path, leaf in jax.device_get(flat).items()
  }


def prove(
  before: Mapping[str, str],
  after: Mapping[str, str],
  trainable: Collection[str],
  rates: Mapping[str, float],
  patterns: str | Sequence[str],
) -> list[str]:
  """Checks after a phase that what was frozen stands still, byte for byte, and that what trains has moved.

  Args:
    before, after: `digests` of all parameters at the phase's two ends.
    trainable: the paths that the optimizer could move.
    rates: their learning rates.
    patterns: the phase's `train`.

  Returns:
    A warning for each trainable leaf that did not move although its rate is not zero.

  Raises:
    AssertionError: a frozen leaf moved: a bug.
    UserError: nothing that a pattern selects has moved, at a nonzero rate.
  """
  moved = {path for path in after if before.get(path) != after[path]}
  if strays := sorted(moved - set(trainable)):
    raise AssertionError(f'frozen parameters moved: {", ".join(strays[:5])}')
  for pattern in [patterns] if isinstance(patterns, str) else patterns:
    selected = [path for path in trainable if paths.matches(pattern, path) and rates[path] > 0]
    if selected and not moved.intersection(selected):
      raise UserError(
        f'nothing that pattern {pattern!r} selects has moved over the phase, at rates up to '
        f'{max(rates[path] for path in selected):g}: its gradient is zero everywhere, or the rate below the rounding '
        'of the weights'
      )
  return [f'{path} did not move' for path in sorted(trainable) if rates[path] > 0 and path not in moved]
