"""Many runs -> means, intervals and paired tests: what a table says, before it is put into words.

Pure: records of cells in, a `Summary` out. Which cells there are and how they run is the experiment's affair;
tables.py renders and writes the summary, plots.py draws it.
"""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from transferlab import config, errors
from transferlab.evaluation import metrics
from transferlab.table_settings import Table

Record = Mapping[str, Any]
Verdict = Literal['win', 'tie', 'loss']
# Rows differ where the corrected p value is at most this.
LONGEST = 40  # characters of a chosen value that a table shows
LEVEL = 0.05


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of one block; None, or an empty tuple or dict, stands for what has no meaning."""

  name: str
  values: dict[str, float]  # the metric of each repeat
  n: int
  mean: float | None
  half_width: float | None  # of the t interval
  difference: float | None  # mean paired difference to the baseline
  p_value: float | None  # corrected
  verdict: Verdict | None
  parameters: tuple[int, ...]  # distinct numbers of trained parameters
  steps_to_reach: float | None  # median over the repeats that reached the baseline's validation metric
  reached: int
  could_reach: int
  seconds: float | None  # mean of a repeat
  seconds_total: float
  gap: float | None  # the metric on training data minus that on the split
  chosen: dict[str, dict[str, int]]  # key -> value -> how often it was chosen
  labels: tuple[tuple[int, int], ...]  # distinct (training, validation)
  failures: dict[str, int]  # reason -> how often
  forgotten: float | None = None  # the metric on the source's test split: by how much it is worse than before
  forgotten_half_width: float | None = None
  also: dict[str, float] = dataclasses.field(default_factory=dict)  # entry of `also` -> mean
  also_half_width: dict[str, float] = dataclasses.field(default_factory=dict)
  delta_m: float | None = None  # per cent
  delta_m_half_width: float | None = None
  gained: dict[str, float] = dataclasses.field(default_factory=dict)  # task -> its mean share of Δm, per cent
  gained_half_width: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Block:
  """The rows for one value of each axis that is neither rows nor repeats."""

  axes: dict[str, Any]
  rows: tuple[Row, ...]


@dataclasses.dataclass(frozen=True)
class Summary:
  """A whole table: pure data, from which every rendering is made."""

  table: Table
  blocks: tuple[Block, ...]
  comparisons: int
  grids: dict[str, tuple[str, ...]]  # 'learning_rate from 0.1, 0.01' -> the rows that chose from it
  stands_in: tuple[str, ...]
  seconds: float
  runs: int
  failed: int
  unselected: int  # runs whose last step stands in for a selected one


def summarise(records: Iterable[Record], table: Table) -> Summary:
  """Means, intervals and paired tests of an experiment's cells.

  Args:
    records: one per finished or failed cell; of several for the same cell the last counts.
    table: what to show.

  Raises:
    UserError: a row axis, baseline or metric that the records do not have.
  """
  records = list(records)
  metrics.higher_is_better(table.metric)
  groups = grouped(records, table)
  records = [record for _, rows in groups for runs in rows.values() for record in runs]
  _check(records, groups, table)
  blocks = [Block(axes, tuple(_row(name, rows, table) for name in rows)) for axes, rows in groups]
  done = [record for record in records if record['status'] == 'done']
  blocks, comparisons = _judged(blocks, table)
  return Summary(
    table=table,
    blocks=tuple(blocks),
    comparisons=comparisons,
    grids=_grids(records, table),
    stands_in=tuple(dict.fromkeys(record['stands_in'] for record in records if record.get('stands_in'))),
    seconds=_seconds(records),
    runs=len(records),
    failed=len(records) - len(done),
    unselected=sum(table.which == 'selected' and not record.get('selected') for record in done),
  )


def grouped(records: Iterable[Record], table: Table) -> list[tuple[dict[str, Any], dict[str, list[Record]]]]:
  """(axes of the block, {row: its records}) for each block; blocks and rows in order of first appearance."""
  unique = {_key(record['cell']): record for record in records}
  blocks: dict[str, tuple[dict[str, Any], dict[str, list[Record]]]] = {}
  names = dict.fromkeys(_row_name(record, table) for record in unique.values())
  for record in unique.values():
    axes = {key: value for key, value in record['cell'].items() if key not in (table.rows, table.repeats)}
    _, rows = blocks.setdefault(_key(axes), (axes, {}))
    rows.setdefault(_row_name(record, table), []).append(record)
  return [(axes, {name: rows[name] for name in names if name in rows}) for axes, rows in blocks.values()]


def curve(record: Record, metric: str) -> list[tuple[int, float]]:
  """(step, validation metric) wherever the run measured it; empty for what is not trained by steps."""
  points = record.get('curve') or []
  values = [(point['step'], _number((point.get('validation') or {}).get(metric))) for point in points]
  return [(step, value) for step, value in values if value is not None]


def repeat_of(record: Record, table: Table) -> str:
  """The repeat a record belongs to; an experiment without that axis has one."""
  return str(record['cell'].get(table.repeats, 'only'))


def interval(values: Sequence[float], confidence: float) -> float | None:
  """Half-width of Student's t interval for the mean of independent values; None for fewer than two."""
  from scipy.stats import t

  if len(values) < 2:
    return None
  quantile = t.ppf((1 + confidence) / 2, len(values) - 1)
  return float(quantile * np.std(values, ddof=1) / math.sqrt(len(values)))


