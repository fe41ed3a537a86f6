"""Labels that are missing: −1 in place of a class number, NaN in place of a target. Pure NumPy.

Terms that look at a label leave out the examples that lack it, and so do metrics; both are counted in results.json.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from transferlab.data import splits
from transferlab.errors import UserError, unknown

Label = np.ndarray | Mapping[str, np.ndarray]


def known(label: np.ndarray) -> np.ndarray:
  """bool [N]: which labels are there; of several targets all have to be."""
  if np.issubdtype(label.dtype, np.integer):
    return label >= 0
  return np.isfinite(label).reshape(len(label), -1).all(axis=1)


def by_task(label: Label) -> dict[str | None, np.ndarray]:
  """The labels of each task, of the only one under None."""
  found: dict[str | None, np.ndarray] = {}
  found.update(label if isinstance(label, Mapping) else {None: label})  # type: ignore[arg-type]
  return found


def changed(label: Label, change: Callable[[str | None, np.ndarray], np.ndarray]) -> Any:
  """`change(task, label)` of each task's labels, in the form in which they came."""
  if isinstance(label, Mapping):
    return {task: change(task, own) for task, own in label.items()}
  return change(None, label)


def present(label: Label) -> np.ndarray:
  """bool [N]: which examples have a label of any task."""
  return np.logical_or.reduce([known(own) for own in by_task(label).values()])


def without(label: np.ndarray, rows: np.ndarray) -> np.ndarray:
  """A copy in which the labels of these rows are missing."""
  label = label.copy()
  label[rows] = -1 if np.issubdtype(label.dtype, np.integer) else np.nan
  return label


def kept(
  label: Label, rows: np.ndarray, ids: np.ndarray, shares: float | Mapping[str, float], seed: int, name: str
) -> Label:
  """The labels, of which these rows keep a share only, drawn within each class to the nearest example, at least one.

  Args:
    rows: of the training split.
    ids: of all examples.
    shares: for every task, or by task (others keep all).
    name: of the data, for messages.

  Raises:
    UserError: shares of a task that there is not.
  """
  tasks = list(by_task(label))
  if isinstance(shares, Mapping):
    for task in shares:
      if task not in tasks:
        raise unknown(
          f'{name}: data.keep_labels', task, map(str, tasks) if tasks != [None] else ['0.1, of the only label']
        )

  def fewer(task: str | None, own: np.ndarray) -> np.ndarray:
    share = shares.get(str(task), 1.0) if isinstance(shares, Mapping) else shares
    labelled = rows[known(own[rows])]
    strata = own[labelled] if np.issubdtype(own.dtype, np.integer) else np.zeros(len(labelled), np.int64)
    chosen = splits.kept_labels(ids[labelled], strata, share, seed, tasks.index(task))
    return without(own, np.delete(labelled, chosen))

  return changed(label, fewer)


def counts(label: Label, parts: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """How many examples of each part have a label; and of every task under 'tasks', where there are several."""
  found: dict[str, Any] = {name: int(present(label)[rows].sum()) for name, rows in parts.items()}
  if isinstance(label, Mapping):
    each = {task: {name: int(known(own)[rows].sum()) for name, rows in parts.items()} for task, own in label.items()}
    found['tasks'] = each
  return found


def check(label: Label, rows: np.ndarray, name: str) -> None:
  """Raises `UserError` where a task has no label in these rows of the training split."""
  for task, own in by_task(label).items():
    if not known(own[rows]).any():
      raise UserError(f'{name}: no training example has a label' + (f' {task!r}' if task else ''))


def gaps(label: Label, rows: np.ndarray) -> frozenset[str | None]:
  """The tasks of which some of these rows have no label; None stands for the only one."""
  return frozenset(task for task, own in by_task(label).items() if not known(own[rows]).all())
