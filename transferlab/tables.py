"""Many runs -> a table in Markdown, CSV, JSON and on the screen. Writes files and prints.

What the table says (means, intervals, tests) is computed in comparison.py; here it is put into words, with a
legend that names the test, the interval, the grids and the labels. Pictures of it live in plots.py.
"""

import csv as csv_format
import dataclasses
import io
import itertools
import json
import math
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferlab.comparison import LEVEL, Block, Record, Row, Summary, Table, holm, summarise
from transferlab.config import plain, resolved

if TYPE_CHECKING:
  from rich.console import Console

__all__ = ['Summary', 'Table', 'as_json', 'csv', 'holm', 'markdown', 'show', 'summarise', 'title', 'write']
NONE = '—'
FAILED = ', failed'
COLOURS = {'win': 'green', 'loss': 'red'}


def title(block: Block) -> str:
  """What the block is of: 'pair noise, shots 5'; empty where the experiment has no further axes."""
  return ', '.join(f'{axis} {value}' for axis, value in block.axes.items())


def markdown(summary: Summary) -> str:
  """The table as GitHub's Markdown: a heading and a table per block, and the legend."""
  heads, bodies = _grid(summary)
  parts = []
  for block, body in zip(summary.blocks, bodies):
    lines = [heads, [':--', *['--:'] * (len(heads) - 1)], *body]
    text = '\n'.join(f'| {" | ".join(cell.replace("|", chr(92) + "|") for cell in line)} |' for line in lines)
    parts.append(f'**{title(block)}**\n\n{text}' if title(block) else text)
  parts.append('\n'.join(f'- {line}' for line in legend(summary)))
  return '\n\n'.join(parts) + '\n'


def csv(summary: Summary) -> str:
  """One line per row in full precision, without legend; an empty field where a value has no meaning."""
  axes = list(dict.fromkeys(axis for block in summary.blocks for axis in block.axes))
  fields = [field.name for field in dataclasses.fields(Row) if field.name not in ('name', 'values')]
  file = io.StringIO()
  writer = csv_format.writer(file, lineterminator='\n')
  writer.writerow([*axes, summary.table.rows, *fields])
  for block in summary.blocks:
    for row in block.rows:
      values = [_field(getattr(row, field)) for field in fields]
      writer.writerow([*[block.axes.get(axis, '') for axis in axes], row.name, *values])
  return file.getvalue()


def as_json(summary: Summary) -> dict[str, Any]:
  """The whole summary as plain dicts and lists, ready for JSON, with the legend."""
  values = {field.name: getattr(summary, field.name) for field in dataclasses.fields(summary)}
  values['blocks'] = [dataclasses.asdict(block) for block in summary.blocks]
  return _jsonable({**values, 'table': resolved(summary.table), 'legend': legend(summary)})


def show(summary: Summary, console: 'Console') -> None:
  """Prints the table and its legend; the last columns are left out, and named, where the screen is too narrow."""
  from rich import box, table, text

  heads, bodies = _grid(summary)
  # A failure's reason is a sentence: in a column of numbers it would wrap to a tower of words.
  numbers = [[line for line in body if not line[0].endswith(FAILED)] for body in bodies]
  widths = _widths(heads, [line for lines in numbers for line in lines])
  shown = sum(total <= max(console.width, 40) - 2 for total in itertools.accumulate(width + 2 for width in widths))
  for block, body, lines in zip(summary.blocks, bodies, numbers):
    heading = text.Text(title(block)) if title(block) else None
    grid = table.Table(title=heading, box=box.SIMPLE_HEAD, title_justify='left', padding=(0, 1, 0, 0), pad_edge=False)
    for column, (head, width) in enumerate(zip(heads[:shown], widths)):
      wrapped = textwrap.fill(head, width, break_long_words=False)
      grid.add_column(text.Text(wrapped), justify='right' if column else 'left', overflow='fold')
    for line in lines:
      grid.add_row(*[text.Text(cell, style=COLOURS.get(cell, '')) for cell in line[:shown]])
    console.print(grid)
    for name, count, reason in (line[:3] for line in body if line[0].endswith(FAILED)):
      console.print(text.Text(f'{name} ({count}): {reason}\n', style='red'))
  if shown < len(heads):
    console.print(text.Text(f'- not shown on a screen this narrow: {", ".join(heads[shown:])}.', style='dim'))
  for sentence in legend(summary):
    console.print(text.Text(f'- {sentence}', style='dim'))


