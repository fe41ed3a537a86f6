"""What the flags of the command line do, as functions that return text. Reads runs; only `run` trains."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transferlab import config, experiment, folder, paths, teachers
from transferlab.cells import Study, candidates, expand
from transferlab.data import tokens
from transferlab.errors import UserError, unknown
from transferlab.preparation import Prepared, from_data, prepare
from transferlab.screen import Screen
from transferlab.settings import Run
from transferlab.study import run_study


def run(settings: Run | Study, workdir: Path, stop: Callable[[], bool], *, extend: bool) -> int:
  """Trains, shows the result, and returns the exit status: 1 where a cell failed."""
  screen = Screen()
  try:
    if isinstance(settings, Study):
      _, records = run_study(settings, workdir, screen=screen, stop=stop)
      screen.close()
      _show_table(settings, records, workdir)
      return int(any(record['status'] == 'failed' for record in records))
    results = experiment.run(settings, workdir, screen=screen, stop=stop, extend=extend)
    screen.close()
    print('\n'.join(_results(results, workdir)))
    return 0
  finally:
    screen.close()


def _show_table(study: Study, records: list[dict[str, Any]], workdir: Path) -> None:
  from rich.console import Console

  from transferlab import comparison, tables

  tables.show(comparison.summarise(records, study.table), Console(width=None if _terminal() else 200))
  further = {'tradeoff.png': study.table.tradeoff, 'along.png': study.table.along}
  files = ['table.md', 'table.csv', 'table.json', 'comparison.png', 'curves.png']
  print(f'{workdir}: {", ".join([*files, *(name for name, asked in further.items() if asked)])}')


def _terminal() -> bool:
  import sys

  return sys.stdout.isatty()


def _results(results: dict[str, Any], workdir: Path) -> list[str]:
  lines = []
  for which in ('selected', 'last'):
    measured = results[which]
    if measured is None:
      lines.append(f'{which}: none (no validation data)')
      continue
    step = results['best']['step'] if which == 'selected' and results['best'] else results['steps']
    lines.append(f'{which}' + (f' (step {step})' if step is not None else ''))
    lines += [f'  {split:<12}' + _numbers(values) for split, values in measured.items()]
  if 'source_test' in results:
    lines.append('source, on its own test data before and after training on the target')
    lines += [f'  {when:<12}' + _numbers(results['source_test'][when]) for when in ('before', 'after')]
  if len(results.get('probes', ())) > 1:
    lines += _depth(results['probes'], results['stage'])
  if 'chosen' in results:
    lines.append('chosen on validation data: ' + ', '.join(f'{k}={v}' for k, v in results['chosen'].items()))
  return [*lines, f'{workdir}: {results["seconds"]:.1f} s']


def _depth(probes: dict[str, Any], reported: str) -> list[str]:
  """A line per stage: features, penalty, and the first number of each set; the stage that was reported is marked."""
  first = next(iter(probes.values()))
  sets = [name for name, own in first.items() if isinstance(own, dict)]
  metric = next((name for name, value in first[sets[0]].items() if not isinstance(value, list)), None)
  if metric is None:
    return []
  rows = [('stage', 'features', 'penalty', *sets)]
  for stage, own in probes.items():
    values = [own[name][metric] for name in sets]
    penalty = '—' if own['penalty'] is None else f'{own["penalty"]:g}'
    marked = f'{stage} *' if stage == reported else stage
    rows.append((marked, str(own['features']), penalty, *('—' if v is None else f'{v:.4f}' for v in values)))
  widths = [max(map(len, column)) for column in zip(*rows)]
  table = ['  '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
  return [f'{metric} by depth (* reported above)', *(f'  {line}' for line in table)]


def _numbers(values: dict[str, Any]) -> str:
  shown = {name: value for name, value in values.items() if not isinstance(value, list)}
  return '  '.join(f'{name} {"—" if value is None else format(value, ".4f")}' for name, value in shown.items())


def help_config() -> str:
  """Every key of a run, and of an experiment."""
  return '\n'.join(
    [
      'A run:',
      config.document(Run),
      '',
      'An experiment (a config with axes):',
      config.document(Study),
    ]
  )


def listing(what: str) -> list[str]:
  """The names that a config may use. Raises `UserError` for an unknown kind of name."""
  if what not in LISTS:
    raise unknown('list', what, LISTS)
  return LISTS[what]()


def _networks() -> list[str]:
  from transferlab.networks import network

  return _described({name: network.network_function(name) for name in network.NETWORKS})


def _terms() -> list[str]:
  from transferlab.objectives import objective

  return _described({name: objective.term_function(name) for name in objective.TERMS})


def _balancers() -> list[str]:
  from transferlab.objectives import balancers

  return _described({name: config.named('balancer', name, balancers.BALANCERS) for name in balancers.BALANCERS})


def _transforms() -> list[str]:
  from transferlab.training import transforms

  return _described({name: transforms.transform_function(name) for name in transforms.TRANSFORMS})


def _described(functions: dict[str, Callable]) -> list[str]:
  """Name, keyword arguments and the first sentence of the docstring."""
  import inspect

  lines = []
  for name, function in functions.items():
    options = [
      f'{p.name}={p.default!r}' if p.default is not p.empty else p.name
      for p in inspect.signature(function).parameters.values()
      if p.kind is p.KEYWORD_ONLY
    ]
    lines.append(f'{name}({", ".join(options)})  {(function.__doc__ or "").strip().splitlines()[0]}')
  return lines


def _data() -> list[str]:
  from transferlab.data import bundled, settings, sources

  readers = bundled.READERS | {shown: sources.SOURCES[kind] for kind, shown in settings.FILES.items()}
  return [f'{name}  {(read.__doc__ or "").strip().splitlines()[0]}' for name, read in readers.items()]


def _optimizers() -> list[str]:
  from transferlab.training import optimizer

  return optimizer.optimizer_names()


def _schedules() -> list[str]:
  from transferlab.training.phases import Schedule

  return [Schedule.model_fields['name'].description or '']


def _metrics() -> list[str]:
  from transferlab.evaluation import metrics

  return [f'{task}: {", ".join(names)}' for task, names in metrics.METRICS.items()]


def _baselines() -> list[str]:
  from transferlab.evaluation import baselines

  return _described(baselines.BASELINES)


def _weights() -> list[str]:
  from transferlab.weights import mapping

  return list(dict.fromkeys(f'{origin.network} as {origin.name} writes it' for origin in mapping.origins()))


LISTS: dict[str, Callable[[], list[str]]] = {
  'networks': _networks,
  'terms': _terms,
  'balancers': _balancers,
  'data': _data,
  'transforms': _transforms,
  'optimizers': _optimizers,
  'schedules': _schedules,
  'metrics': _metrics,
  'baselines': _baselines,
  'weights': _weights,
}


def dry_run(settings: Run | Study) -> list[str]:
  """What a config would do, without doing it. Raises `UserError` as the run itself would."""
  if isinstance(settings, Run):
    return _dry_run(next(candidates(settings)).settings)
  cells = list(expand(settings))
  lines = [f'{len(cells)} cells, {sum(len(cell.candidates) for cell in cells)} runs', '']
  seen: set[str] = set()
  for cell in cells:
    row = ' / '.join(str(value) for name, value in cell.where.items() if name != settings.table.repeats)
    if row not in seen:
      seen.add(row)
      try:
        shown = [f'fails: {cell.failure}'] if cell.failure else _dry_run(cell.candidates[0].settings)
      except UserError as error:
        shown = [f'fails: {error}']
      lines += [f'== {row}', *shown, '']
  return lines


def _dry_run(settings: Run) -> list[str]:
  prepared = prepare(settings)
  lines = ['data', *(f'  {line}' for line in _data_lines(prepared))]
  if settings.baseline is not None and prepared.network is None:
    return [*lines, f'baseline {settings.baseline.name}']
  if prepared.source is not None:
    lines += ['source', *(f'  {line}' for line in _data_lines(prepared.source)), *_phase_lines(prepared.source)]
  if prepared.teachers:
    lines += ['teachers', *(f'  {line}' for line in teachers.lines(prepared))]
  lines += ['parameters', *(f'  {line}' for line in experiment.parameter_table(prepared))]
  if prepared.plan is not None:
    lines += ['transplant', *(f'  {line}' for line in [*prepared.plan.lines(), *prepared.notes])]
  if settings.baseline is not None:
    return [*lines, f'probe: {settings.baseline.name}, stage {settings.baseline.stage}']
  return [*lines, *_phase_lines(prepared)]


def _data_lines(prepared: Prepared) -> list[str]:
  loaded, data = prepared.loaded, prepared.run.target.data
  sizes = ', '.join(f'{len(rows)} {name}' for name, rows in loaded.splits.items())
  shape = 'x'.join(map(str, prepared.record.get('input_shape', ['text'])))
  own = loaded.info.tasks or {'': loaded.info}
  answers = prepared.loaded.streams and len(tokens.vocabulary(prepared.record['tokens']))
  tasks = [f'{name} {info.task}, {answers or info.outputs} outputs'.strip() for name, info in own.items()]
  used = loaded.labels.get('tasks') or {'': loaded.labels}
  counts = [f'{name} {count["train"] + count.get("validation", 0)}'.strip() for name, count in used.items()]
  drawn = [f'{count} of {name}' for count, name in zip(loaded.quotas, sorted(data.sets))]
  return [
    f'{data.name} ({loaded.info.origin}): {"; ".join(tasks)}, inputs {shape}',
    f'{sizes}; labels used: {", ".join(counts)}',
    *([f'an epoch draws {", ".join(drawn)}'] if drawn else []),
    *loaded.info.notes,
    *_token_lines(prepared),
  ]


def _token_lines(prepared: Prepared) -> list[str]:
  """What tokens make of the training texts."""
  record = prepared.record.get('tokens')
  if record is None:
    return []
  x = prepared.loaded.arrays(prepared.loaded.splits['train'], prepared.record)['x']
  known, names = x[x >= 0], tokens.vocabulary(record)
  strange = (known == names.index(tokens.UNKNOWN)).mean() if tokens.UNKNOWN in names and known.size else 0.0
  said = f'{len(names):,} tokens; of the training texts {strange:.1%} unknown, {(x < 0).mean():.1%} of places padding'
  full = '' if prepared.loaded.streams else f', {(x >= 0).all(axis=1).mean():.1%} of texts fill all {x.shape[1]} places'
  return [said + full]


def _phase_lines(prepared: Prepared) -> list[str]:
  import numpy as np

  from transferlab.training import report

  record = prepared.record
  arrays = prepared.loaded.arrays(prepared.loaded.splits['train'], record)
  own = {name: np.asarray(record[name], np.float32) for name in ('shift', 'scale')}
  lines = ['phases (operations and memory of one step, as the compiler reports them)']
  for stretch in prepared.stretches:
    cost = report.cost(stretch, prepared.network.shapes(), arrays, prepared.order().rows, own)
    shapes = paths.flatten(prepared.network.shapes()['params'])
    trained = sum(math.prod(leaf.shape) for path, leaf in shapes.items() if path in stretch.method.trainable)
    lines.append(
      f'  {stretch.name}: {stretch.steps} steps of {stretch.phase.optimizer}, {trained:,} of '
      f'{sum(math.prod(leaf.shape) for leaf in shapes.values()):,} parameters; {cost.operations / 1e6:.3g} MFLOP, '
      f'{cost.memory / 2**20:.3g} MiB, optimizer {cost.optimizer / 2**20:.3g} MiB'
    )
  return [*lines, *(f'  {line}' for line in prepared.caching)]


def find_rate(settings: Run | Study, workdir: Path, stop: Callable[[], bool]) -> list[str]:
  """Runs the learning-rate finder in the run's folder; its table. Raises `UserError` for an experiment."""
  from transferlab import rate_finder

  if isinstance(settings, Study):
    raise UserError('--find_rate takes the config of a run, and this is an experiment (it has axes)')
  screen = Screen()
  try:
    record = rate_finder.find(settings, workdir, screen=screen, stop=stop)
  finally:
    screen.close()
  return [*rate_finder.lines(record), f'{workdir}: rate_finder.json, rate_finder.png']