def paired_test(values: Mapping[str, float], others: Mapping[str, float]) -> tuple[float, float] | None:
  """Mean difference and two-sided p value of a paired t test over the repeats both have.

  None for fewer than two. Differences without spread have no t: p is then 1 where all are zero, else 0.
  """
  from scipy.stats import ttest_1samp

  both = [repeat for repeat in values if repeat in others]
  if len(both) < 2:
    return None
  differences = np.array([values[repeat] - others[repeat] for repeat in both])
  # 0.6 - 0.5 and 0.7 - 0.6 differ in the last bit, which must not pass for spread.
  rounding = 1e-12 * max(max(abs(values[repeat]), abs(others[repeat])) for repeat in both)
  if np.ptp(differences) <= rounding:
    return float(differences.mean()), float(np.abs(differences).max() <= rounding)
  return float(differences.mean()), float(ttest_1samp(differences, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
  """Adjusted p values that control the chance of any false rejection. Holm 1979, section 3."""
  adjusted, largest = [0.0] * len(p_values), 0.0
  for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
    largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
    adjusted[place] = largest
  return adjusted


def _check(records: Sequence[Record], groups: Sequence[tuple[Any, Mapping[str, Any]]], table: Table) -> None:
  names = dict.fromkeys(name for _, rows in groups for name in rows)
  if table.baseline is not None and records and table.baseline not in names:
    raise errors.unknown('baseline row', table.baseline, names)
  splits = [_measured(record, table) for record in records if record['status'] == 'done']
  seen = dict.fromkeys(name for values in splits for name in values)
  for shown in [table, *map(table.column, table.also)]:
    if splits and shown.split not in seen:
      raise errors.unknown('split', shown.split, seen)
    found = dict.fromkeys(name for values in splits for name in values.get(shown.split) or {})
    if splits and shown.metric not in found:
      raise errors.unknown(f'metric among those measured on {shown.split}', shown.metric, found)
  for task, name in table.single.items():
    if splits and name not in names:
      raise errors.unknown('table.single: row', name, names)
    found = dict.fromkeys(key for values in splits for key in values.get(table.split) or {})
    if splits and f'{task}/{table.metric}' not in found:
      raise errors.unknown('table.single: task', task, [key.partition('/')[0] for key in found if '/' in key])


def _row(name: str, rows: Mapping[str, Sequence[Record]], table: Table) -> Row:
  runs, baseline = rows[name], rows.get(str(table.baseline), [])
  done = [run for run in runs if run['status'] == 'done']
  values, others = _values(done, table), _values(baseline, table)
  alone = name in table.single.values()  # the other tasks' heads did not train, and the mean over tasks counts them
  test = None if alone or name == table.baseline else paired_test(values, others)
  steps, reached, could_reach = _reach(done, baseline, table)
  lost = _forgotten(done, table)
  gained = {} if alone else gains(done, rows, table)
  delta_m = [float(np.mean(each)) for each in zip(*gained.values())]
  also = {name: list(_values(done, table.column(name)).values()) for name in table.also}
  return Row(
    name=name,
    values=values,
    n=len(values),
    mean=_mean(values.values()),
    half_width=interval(list(values.values()), table.confidence),
    difference=test[0] if test else None,
    p_value=test[1] if test else None,
    verdict=None,
    parameters=tuple(sorted({run['trained_parameters'] for run in done if _has(run, 'trained_parameters')})),
    steps_to_reach=steps,
    reached=reached,
    could_reach=could_reach,
    seconds=_mean(run['seconds'] for run in done if _has(run, 'seconds')),
    seconds_total=_seconds(runs),
    gap=_mean(_gaps(done, table)),
    chosen=_chosen(done),
    labels=tuple(dict.fromkeys(_labels(run) for run in done if run.get('labels'))),
    failures=dict(Counter(_failure(run, table) for run in runs if repeat_of(run, table) not in values)),
    forgotten=_mean(lost),
    forgotten_half_width=interval(lost, table.confidence),
    also={name: float(np.mean(own)) for name, own in also.items() if own},
    also_half_width={name: width for name, own in also.items() if (width := interval(own, table.confidence))},
    delta_m=_mean(delta_m),
    delta_m_half_width=interval(delta_m, table.confidence),
    gained={task: float(np.mean(own)) for task, own in gained.items() if own},
    gained_half_width={task: width for task, own in gained.items() if (width := interval(own, table.confidence))},
  )


def gains(done: Sequence[Record], rows: Mapping[str, Sequence[Record]], table: Table) -> dict[str, list[float]]:
  """(M − M_single) / M_single in per cent of each task, for each run; its sign is turned where less is better.

  A task's gain says whether learning the others as well has helped it. The mean over tasks is Δm (Maninis et al. 2019,
  eq. 4, the mean drop of performance). Paired by repeats with the runs of `table.single`; runs that do not measure all
  tasks have none.
  """
  sign = 1 if metrics.higher_is_better(table.metric) else -1
  pairs = {}
  for task, name in table.single.items():
    column = table.model_copy(update={'metric': f'{task}/{table.metric}'})
    pairs[task] = (_values(done, column), _values(rows.get(name, []), column))
  both = [
    repeat
    for repeat in dict.fromkeys(repeat for own, _ in pairs.values() for repeat in own)
    if all(repeat in own and alone.get(repeat) for own, alone in pairs.values())
  ]
  return {
    task: [100 * sign * (own[repeat] - alone[repeat]) / abs(alone[repeat]) for repeat in both]
    for task, (own, alone) in pairs.items()
  }


def _judged(blocks: Sequence[Block], table: Table) -> tuple[list[Block], int]:
  """The blocks with p values corrected over all comparisons of the table, and verdicts."""
  p_values = [row.p_value for block in blocks for row in block.rows if row.p_value is not None]
  adjusted = iter(holm(p_values))
  sign = 1 if metrics.higher_is_better(table.metric) else -1

  def judged(row: Row) -> Row:
    if row.p_value is None or row.difference is None:
      return row
    p_value = next(adjusted)
    better: Verdict = 'win' if sign * row.difference > 0 else 'loss'
    return dataclasses.replace(row, p_value=p_value, verdict=better if p_value <= LEVEL else 'tie')

  return [Block(block.axes, tuple(map(judged, block.rows))) for block in blocks], len(p_values)


def _reach(done: Sequence[Record], baseline: Sequence[Record], table: Table) -> tuple[float | None, int, int]:
  """Median first step that meets the baseline's last validation metric of its repeat, and how many of how many."""
  sign = 1 if metrics.higher_is_better(table.metric) else -1
  ends = {repeat_of(run, table): curve(run, table.metric)[-1:] for run in baseline if run['status'] == 'done'}
  first = []
  for run in done:
    points, goal = curve(run, table.metric), ends.get(repeat_of(run, table))
    if points and goal:
      first.append(next((step for step, value in points if sign * value >= sign * goal[0][1]), None))
  reached = [step for step in first if step is not None]
  return (float(np.median(reached)) if reached else None), len(reached), len(first)


def _measured(record: Record, table: Table) -> Mapping[str, Any]:
  return (record.get('selected') if table.which == 'selected' else None) or record.get('last') or {}


def _values(runs: Iterable[Record], table: Table) -> dict[str, float]:
  found = {
    repeat_of(run, table): (_measured(run, table).get(table.split) or {}).get(table.metric)
    for run in runs
    if run['status'] == 'done'
  }
  numbers = {repeat: _number(value) for repeat, value in found.items()}
  return {repeat: number for repeat, number in numbers.items() if number is not None}


def _gaps(done: Sequence[Record], table: Table) -> list[float]:
  if table.split == 'train':
    return []
  train, split = (_values(done, table.model_copy(update={'split': name})) for name in ('train', table.split))
  return [train[repeat] - split[repeat] for repeat in split if repeat in train]


def _forgotten(done: Sequence[Record], table: Table) -> list[float]:
  """By how much each run has made the metric worse on the source's test split, where that was measured."""
  sign, after = 1 if metrics.higher_is_better(table.metric) else -1, 'after' if table.which == 'selected' else 'last'
  measured = [run['source_test'] for run in done if run.get('source_test')]
  pairs = [[_number((each[when] or {}).get(table.metric)) for when in ('before', after)] for each in measured]
  return [sign * (before - now) for before, now in pairs if before is not None and now is not None]


def _failure(run: Record, table: Table) -> str:
  if run['status'] == 'done':
    return f'{table.metric} has no value on {table.split}'
  return (str(run.get('reason') or '').strip() or 'no reason given').splitlines()[0]


def _chosen(done: Sequence[Record]) -> dict[str, dict[str, int]]:
  keys = dict.fromkeys(key for run in done for key in run.get('chosen') or {})
  values = {key: [run['chosen'][key] for run in done if key in (run.get('chosen') or {})] for key in keys}
  return {key: dict(Counter(map(_text, chosen)).most_common()) for key, chosen in values.items()}


def _grids(records: Sequence[Record], table: Table) -> dict[str, tuple[str, ...]]:
  rows: dict[str, dict[str, None]] = {}
  for record in records:
    for key, values in (record.get('grid') or {}).items():
      text = f'{key} from {", ".join(map(_text, values))}'
      rows.setdefault(text, {})[_row_name(record, table)] = None
  return {text: tuple(names) for text, names in rows.items()}


def _row_name(record: Record, table: Table) -> str:
  if table.rows not in record['cell']:
    raise errors.unknown('axis for the rows', table.rows, record['cell'])
  return str(record['cell'][table.rows])


def _seconds(runs: Iterable[Record]) -> float:
  return float(sum(run.get('seconds') or 0.0 for run in runs))


def _labels(run: Record) -> tuple[int, int]:
  return int(run['labels'].get('train') or 0), int(run['labels'].get('validation') or 0)


def _key(cell: Mapping[str, Any]) -> str:
  return json.dumps(cell, sort_keys=True, default=str)


def _has(run: Record, name: str) -> bool:
  return run.get(name) is not None


def _number(value: Any) -> float | None:
  """The value where it is a finite number: nothing else can be averaged."""
  return float(value) if isinstance(value, (int, float, np.number)) and math.isfinite(value) else None


def _mean(values: Iterable[float]) -> float | None:
  values = list(values)
  return float(np.mean(values)) if values else None


def _text(value: Any) -> str:
  if isinstance(value, float):
    return f'{value:g}'
  if not isinstance(value, (list, tuple, dict)):
    return str(value)
  text = json.dumps(value)
  # Rules of many numbers: their beginning, and a mark that tells them from others that begin alike.
  return text if len(text) <= LONGEST else f'{text[:LONGEST]}… #{config.digest(value)[:4]}'
