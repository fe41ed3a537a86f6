"""From trained weights to numbers: validation during training, evaluation at the end, predictions. Writes files.

Choices are made on validation data; the test split is touched here only, once, when training is over.
"""

import csv
import dataclasses
import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transferlab import folder, source_network, teachers
from transferlab.data import labels, preprocessing
from transferlab.data.examples import Info, matched
from transferlab.data.sources import load
from transferlab.evaluation import baselines, bias, evaluate, metrics
from transferlab.preparation import Prepared
from transferlab.pretrained import Weights
from transferlab.training import parallel
from transferlab.training.methods import Stretch
from transferlab.training.state import Fitted, Validation

# Bytes up to which the outputs of frozen stages for validation data are kept while a phase lasts.
FEATURES = 2**30


def mesh_of(prepared: Prepared) -> Any:
  """The mesh that evaluation runs on."""
  return parallel.make_mesh(parallel.devices(prepared.run.parallel))


def arrays_of(record: Mapping[str, Any]) -> dict[str, Any]:
  """A preprocessing record as the arrays that the compiled functions take."""
  return {name: jnp.asarray(record[name], jnp.float32) for name in ('shift', 'scale')}


def buckets_of(prepared: Prepared) -> list[int]:
  """The lengths to which batches of texts are cut."""
  return prepared.record.get('tokens', {}).get('buckets', [])


def split(prepared: Prepared, name: str) -> tuple[np.ndarray, Any, np.ndarray]:
  """(x, label, id) of a split, not preprocessed."""
  return prepared.loaded.evaluated(name, prepared.record, prepared.window)


def measure(names: Sequence[str] | None, outputs: Any, label: Any, info: Info) -> dict[str, Any]:
  """Metrics of complete outputs, over the examples whose label is there: the task's usual ones, or those named.

  Where there are several tasks, each has those that are for it, as 'task/metric', and 'metric' is the mean over tasks
  that are not auxiliary. A name may be 'task/metric' too.
  """
  if not info.tasks:
    return _of_labelled(names or metrics.DEFAULTS[info.task], outputs, label, info)
  found: dict[str, Any] = {}
  for task, own in info.tasks.items():
    asked = metrics.of_task(names, task, own.task)
    values = _of_labelled(asked, outputs[task], label[task], own) if asked else {}
    found.update({f'{task}/{name}': value for name, value in values.items()})
  main = [task for task in info.tasks if task not in info.auxiliary]
  for name in dict.fromkeys(key.partition('/')[2] for key in found):
    having = [task for task in main if f'{task}/{name}' in found]
    there = [task for task in having if labels.known(np.asarray(label[task])).any()]
    each = [found[f'{task}/{name}'] for task in there]
    numbers = [value for value in each if isinstance(value, float)]
    if having and not any(isinstance(value, list) for value in each):
      # A task whose value has no meaning, as of outputs that are not finite, leaves the mean without one.
      found[name] = float(np.mean(numbers)) if numbers and len(numbers) == len(each) else None
  return found


def _of_labelled(names: Sequence[str], outputs: Any, label: Any, info: Info) -> dict[str, Any]:
  label = np.asarray(label)
  there = labels.known(label)
  return metrics.compute(names, np.asarray(outputs)[there], label[there], info.task)


def validation(runs: Sequence[Prepared]) -> Validation | None:
  """How the loop judges the members; None where they have no validation data."""
  first = runs[0]
  if 'validation' not in first.loaded.splits:
    return None
  population, info, name = len(runs) > 1, first.loaded.info, first.select_metric()
  parts = [split(run, 'validation')[:2] for run in runs]
  records = [arrays_of(run.record) for run in runs]
  x: Any = parts[0][0]
  if population:
    x = jax.tree.map(lambda *leaves: np.stack(leaves), *[part[0] for part in parts])
  record = {k: jnp.stack([r[k] for r in records]) for k in records[0]} if population else records[0]
  tasks = [own.task for own in info.tasks.values()] or [info.task]
  usual = [each for task in tasks for each in metrics.CHEAP[task]]
  names = list(dict.fromkeys([name, *usual]))
  mesh, count = mesh_of(first), jax.tree.leaves(x)[0].shape[1 if population else 0]
  batch_size = min(first.run.evaluation.batch_size, count)

  features: dict[str, Any] = {}  # what the frozen stages of a phase give, for one phase at a time

  def judge(variables: Any, stretch: Stretch) -> list[dict[str, Any]]:
    predict = functools.partial(evaluate.predict, first.network, variables, record)
    prefix, ways = stretch.prefix, (batch_size, mesh, population)
    if info.task == 'next_token':
      outputs = evaluate.next_tokens(first.network, variables, x, population)
    elif prefix is None or sum(len(part[0]) for part in parts) * prefix.each > FEATURES:
      outputs = predict(x, *ways, buckets=buckets_of(first))
    else:
      if stretch.name not in features:
        features.clear()
        features[stretch.name] = predict(x, *ways, stop=prefix.start)
      outputs = predict(features[stretch.name], *ways, start=prefix.start)
    each = [_member(outputs, number) for number in range(len(runs))] if population else [outputs]
    return [measure(names, own, label, info) for own, (_, label) in zip(each, parts)]

  return Validation(judge, name, metrics.higher_is_better(name))