def use(workdir: Path, evaluate: str | None, predict: str | None) -> str:
  """Measures a run on data, or writes its predictions; returns what to print."""
  from transferlab import model

  trained, lines = model.load(workdir), []
  if evaluate is not None:
    data, split = _data_spec(evaluate, trained)
    lines.append(f'{evaluate}: ' + _numbers(trained.evaluate(data, split)))
  if predict is not None:
    data, split = _data_spec(predict, trained)
    name = ''.join(letter if letter.isalnum() or letter in '-_=' else '_' for letter in predict)
    path = workdir / 'predictions' / f'{name}.csv'
    lines.append(f'{path}: {trained.write_predictions(data, split, path)} rows')
  return '\n'.join(lines)


def sample(workdir: Path, prompt: str, how: str) -> str:
  """A prompt, and how the language model of a run goes on.

  Args:
    how: 'length=200,temperature=0.8', keys of `sampling.Sampling`.
  """
  from transferlab import model

  odd = [pair for pair in how.split(',') if how and '=' not in pair]
  if odd:
    raise UserError(f'--sample_with: {odd[0]!r} is not key=value')
  values = dict(pair.split('=', 1) for pair in how.split(',') if how)
  options = {key.strip(): config.literal(value) for key, value in values.items()}
  return prompt + model.load(workdir).generate(prompt, **options)


