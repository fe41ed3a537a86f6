"""Teachers: what has to be there of them before a student trains, and how like them it has become. Runs networks."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from transferlab import config, paths, pretrained, source_network
from transferlab.errors import UserError
from transferlab.pretrained import Weights

if TYPE_CHECKING:
  from transferlab.preparation import Prepared
  from transferlab.source_network import OtherNetwork


def check(prepared: 'Prepared') -> None:
  """That every teacher teaches.

  Raises:
    UserError: one whom no term asks, or whose answers are of other classes.
  """
  for stretch in prepared.stretches:
    for label, name in stretch.method.objective.teachers.items():
      if name and stretch.method.objective.terms[label].answers and not same_classes(prepared, name):
        source, mine = prepared.asked[name].source, ', '.join(prepared.loaded.info.classes)
        theirs = ', '.join(source.loaded.info.classes) if source else f'{_outputs(prepared.asked[name])} numbers'
        raise UserError(
          f"config.objective: term {label!r}: teacher {name!r} answers {theirs}, and the student's classes are {mine}; "
          "nearest: dict(term='hint', …), which compares features"
        )
  for name in prepared.run.teachers:
    if name not in prepared.asked:
      raise UserError(
        f"config.teachers.{name}: no term asks this teacher; nearest: dict(term='kd', teacher={name!r}) in "
        'config.objective (with weight=0.0 to compare with it only)'
      )


def same_classes(prepared: 'Prepared', name: str) -> bool:
  """Whether a teacher answers what the student is asked: as many numbers, of classes of the same names where known."""
  teacher, info = prepared.asked[name], prepared.loaded.info
  if teacher.source is None:
    return not info.tasks and _outputs(teacher) == info.outputs
  facts = lambda info: (info.task, info.classes, info.outputs, list(info.tasks))
  return facts(teacher.source.loaded.info) == facts(info)


def _outputs(teacher: 'OtherNetwork') -> int:
  """How many numbers the teacher's head gives."""
  leaves = paths.flatten(teacher.network.shapes()['params'][teacher.network.stages[-1]])
  return int(next(iter(leaves.values())).shape[-1])


def contents(teacher: 'OtherNetwork') -> dict[str, str]:
  """Digests of what a teacher is made of, by name: the data it learns from, or its weights."""
  if teacher.source is not None:
    return dict(teacher.source.identity['data'])
  assert teacher.weights is not None
  leaves = {kind: set(paths.flatten(tree)) for kind, tree in teacher.network.shapes().items()}
  return {'weights': pretrained.digest(teacher.weights, leaves)}


def weights(prepared: 'Prepared', pretrain: Callable[['Prepared', str], Weights]) -> dict[str, Weights]:
  """The weights of a run's teachers, by name.

  Args:
    pretrain: `pretrain(run, 'selected' or 'last')` gives those of a run that is over, or trains it.
  """
  return {
    name: teacher.weights if teacher.weights is not None else pretrain(_run(teacher), teacher.spec.which)
    for name, teacher in prepared.teachers.items()
  }


def _run(teacher: 'OtherNetwork') -> 'Prepared':
  assert teacher.source is not None
  return teacher.source


def record(prepared: 'Prepared') -> dict[str, dict[str, Any]]:
  """What results.json keeps of every teacher: where it comes from, digests of what made it, and its size."""
  return {
    name: {
      'from': f'sources/{config.digest(teacher.source.identity)}' if teacher.source else teacher.spec.weights,
      'digests': contents(teacher),
      'parameters': sum(math.prod(leaf.shape) for leaf in paths.flatten(teacher.network.shapes()['params']).values()),
      'dtype': getattr(teacher.spec, 'dtype', 'float32'),
    }
    for name, teacher in prepared.teachers.items()
  }


def answers(prepared: 'Prepared', taught: Mapping[str, Weights], x: Any) -> dict[str, Any]:
  """What every teacher of the same classes gives for the examples `x`, not preprocessed, in float32."""
  from transferlab import results
  from transferlab.evaluation import evaluate

  found = {}
  for name, own in taught.items():
    if not same_classes(prepared, name):
      continue
    teacher = prepared.asked[name]
    given = source_network.constants(teacher, own)
    size = min(prepared.run.evaluation.batch_size, len(x))
    ways = given['variables'], given['preprocessing'], x, size, results.mesh_of(prepared)
    found[name] = evaluate.predict(teacher.network, *ways)
  return found


def compared(outputs: Any, given: Mapping[str, Any], task: str) -> dict[str, float]:
  """How like its teachers a network is: 'agreement' and 'divergence', with the teacher's name where there are several.

  Args:
    outputs: of the network; `{task: …}` where it has several, which are not compared.
    given: `answers` on the same examples.
  """
  import numpy as np

  from transferlab.evaluation import fidelity

  if isinstance(outputs, Mapping):
    return {}
  found: dict[str, float] = {}
  for name, own in given.items():
    if np.shape(own) == np.shape(outputs):
      values = fidelity.compared(np.asarray(outputs), np.asarray(own), task)
      found |= {measure if len(given) == 1 else f'{measure} with {name}': value for measure, value in values.items()}
  return found


def lines(prepared: 'Prepared') -> list[str]:
  """A line for each teacher, for --dry_run."""
  shown = lambda one: f'{one["parameters"]:,} parameters in {one["dtype"]}, from {one["from"]}'
  return [f'{name}: {shown(one)}' for name, one in record(prepared).items()]
