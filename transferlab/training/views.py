"""What a term looks at in a step: outputs, labels and masks of its task. Pure."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from transferlab.networks import layers, sharing
from transferlab.networks.network import Network
from transferlab.objectives.objective import View

TERMS = 3  # what a step's key is folded with for terms


def view_of(
  network: Network,
  outputs: Any,
  batch: Mapping[str, Any],
  params: Any,
  source: Any,
  keys: Array,
  progress: Array,
  total: Callable[[Array], Array],
  task: str | None,
  teacher: str | None,
  *,
  gaps: Collection[str | None] = (),
  further: Mapping[str, Any] = {},
) -> View:
  """What a term of this task, asking this teacher, looks at.

  Args:
    gaps: the tasks of which labels are missing.
    further: fields of the view.
  """
  output, labels = outputs[network.stages[-1]], batch['label']
  if task is not None and isinstance(network, sharing.MultiTask):
    outputs = _OfTask(outputs, task)
  labels = labels[task] if isinstance(labels, Mapping) and task else labels
  known = known_labels(labels) if task in gaps else None
  if known is not None:
    labels = jnp.where(known.reshape(-1, *[1] * (labels.ndim - 1)), labels, jnp.zeros_like(labels))
  return View(
    outputs=outputs,
    output=output[task] if isinstance(output, Mapping) and task else output,
    labels=labels,
    known=known,
    params=params,
    source=source,
    mask=batch['mask'],
    key=layers.fold_in(keys, TERMS),
    progress=progress,
    total=total,
    task=task,
    teacher=teacher,
    head=network.stages[-1],
    **further,
  )


def known_labels(labels: Array) -> Array:
  """[batch], which labels are there: no negative class, no target that is NaN (data/labels.py)."""
  if jnp.issubdtype(labels.dtype, jnp.integer):
    return labels >= 0
  return jnp.isfinite(labels).reshape(len(labels), -1).all(axis=1)


def real_places(inputs: Any) -> Any:
  """[batch, places], where texts have tokens; None where the inputs are no texts."""
  if isinstance(inputs, Mapping):
    return inputs.get('mask')
  return inputs >= 0 if inputs.dtype == jnp.int32 else None


def reset(carry: Any, fresh: Array) -> Any:
  """What recurrent stages remember, for all rows of a batch; nothing where a text begins, and in rows that pad it."""

  def one(leaf: Array) -> Array:
    padded = jnp.pad(leaf, [(0, len(fresh) - len(leaf)), (0, 0)])
    return jnp.where(fresh[:, None] > 0, 0, padded)

  return jax.tree.map(one, carry)


class ByStage(Mapping):
  """Outputs by stage, looked up when they are asked for."""

  def __init__(self, outputs: Mapping[str, Any]):
    self.outputs = outputs

  def __getitem__(self, stage: str) -> Any:
    return self.outputs[stage]

  def __contains__(self, stage: object) -> bool:
    return stage in self.outputs

  def __iter__(self) -> Iterator[str]:
    return iter(self.outputs)

  def __len__(self) -> int:
    return len(self.outputs)


class _OfTask(ByStage):
  """Of a stage that has a branch for each task, the output of one."""

  def __init__(self, outputs: Mapping[str, Any], task: str):
    super().__init__(outputs)
    self.task = task

  def __getitem__(self, stage: str) -> Any:
    value = self.outputs[stage]
    return value[self.task] if isinstance(value, Mapping) and self.task in value else value
