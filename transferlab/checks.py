"""Whether the parts of a run fit one another, before anything is compiled: each check raises `UserError` if not."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from transferlab import paths
from transferlab.data import preprocessing
from transferlab.data.examples import matched
from transferlab.data.sources import Loaded, load
from transferlab.errors import UserError, unknown
from transferlab.evaluation import metrics
from transferlab.settings import Run


def size(name: str, network: Any) -> None:
  """That the parameters fit the memory of the machine, through which every checkpoint goes."""
  leaves = paths.flatten(network.shapes()['params']).values()
  size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  if size > memory:
    raise UserError(
      f'config.network: the parameters of this {name!r} take {size / 2**30:,.0f} GiB, and the machine has '
      f'{memory / 2**30:,.0f} GiB of memory'
    )


def places(network: Any, record: Mapping[str, Any], language: bool) -> None:
  """That a language model answers at every place, and others do not."""
  import jax

  if 'tokens' not in record:
    return
  outputs, _ = jax.eval_shape(network.apply, network.shapes(), preprocessing.example(record, 2))
  every = any(leaf.ndim > 2 for leaf in jax.tree.leaves(outputs[network.stages[-1]]))
  if language and not every:
    ways = "nearest: lstm, gru, decoder, with pool='none'"
    raise UserError(f'config.network: a language model answers at every place; {ways}')
  if every and not language:
    raise UserError("config.network: it answers at every place, and a text has one label; nearest: pool='last'")


def choices(run: Run, loaded: Loaded) -> None:
  """Names of metrics, and that what chooses has validation data to choose on."""
  names = [*(run.evaluation.metrics or []), *([run.evaluation.select] if run.evaluation.select else [])]
  if loaded.info.tasks:
    kinds = {name: own.task for name, own in loaded.info.tasks.items()}
    metrics.check_tasks(names, kinds)
    select, main = (
      run.evaluation.select,
      {name: kind for name, kind in kinds.items() if name not in loaded.info.auxiliary},
    )
    if select and '/' not in select:
      metrics.check_tasks([select], main)
  else:
    metrics.check(names, loaded.info.task)
  _correction(run, loaded)
  if 'validation' in loaded.splits:
    return
  if run.choose:
    raise UserError('config.choose needs validation data: set config.target.data.validation')
  if run.evaluation.correct:
    raise UserError('evaluation.correct chooses an offset on validation data: set config.target.data.validation')
  if any(phase.interpolate and len(phase.interpolate) > 1 for phase in run.phases):
    raise UserError('interpolate chooses among several shares on validation data: set config.target.data.validation')
  if any(phase.early_stop for phase in run.phases):
    raise UserError('early_stop needs validation data: set config.target.data.validation')


def _correction(run: Run, loaded: Loaded) -> None:
  """That the classes whose logits get an offset are there, and others beside them."""
  classes = run.evaluation.correct or []
  if classes and (loaded.info.tasks or loaded.info.task != 'classification'):
    raise UserError('config.evaluation.correct is for one label of several classes')
  for number in classes:
    if number >= loaded.info.outputs:
      raise unknown('config.evaluation.correct: class', str(number), map(str, range(loaded.info.outputs)))
  if classes and len(set(classes)) == loaded.info.outputs:
    raise UserError('config.evaluation.correct: some class has to stay as it is')
  for name in run.evaluation.sets if classes else ():
    if name.endswith(('_corrected', '_corrected_on_test')):
      raise UserError(f'config.evaluation.sets.{name}: evaluation.correct gives sets of such names')


def labels(loaded: Loaded, stretches: Sequence[Any]) -> None:
  """That no term looks at the labels of a task of which there are none, as with data.labelled=False."""
  counts = loaded.labels.get('tasks') or {None: loaded.labels}
  for stretch in stretches:
    objective = stretch.method.objective
    for name, term in objective.terms.items() if stretch.steps else ():
      task = objective.tasks[name]
      if 'labels' in term.needs and task in counts and not counts[task]['train']:
        none = 'data.labelled=False says that there are none' if task is None else f'no training example has {task!r}'
        raise UserError(f"config.objective: term {name!r} looks at labels, and {none}; nearest: dict(term='kd')")


def representation(network: Any, stretches: Sequence[Any]) -> None:
  """That terms look at nothing before the representation whose gradients are balanced, which those leave out."""
  from transferlab.networks import sharing
  from transferlab.training.terms import stages_read

  for stretch in stretches:
    balancer = stretch.method.objective.balancer
    if balancer is None or balancer.level != 'representation':
      continue
    place = network.stages.index(sharing.last_shared(network))
    read = stages_read(stretch.method, network.shapes(), stretch.example)[0]
    for stage in network.stages[:place]:
      if stage in read:
        raise UserError(
          f'config.balancing: a term looks at stage {stage!r}, before the representation that is balanced, '
          f"{network.stages[place]!r}; nearest: level='parameters'"
        )


def baseline(run: Run, loaded: Loaded) -> None:
  """That the method is one for the task, and that there is something to choose its penalty with."""
  from transferlab.evaluation import baselines

  assert run.baseline is not None
  if loaded.info.tasks:
    raise UserError(f'config.baseline learns one label, not {", ".join(loaded.info.tasks)}; data.label names one')
  baselines.check(run.baseline, loaded.info.task == 'regression')
  if len(run.baseline.penalties or ()) > 1 and 'validation' not in loaded.splits:
    raise UserError(
      'config.baseline.penalties: validation data choose among several, and there are none; set '
      'config.target.data.validation, or give one penalty'
    )


def probe(run: Run, network: Any, loaded: Loaded, record: Mapping[str, Any]) -> None:
  """That the network has the stage, and the machine room for its features."""
  from transferlab.evaluation import features

  assert run.baseline is not None
  stages = features.chosen(network, run.baseline.stage)
  widths = features.widths(network, stages, preprocessing.example(record, 1), run.baseline.pool)
  features.check_size(sum(map(len, loaded.splits.values())), widths)
  for name in ('penalty', 'features'):
    if name in run.evaluation.sets:
      raise UserError(f'config.evaluation.sets.{name}: the results of a probe have a number of that name')


def sets(run: Run, loaded: Loaded, record: Mapping[str, Any]) -> None:
  """That further evaluation sets fit the network, and that there are as many devices as asked for."""
  from transferlab.training import parallel

  parallel.devices(run.parallel)
  shape, info = record['input_shape'], loaded.info
  for name, data in run.evaluation.sets.items():
    if name in loaded.splits:
      raise UserError(f'config.evaluation.sets.{name}: the target has a split of that name')
    other = load(data, run.seed)
    # Encoded tables take the target's columns, whatever else they hold.
    inputs = shape if 'encoding' in record else other.preprocessing.get('input_shape')
    if inputs != shape:
      raise UserError(f'config.evaluation.sets.{name}: inputs {inputs}, and those of the target are {shape}')
    matched(other.examples.arrays['label'], other.info, info, f'config.evaluation.sets.{name}')