def _data_spec(spec: str, trained: Any) -> tuple[Any, str]:
  """A bare name of one of the run's own splits stands for its own data."""
  from transferlab import model

  own = trained.prepared.run.target.data
  return (own, spec) if spec in trained.prepared.loaded.splits else model.data_spec(spec, own)


def inspect(spec: str) -> list[str]:
  """What a run's folder, a checkpoint or a file of weights holds; `FILE,part=ema` takes another entry of the file.

  Raises:
    UserError: it is none of these.
  """
  from transferlab import pretrained

  place, _, part = spec.partition(',part=')
  path = Path(place).expanduser()
  if pretrained.is_foreign(place):
    from transferlab.weights import readers, report

    return list(report.lines(readers.read(place, part or None)))
  from transferlab import checkpoints, paths

  found = checkpoints.find(spec)
  record, tree = checkpoints.progress(found), checkpoints.load(found)
  lines = [f'{found}: format {record["format"]}, step {record.get("step")}, phase {record.get("phase")}']
  if (path / 'config.json').exists():
    lines.append(f'network: {folder.read_record(path / "config.json", "config")["config"].get("network")}')
  for kind in ('params', 'stats'):
    lines += [
      f'{kind}  {name}  {"x".join(map(str, leaf.shape))}  {leaf.dtype}'
      for name, leaf in paths.flatten(tree[kind]).items()
    ]
  return lines