def write(summary: Summary, records: Iterable[Record], folder: str | Path) -> None:
  """table.md, table.csv and table.json (with the records) in the folder, each replaced as a whole."""
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  whole = {**as_json(summary), 'records': _jsonable(list(records))}
  _replace(folder / 'table.md', markdown(summary))
  _replace(folder / 'table.csv', csv(summary))
  _replace(folder / 'table.json', json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + '\n')


def legend(summary: Summary) -> list[str]:
  """The sentences under the table: which interval, which test, what was chosen from what, at which price."""
  table, rows = summary.table, [row for block in summary.blocks for row in block.rows]
  lines = [f'{" and ".join(map(_metric, [table, *map(table.column, table.also)]))}: {_measurement(summary)}.']
  if summary.comparisons:
    lines.append(
      f'verdict: paired two-sided t test against {table.baseline} over each {table.repeats} both have, at '
      f"{LEVEL:g}; p after Holm's correction over all {_count(summary.comparisons, 'comparison')} of this table; "
      'difference: mean of the pairs.'
    )
  if any(row.could_reach for row in rows):
    lines.append(
      f'steps to {table.baseline}: first step whose validation {table.metric} is as good as the last '
      f'of {table.baseline} with the same {table.repeats}; median of those that get there (how many of how many).'
    )
  if any(row.gap is not None for row in rows):
    lines.append(f'gap: {table.metric} on the training data minus {table.metric} on {table.split}.')
  if table.single:
    alone = ', '.join(f'{task} by {name}' for task, name in table.single.items())
    lines.append(
      f'Δm: mean over tasks of the relative difference in {table.metric} to networks of one task ({alone}) of the same '
      f'{table.repeats}, better is positive (Maninis et al. 2019); Δ of a task: whether learning the others as well '
      f'helped it. {", ".join(table.single.values())}: not compared, since their mean counts heads that did not train.'
    )
  if any(row.forgotten is not None for row in rows):
    lines.append(
      f"forgotten: by how much {table.metric} on the source's test data is worse after training on the target, with "
      "what the transplant took put back into the source's network."
    )
  for grid, names in summary.grids.items():
    lines.append(f'chosen on validation data: {grid} ({", ".join(names)}).')
  if any(row.labels for row in rows):
    lines.append('labels: for training + for choosing (validation).')
  lines += [f'data: {text}' for text in summary.stands_in]
  lines.append(_cost(summary))
  return [*lines, *table.notes]


def _measurement(summary: Summary) -> str:
  table = summary.table
  step = 'at the step selected on validation data' if table.which == 'selected' else 'at the last step'
  if summary.unselected:
    step += f' (the last step in {_count(summary.unselected, "run")} that selected none)'
  return f'mean over {table.repeats} ± half-width of the {table.confidence * 100:g} % t interval, {step}'


def _cost(summary: Summary) -> str:
  failed = f', of which {summary.failed} failed' if summary.failed else ''
  return (
    f'{_count(summary.runs, "run")}{failed}; {_duration(summary.seconds)} in all. Seconds are of training with its '
    'grid, compilation included, shared equally among runs that trained together (on a CPU two groups at a time).'
  )


def _grid(summary: Summary) -> tuple[list[str], list[list[list[str]]]]:
  """The heads, and for each block its lines of cells, without columns that say nothing in any block."""
  table = summary.table
  baseline = table.baseline or 'baseline'
  heads = [
    table.rows, 'n', _metric(table), f'difference to {baseline}', 'p', 'verdict',
    *(_metric(table.column(name)) for name in table.also), f'steps to {baseline}',
    'Δm', *(f'Δ {task}' for task in table.single), 'trained parameters', 'seconds (total)', 'gap', 'forgotten',
    'chosen', 'labels',
  ]  # fmt: skip
  rows = [row for block in summary.blocks for row in block.rows]
  digits, short = _digits(rows), _short(key for row in rows for key in row.chosen)
  filled = [_cells(row, digits, short, table) for row in rows if row.n]
  kept = [i for i in range(len(heads)) if i < 3 or any(cells[i] != NONE for cells in filled)]
  bodies = []
  for block in summary.blocks:
    lines = []
    for row in block.rows:
      cells = _cells(row, digits, short, table)
      lines += [[cells[i] for i in kept]] if row.n else []
      for reason, count in row.failures.items():
        lines.append([f'{row.name}{FAILED}', str(count), reason, *[NONE] * (len(kept) - 3)])
    bodies.append(lines)
  return [heads[i] for i in kept], bodies