def _member(outputs: Any, number: int) -> Any:
  return {task: own[number] for task, own in outputs.items()} if isinstance(outputs, Mapping) else outputs[number]


def outputs_on(prepared: Prepared, variables: Any, x: Any) -> Any:
  """The network's outputs on raw inputs; of a language model how likely each next token was."""
  if isinstance(x, Mapping):
    return evaluate.next_tokens(prepared.network, variables, x)
  batch_size = min(prepared.run.evaluation.batch_size, len(x))
  record, buckets = arrays_of(prepared.record), buckets_of(prepared)
  return evaluate.predict(prepared.network, variables, record, x, batch_size, mesh_of(prepared), buckets=buckets)


def sets(prepared: Prepared, test: bool = True) -> dict[str, tuple[np.ndarray, Any, np.ndarray]]:
  """Everything that is evaluated at the end, by name: the splits, and the further data sets' test splits."""
  measured = [name for name in prepared.loaded.splits if test or name in ('train', 'validation')]
  found = {name: split(prepared, name) for name in measured}
  if not test:
    return found
  for name, data in prepared.run.evaluation.sets.items():
    other = load(data, prepared.seed)
    x, label, ids = other.evaluated('test', prepared.record, prepared.window)
    found[name] = x, matched(label, other.info, prepared.loaded.info, data.name), ids
  return found


def final(
  prepared: Prepared,
  fitted: Fitted,
  predictions: Path | None = None,
  test: bool = True,
  taught: Mapping[str, Weights] = {},
) -> dict[str, Any]:
  """The part of results.json that was measured: 'last' and 'selected', by split and metric.

  Args:
    predictions: folder for the predictions per example, of the selected weights (else the last); None: not written.
    test: False leaves out all but training and validation data.
    taught: weights of the teachers, with whose answers the network's are compared. What is kept of a teacher, and its
      own metrics by split, stand under 'teachers'. The offsets of `evaluation.correct` stand under 'offsets'.
  """
  found: dict[str, Any] = {'last': {}, 'selected': None}
  names, info = prepared.run.evaluation.metrics, prepared.loaded.info
  candidates = {'last': fitted.last, **({'selected': fitted.selected} if fitted.selected is not None else {})}
  everything = sets(prepared, test)
  given = {name: teachers.answers(prepared, taught, x) for name, (x, _, _) in everything.items()} if taught else {}
  if taught:
    judge = lambda k, outputs: measure(names, outputs, everything[k][1], info)
    judged = lambda name: {k: judge(k, own[name]) for k, own in given.items() if name in own}
    found['teachers'] = {name: {**kept, **judged(name)} for name, kept in teachers.record(prepared).items()}
  for which, variables in candidates.items():
    measured, answered = {}, {}
    for name, (x, label, ids) in everything.items():
      outputs = answered[name] = outputs_on(prepared, variables, x)
      measured[name] = measure(names, outputs, label, info) | teachers.compared(outputs, given.get(name, {}), info.task)
      if predictions is not None and which == list(candidates)[-1]:
        write_predictions(predictions / f'{name}.csv', outputs, ids, info, label)
    found[which] = measured
    if test and prepared.run.evaluation.correct:
      offsets, corrected = _corrected(prepared, answered, everything)
      found.setdefault('offsets', {})[which] = offsets
      measured.update(corrected)
  return found


# On what the offset of `evaluation.correct` is chosen, and what the sets that are measured with it are called.
CHOOSING = {'validation': '_corrected', 'test': '_corrected_on_test'}


def _corrected(
  prepared: Prepared, answered: Mapping[str, Any], everything: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, Any]]:
  """The offsets that `evaluation.correct` asks for, by what chose them; and metrics with them, by set."""
  classes, measured = prepared.run.evaluation.correct or [], {}
  offsets = {name: bias.best_offset(answered[name], everything[name][1], classes) for name in CHOOSING}
  for name in [name for name in everything if name not in ('train', 'validation')]:
    for chosen, ending in CHOOSING.items():
      moved = bias.shifted(answered[name], classes, offsets[chosen])
      asked = prepared.run.evaluation.metrics
      measured[name + ending] = measure(asked, moved, everything[name][1], prepared.loaded.info)
  return offsets, measured


