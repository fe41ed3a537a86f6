"""From trained weights to numbers: validation during training, evaluation at the end, predictions. Writes files.

Choices are made on validation data; the test split is touched here only, once, when training is over.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from transferlab import folder
from transferlab.data import preprocessing
from transferlab.data.examples import Info, matched
from transferlab.data.sources import load
from transferlab.evaluation import evaluate, metrics
from transferlab.preparation import Prepared
from transferlab.training import parallel
from transferlab.training.state import Fitted, Validation


def mesh_of(prepared: Prepared) -> Any:
  """The mesh that evaluation runs on."""
  return parallel.make_mesh(parallel.devices(prepared.run.parallel))


def arrays_of(record: Mapping[str, Any]) -> dict[str, Any]:
  """A preprocessing record as the arrays that the compiled functions take."""
  return {name: jnp.asarray(record[name], jnp.float32) for name in ('shift', 'scale')}


def split(prepared: Prepared, name: str) -> tuple[np.ndarray, Any, np.ndarray]:
  """(x, label, id) of a split, not preprocessed."""
  return prepared.loaded.evaluated(name, prepared.record)


def measure(names: Sequence[str] | None, outputs: Any, labels: Any, info: Info) -> dict[str, Any]:
  """Metrics of complete outputs: the task's usual ones, or those named; 'task/metric' where there are several tasks."""
  if not info.tasks:
    return metrics.compute(names or metrics.DEFAULTS[info.task], outputs, labels, info.task)
  found: dict[str, Any] = {}
  for task, own in info.tasks.items():
    values = metrics.compute(names or metrics.DEFAULTS[own.task], outputs[task], labels[task], own.task)
    found.update({f'{task}/{name}': value for name, value in values.items()})
  return found


def validation(runs: Sequence[Prepared]) -> Validation | None:
  """How the loop judges the members; None where they have no validation data."""
  first = runs[0]
  if 'validation' not in first.loaded.splits:
    return None
  population, info, name = len(runs) > 1, first.loaded.info, first.select_metric()
  parts = [split(run, 'validation')[:2] for run in runs]
  records = [arrays_of(run.record) for run in runs]
  x = np.stack([part[0] for part in parts]) if population else parts[0][0]
  record = {k: jnp.stack([r[k] for r in records]) for k in records[0]} if population else records[0]
  usual = ['mean_squared_error'] if info.task == 'regression' else ['accuracy', 'log_loss']
  names = list(dict.fromkeys([name, *usual]))
  mesh, batch_size = mesh_of(first), min(first.run.evaluation.batch_size, x.shape[1 if population else 0])

  def judge(variables: Any) -> list[dict[str, Any]]:
    outputs = evaluate.predict(first.network, variables, record, x, batch_size, mesh, population)
    each = [_member(outputs, number) for number in range(len(runs))] if population else [outputs]
    return [measure(names, own, label, info) for own, (_, label) in zip(each, parts)]

  select = f'{next(iter(info.tasks))}/{name}' if info.tasks else name
  return Validation(judge, select, metrics.higher_is_better(name))


def _member(outputs: Any, number: int) -> Any:
  return {task: own[number] for task, own in outputs.items()} if isinstance(outputs, Mapping) else outputs[number]


def outputs_on(prepared: Prepared, variables: Any, x: np.ndarray) -> Any:
  """The network's outputs on raw inputs."""
  batch_size = min(prepared.run.evaluation.batch_size, len(x))
  return evaluate.predict(prepared.network, variables, arrays_of(prepared.record), x, batch_size, mesh_of(prepared))


def sets(prepared: Prepared, test: bool = True) -> dict[str, tuple[np.ndarray, Any, np.ndarray]]:
  """Everything that is evaluated at the end, by name: the splits, and the further data sets' test splits."""
  found = {name: split(prepared, name) for name in prepared.loaded.splits if test or name != 'test'}
  if not test:
    return found
  for name, data in prepared.run.evaluation.sets.items():
    other = load(data, prepared.seed)
    x, label, ids = other.evaluated('test', prepared.record)
    found[name] = x, matched(label, other.info, prepared.loaded.info, data.name), ids
  return found


