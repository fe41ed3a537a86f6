"""What identifies a run: the values that determine its results, the contents of its data and weights, a format."""

from typing import TYPE_CHECKING, Any

from transferlab import config, pretrained, teachers
from transferlab.data.settings import FILES
from transferlab.data.sources import load
from transferlab.pretrained import Weights

if TYPE_CHECKING:
  from transferlab.preparation import Prepared

FORMAT = 1
FILE = 'a file: its digest says which'


def of(prepared: 'Prepared') -> dict[str, Any]:
  """'format', 'config' and 'data' (digests by name). Where files lie is outside it."""
  run = prepared.run
  data = {prepared.loaded.info.file or run.target.data.name: prepared.loaded.digest}
  for name, further in run.evaluation.sets.items():
    data[f'evaluation.sets.{name}: {further.name}'] = load(further, prepared.seed).digest
  if prepared.source is not None:
    data |= {f'source: {name}': digest for name, digest in prepared.source.identity['data'].items()}
  if prepared.weights is not None:
    data |= {'source weights': _digest(prepared, prepared.weights)}
  named = {_basename(name): digest for name, digest in data.items()}
  values = _without_folders(config.identity(run))
  if prepared.weights is not None and prepared.weights.contents is not None:
    values['source'] = FILE
  for name, teacher in prepared.teachers.items():
    named |= {f'teacher {name}: {_basename(part)}': digest for part, digest in teachers.contents(teacher).items()}
    if teacher.weights is not None and teacher.weights.contents is not None:
      values['teachers'][name] = {'weights': FILE, 'dtype': values['teachers'][name]['dtype']}
  return {'format': FORMAT, 'config': values, 'data': named}


def _digest(prepared: 'Prepared', weights: Weights) -> str:
  """Of the source's weights, or of what the transplant takes from a file of others."""
  taken: dict[str, set[str]] = {'params': set(), 'stats': set()}
  for origin in prepared.plan.origins if prepared.plan else ():
    taken[origin.kind] |= {origin.source} if origin.source else set()
  return pretrained.digest(weights, taken)


def _basename(name: str) -> str:
  return name.rpartition('/')[2]


def _without_folders(values: Any) -> Any:
  """Values with 'npz:FOLDER/FILE' as 'npz:FILE', and weights by their last part: digests tell them apart."""
  if isinstance(values, dict):
    return {
      key: _basename(value) if key == 'weights' and isinstance(value, str) else _without_folders(value)
      for key, value in values.items()
    }
  if isinstance(values, list):
    return [_without_folders(value) for value in values]
  kind, colon, path = values.partition(':') if isinstance(values, str) else ('', '', '')
  return f'{kind}:{_basename(path)}' if colon and kind in FILES and kind != 'tfds' else values