def forgotten(prepared: Prepared, fitted: Fitted, weights: Weights | None, test: bool = True) -> dict[str, Any]:
  """What the target's training has done to the source: its network on its own test split, with its preprocessing.

  Returns:
    'source_test': metrics of the source 'before', 'after' (the target's selected weights, else the last, back where the
    transplant took them from) and 'last' (the last). Nothing where the config does not ask, or `test` is False.
  """
  source = prepared.source
  if not (test and prepared.run.evaluation.forgotten) or source is None or weights is None:
    return {}
  x, label, _ = split(source, 'test')
  same = (source.loaded.info.task, source.loaded.info.tasks) == (prepared.loaded.info.task, prepared.loaded.info.tasks)
  names = prepared.run.evaluation.metrics if same else None

  def measured(variables: Any) -> dict[str, Any]:
    return measure(names, outputs_on(source, variables, x), label, source.loaded.info)

  last = measured(source_network.remains(prepared, weights, fitted.last))
  after = last
  if fitted.selected is not None:
    after = measured(source_network.remains(prepared, weights, fitted.selected))
  return {'source_test': {'before': measured(weights.variables), 'after': after, 'last': last}}


def final_baseline(
  prepared: Prepared, variables: Any = None, predictions: Path | None = None, test: bool = True
) -> dict[str, Any]:
  """As `final`, for a classical method, of which validation data choose penalty and stage.

  Without validation data the last stage before the head is reported.

  Args:
    variables: of the network that is probed; None for a baseline on raw inputs.
    predictions, test: as in `final`.

  Returns:
    Beside 'last' and 'selected': 'warnings'; and for a probe 'probes', `{stage: {set: {metric: value}, 'penalty': …,
    'features': how many}}` in the order of the stages, 'stage', the one reported, and 'standardized'.
  """
  baseline, info, asked = prepared.run.baseline, prepared.loaded.info, prepared.run.evaluation.metrics
  assert baseline is not None
  everything = sets(prepared, test)
  probes = _probes(prepared, variables, everything)
  measured = {
    stage: {name: measure(asked, probe.outputs(name), label, info) for name, (_, label, _) in everything.items()}
    for stage, probe in probes.items()
  }
  stage = _chosen_stage(probes)
  if predictions is not None:
    for name, (_, label, ids) in everything.items():
      outputs = probes[stage].outputs(name)
      # One logit of class 1 in place of two columns.
      outputs = outputs[:, 1:2] - outputs[:, :1] if info.task == 'binary' else outputs
      write_predictions(predictions / f'{name}.csv', outputs, ids, info, label)
  notes = [f'{baseline.name} on {key}: {probe.fitted.note}' for key, probe in probes.items() if probe.fitted.note]
  selected = measured[stage] if 'validation' in measured[stage] else None
  found = {'last': measured[stage], 'selected': selected, 'warnings': notes}
  return {**found, **_by_stage(baseline, probes, measured, stage)}


def _by_stage(
  baseline: baselines.Baseline, probes: Mapping[str, '_Probe'], measured: Mapping[str, Any], stage: str
) -> dict[str, Any]:
  """What results.json holds of a probe; nothing for a baseline on raw inputs that had nothing to choose."""
  if baseline.stage is None and baseline.penalties is None:
    return {}
  found = {
    key: {**measured[key], 'penalty': probe.fitted.penalty, 'features': probe.inputs['train'][0].size}
    for key, probe in probes.items()
  }
  return {'probes': found, 'stage': stage, 'standardized': baseline.standardizes}


def measure_baseline(prepared: Prepared, variables: Any = None) -> dict[str, Any]:
  """The metric that chooses, of a classical method on validation data: `{'validation': {metric: value}}`."""
  everything = {name: own for name, own in sets(prepared, test=False).items() if name in ('train', 'validation')}
  probes = _probes(prepared, variables, everything)
  outputs = probes[_chosen_stage(probes)].outputs('validation')
  name = prepared.select_metric()
  return {'validation': measure([name], outputs, everything['validation'][1], prepared.loaded.info)}


@dataclasses.dataclass(frozen=True, eq=False)
class _Probe:
  """A classical method fitted to the training data.

  Attributes:
    inputs: of every set that is measured.
    score: on validation data, the larger the better; None without.
  """

  fitted: baselines.Fitted
  inputs: dict[str, np.ndarray]
  score: float | None

  def outputs(self, name: str) -> np.ndarray:
    """On all examples of a set."""
    return self.fitted.predict(self.inputs[name])