def _widths(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> list[int]:
  """Characters each column needs where heads wrap between words and cells do not wrap."""
  return [max([*map(len, head.split()), *(len(line[column]) for line in lines)]) for column, head in enumerate(heads)]


def _cells(row: Row, digits: int, short: dict[str, str], table: Table) -> list[str]:
  def number(value: float | None, sign: str = '') -> str:
    return NONE if value is None else f'{value:{sign}.{digits}f}'

  def about(value: float | None, half_width: float | None, sign: str = '') -> str:
    return number(value, sign) + ('' if half_width is None else f' ± {number(half_width)}')

  return [
    row.name,
    str(row.n),
    about(row.mean, row.half_width),
    number(row.difference, '+'),
    NONE if row.p_value is None else '<0.001' if row.p_value < 0.001 else f'{row.p_value:.3f}',
    row.verdict or NONE,
    *(about(row.also.get(name), row.also_half_width.get(name)) for name in table.also),
    _steps(row),
    _per_cent(row.delta_m, row.delta_m_half_width),
    *(_per_cent(row.gained.get(task), row.gained_half_width.get(task)) for task in table.single),
    ' to '.join(f'{number:,}' for number in dict.fromkeys([*row.parameters[:1], *row.parameters[-1:]])) or NONE,
    NONE if row.seconds is None else f'{row.seconds:.1f} ({row.seconds_total:.1f})',
    number(row.gap, '+'),
    about(row.forgotten, row.forgotten_half_width, '+'),
    _chosen(row, short),
    ', '.join(f'{train} + {validation}' for train, validation in row.labels) or NONE,
  ]


def _per_cent(value: float | None, half_width: float | None) -> str:
  return NONE if value is None else f'{value:+.2f} %' + ('' if half_width is None else f' ± {half_width:.2f}')


def _steps(row: Row) -> str:
  if not row.could_reach:
    return NONE
  if row.steps_to_reach is None:
    return 'not reached'
  whole = row.steps_to_reach == int(row.steps_to_reach)
  some = '' if row.reached == row.could_reach else f' ({row.reached}/{row.could_reach})'
  return f'{row.steps_to_reach:,.{0 if whole else 1}f}{some}'


def _chosen(row: Row, short: dict[str, str]) -> str:
  counts = {key: _times(chosen) for key, chosen in row.chosen.items()}
  if len(short) == 1:  # the head and the legend say which
    return ''.join(counts.values()) or NONE
  return '; '.join(f'{short[key]} {text}' for key, text in counts.items()) or NONE


def _times(counts: Mapping[str, int]) -> str:
  return ' '.join(f'{value}×{count}' for value, count in counts.items())


def _short(keys: Iterable[str]) -> dict[str, str]:
  """'phases.0.learning_rate' as 'learning_rate', unless two keys would then look the same."""
  keys = list(dict.fromkeys(keys))
  last = {key: key.rpartition('.')[2] for key in keys}
  return {key: name if list(last.values()).count(name) == 1 else key for key, name in last.items()}


def _digits(rows: Sequence[Row]) -> int:
  """Three decimals, or as many more as a small regression error needs to show three digits."""
  largest = max((abs(row.mean) for row in rows if row.mean), default=1.0)
  return 3 + max(0, -math.floor(math.log10(largest)) - 1)


def _metric(table: Table) -> str:
  return f'{table.split} {table.metric}'


def _count(number: int, noun: str) -> str:
  return f'{number} {noun}{"" if number == 1 else "s"}'


def _duration(seconds: float) -> str:
  unit, size = ('s', 1) if seconds < 120 else ('min', 60) if seconds < 7200 else ('h', 3600)
  return f'{seconds / size:.1f} {unit}'


def _field(value: Any) -> Any:
  """A value as a CSV field; counts and several values in words."""
  if isinstance(value, tuple):
    return ', '.join(' + '.join(map(str, item)) if isinstance(item, tuple) else str(item) for item in value)
  if isinstance(value, dict):
    return '; '.join(map(_field_item, *zip(*value.items()))) if value else ''
  return '' if value is None else value


def _field_item(key: str, of: Any) -> str:
  return f'{key}: {_times(of)}' if isinstance(of, dict) else f'{key}: {of}' if isinstance(of, float) else f'{of}× {key}'


def _jsonable(value: Any) -> Any:
  """Plain values with null for what is not finite: JSON has no NaN."""
  value = plain(value)
  if isinstance(value, dict):
    return {key: _jsonable(item) for key, item in value.items()}
  if isinstance(value, list):
    return [_jsonable(item) for item in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def _replace(path: Path, text: str) -> None:
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  temporary.write_text(text, encoding='utf-8')
  os.replace(temporary, path)