def final(prepared: Prepared, fitted: Fitted, predictions: Path | None = None, test: bool = True) -> dict[str, Any]:
  """The part of results.json that was measured: 'last' and 'selected', by split and metric.

  Args:
    predictions: folder for the predictions per example, of the selected weights (else the last); None: not written.
    test: False leaves out all but training and validation data.
  """
  found: dict[str, Any] = {'last': {}, 'selected': None}
  names, info = prepared.run.evaluation.metrics, prepared.loaded.info
  candidates = {'last': fitted.last, **({'selected': fitted.selected} if fitted.selected is not None else {})}
  everything = sets(prepared, test)
  for which, variables in candidates.items():
    measured = {}
    for name, (x, label, ids) in everything.items():
      outputs = outputs_on(prepared, variables, x)
      measured[name] = measure(names, outputs, label, info)
      if predictions is not None and which == list(candidates)[-1]:
        write_predictions(predictions / f'{name}.csv', outputs, ids, info, label)
    found[which] = measured
  return found


def baseline_outputs(prepared: Prepared, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
  """(outputs, labels) of a classical method, fitted to the training split, on the named splits."""
  from transferlab.evaluation import baselines

  baseline, info = prepared.run.baseline, prepared.loaded.info
  assert baseline is not None
  shift, scale = (np.asarray(prepared.record[name], np.float32) for name in ('shift', 'scale'))
  raw = {name: np.asarray(split(prepared, name)[0]) for name in {'train', *names}}
  inputs = {name: preprocessing.apply(x, shift, scale) for name, x in raw.items()}
  labels = {name: split(prepared, name)[1] for name in {'train', *names}}
  classes = None if info.task == 'regression' else max(2, len(info.classes))
  predict = baselines.fit(baseline, inputs['train'], labels['train'], num_classes=classes, seed=prepared.seed)
  return {name: predict(inputs[name]) for name in names}, labels


def measure_baseline(prepared: Prepared, names: Sequence[str]) -> dict[str, Any]:
  """Metrics of a classical method on the named splits."""
  outputs, labels = baseline_outputs(prepared, names)
  chosen = prepared.run.evaluation.metrics
  return {name: measure(chosen, outputs[name], labels[name], prepared.loaded.info) for name in names}


def final_baseline(prepared: Prepared, test: bool = True) -> dict[str, Any]:
  """As `final`, for a classical method; its value is what validation selects."""
  names = [name for name in prepared.loaded.splits if test or name != 'test']
  measured = measure_baseline(prepared, names)
  return {'last': measured, 'selected': measured if 'validation' in measured else None}


def probabilities(outputs: np.ndarray, task: str) -> np.ndarray:
  """[examples, classes] from logits: softmax, or the sigmoid and its complement for one logit."""
  outputs = np.asarray(outputs, np.float64)
  if task == 'binary':
    logit = outputs.reshape(len(outputs), -1)[:, 0]
    outputs = np.stack([np.zeros_like(logit), logit], axis=1)
  powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
  return powers / powers.sum(axis=1, keepdims=True)


def write_predictions(path: Path, outputs: Any, ids: np.ndarray, info: Info, labels: Any = None) -> None:
  """A CSV row per example: id, the label where there is one, the predicted class and the probabilities (or values)."""
  if info.tasks:
    for task, own in info.tasks.items():
      write_predictions(path.with_name(f'{path.stem}_{task}.csv'), outputs[task], ids, own, labels and labels[task])
    return
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  regression = info.task == 'regression'
  values = np.asarray(outputs, np.float64) if regression else probabilities(outputs, info.task)
  truth = [] if labels is None else [f'target_{name}' for name in info.targets] if regression else ['label']
  writer.writerow(['id', *truth, *([] if regression else ['class']), *(info.targets if regression else info.classes)])
  for row, number in enumerate(ids):
    true = [] if labels is None else list(np.ravel(labels[row])) if regression else [info.classes[int(labels[row])]]
    best = [] if regression else [info.classes[int(values[row].argmax())]]
    writer.writerow([int(number), *true, *best, *(f'{value:.6g}' for value in values[row])])
  folder.write_text(path, text.getvalue())