def _probes(prepared: Prepared, variables: Any, everything: Mapping[str, Any]) -> dict[str, _Probe]:
  """The method fitted at each stage that the config means, in their order; 'inputs' stands for raw inputs."""
  baseline, info = prepared.run.baseline, prepared.loaded.info
  assert baseline is not None
  classes = None if info.task == 'regression' else max(2, len(info.classes))
  found = {}
  for stage, inputs in _inputs(prepared, baseline, variables, everything).items():
    label = everything['train'][1]
    there = labels.known(label)
    fits = baselines.fits(baseline, inputs['train'][there], label[there], num_classes=classes)
    if 'validation' not in everything:
      found[stage] = _Probe(fits[0], inputs, None)
      continue
    x, label = inputs['validation'], everything['validation'][1]
    scores = [_score(prepared, each.predict(x), label) for each in fits]
    best = int(np.argmax(scores))  # the first of equals: the strongest penalty
    found[stage] = _Probe(fits[best], inputs, scores[best])
  return found


def _inputs(
  prepared: Prepared, baseline: baselines.Baseline, variables: Any, everything: Mapping[str, Any]
) -> dict[str, dict[str, np.ndarray]]:
  """What the method sees of each set, by stage."""
  from transferlab.evaluation import features

  if baseline.stage is None:
    record = [np.asarray(prepared.record[name], np.float32) for name in ('shift', 'scale')]
    return {'inputs': {name: preprocessing.apply(np.asarray(x), *record) for name, (x, _, _) in everything.items()}}
  stages = features.chosen(prepared.network, baseline.stage)
  of = functools.partial(
    features.features,
    prepared.network,
    variables,
    arrays_of(prepared.record),
    stages=stages,
    pool=baseline.pool,
    batch_size=prepared.run.evaluation.batch_size,
    mesh=mesh_of(prepared),
  )
  found = {name: of(x) for name, (x, _, _) in everything.items()}
  return {stage: {name: own[stage] for name, own in found.items()} for stage in stages}


def _score(prepared: Prepared, outputs: np.ndarray, labels: Any) -> float:
  """The metric that chooses, so that larger is better; minus infinity where it has no value."""
  return prepared.score(measure([prepared.select_metric()], outputs, labels, prepared.loaded.info))


def _chosen_stage(probes: Mapping[str, _Probe]) -> str:
  """The stage that validation data choose, of equally good ones the first; without such data the last but the head."""
  stages = list(probes)
  scores = [probe.score for probe in probes.values() if probe.score is not None]
  return stages[int(np.argmax(scores)) if scores else max(0, len(stages) - 2)]


def probabilities(outputs: np.ndarray, task: str) -> np.ndarray:
  """[examples, classes] from logits: softmax, or the sigmoid and its complement for one logit."""
  outputs = np.asarray(outputs, np.float64)
  if task == 'binary':
    logit = outputs.reshape(len(outputs), -1)[:, 0]
    outputs = np.stack([np.zeros_like(logit), logit], axis=1)
  powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
  return powers / powers.sum(axis=1, keepdims=True)


def write_predictions(path: Path, outputs: Any, ids: np.ndarray, info: Info, label: Any = None) -> None:
  """A CSV row per example: id, the label where there is one, the predicted class and the probabilities (or values).

  Args:
    label: as in `Examples`; None: there are none, and no column for them.
  """
  if info.tasks:
    for task, own in info.tasks.items():
      write_predictions(path.with_name(f'{path.stem}_{task}.csv'), outputs[task], ids, own, label and label[task])
    return
  if info.task == 'next_token':
    return  # a row for every token would be larger than the text
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  regression = info.task == 'regression'
  values = np.asarray(outputs, np.float64) if regression else probabilities(outputs, info.task)
  truth = [] if label is None else [f'target_{name}' for name in info.targets] if regression else ['label']
  there = np.ones(len(ids), bool) if label is None else labels.known(np.asarray(label))
  writer.writerow(['id', *truth, *([] if regression else ['class']), *(info.targets if regression else info.classes)])
  for row, number in enumerate(ids):
    true = [] if label is None else list(np.ravel(label[row])) if regression else [info.classes[int(label[row])]]
    true = true if there[row] else [''] * len(true)
    best = [] if regression else [info.classes[int(values[row].argmax())]]
    writer.writerow([int(number), *true, *best, *(f'{value:.6g}' for value in values[row])])
  folder.write_text(path, text.getvalue())