def export(workdir: Path, spec: str) -> list[str]:
  """Writes a run's network to a file: `FILE[,names=torchvision][,which=last]`. Raises `UserError` for another spec."""
  from transferlab import checkpoints, model
  from transferlab.weights import export as exports

  place, *pairs = re.split(r',(?=\w+=)', spec)
  keys = [pair.partition('=')[0] for pair in pairs]
  if odd := [key for key in keys if key not in ('names', 'which') or keys.count(key) > 1]:
    raise unknown('key of --export (each once):', odd[0], ['names', 'which'])
  given = dict(pair.split('=', 1) for pair in pairs)
  which = given.get('which', 'selected')
  run_folder = model.folder_of(workdir, which)
  settings = experiment.load_run(run_folder)
  if settings.baseline is not None or settings.network is None:
    raise UserError(f'{workdir} is a baseline, of which no network is kept')
  path, network = checkpoints.find(str(run_folder)), settings.network
  variables, record = checkpoints.weights(path, which), checkpoints.progress(path)['preprocessing']
  variables = model.without_tasks(variables, settings.target.data.auxiliary)
  file, options = Path(place).expanduser(), {**(network.model_extra or {}), **from_data(network.name, record)}
  return exports.write(file, variables, network.name, options, record, given.get('names', 'ours'))
