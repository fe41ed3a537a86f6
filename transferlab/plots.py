"""Many runs -> the pictures of their table, as PNG files. Writes files.

`comparison` draws what a `Summary` says; `curves` draws validation metrics over steps; `rate_finder` draws the losses
of one run's learning-rate finder, `depth` what its probes reach. No statistics are computed here beyond the mean and
interval of a curve, and no global state of matplotlib is touched.
"""

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transferlab.comparison import Block, Record, Row, Summary, Table, curve, grouped, interval
from transferlab.errors import UserError
from transferlab.tables import title

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

# Colours that the colour-blind tell apart: Okabe and Ito 2008. The sequence ends in black and starts anew, dashed.
PALETTE = ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000']
DASHES = ['-', '--', '-.', ':']
MARKERS = ['o', 's', '^', 'D']
# verdict -> (colour, marker); None is a row without a test.
LOOKS: dict[str | None, tuple[str, str]] = {
  'win': ('#0072B2', '^'),
  'tie': ('#6E6E6E', 'o'),
  'loss': ('#D55E00', 'v'),
  'baseline': ('#000000', 'D'),
  None: ('#009E73', 's'),
}
WIDTH = 9.0  # inches; text of 10 points is then 14 pixels high where a README shows 900
DPI = 150


def comparison(summary: Summary, path: str | Path) -> None:
  """A panel per block, a dot with its interval per row, faint dots for the repeats, the baseline as a dashed line.

  Rows of one task alone (`table.single`) are left out: the mean over tasks counts heads that they did not train.

  Args:
    summary: from `summarise`.
    path: the PNG, replaced as a whole.

  Raises:
    UserError: no runs.
  """
  shown = [[row for row in block.rows if row.name not in summary.table.single.values()] for block in summary.blocks]
  names = list(dict.fromkeys(row.name for rows in shown for row in rows))
  figure, panels = _panels(len(summary.blocks), 0.9 + 0.36 * len(names))
  looks = set()
  for panel, block, rows in zip(panels, summary.blocks, shown):
    for row in rows:
      looks.add(_dot(panel, names.index(row.name), row, summary.table.baseline))
    base = next((row.mean for row in block.rows if row.name == summary.table.baseline), None)
    if base is not None:
      panel.axvline(base, color='black', linestyle='--', linewidth=1, zorder=0)
    panel.set_title(_wrapped(title(block), panel), fontsize=11)
    panel.set_yticks(range(len(names)), [_short(name) for name in names])
    panel.set_ylim(len(names) - 0.4, -0.6)
    panel.grid(axis='x', alpha=0.25)
  _label_axes(panels, f'{summary.table.split} {summary.table.metric}', '')
  _legend(figure, _handles([look for look in LOOKS if look in looks], summary.table))
  _save(figure, path)


def along(summary: Summary, path: str | Path) -> None:
  """The metric over the values of one axis (`table.along`): a line for each row, a panel for each further combination.

  Around the means stand intervals; of two repeats, whose interval says nothing, the values themselves.

  Args:
    summary: from `summarise`.
    path: the PNG, replaced as a whole.

  Raises:
    UserError: no runs.
  """
  axis, panels_of = str(summary.table.along), dict[str, list[Block]]()
  for block in summary.blocks:
    rest = Block({name: value for name, value in block.axes.items() if name != axis}, ())
    panels_of.setdefault(title(rest), []).append(block)
  values = list(dict.fromkeys(block.axes[axis] for block in summary.blocks))
  numeric = all(isinstance(value, (int, float)) for value in values)
  names = list(dict.fromkeys(row.name for block in summary.blocks for row in block.rows))
  figure, panels = _panels(len(panels_of) if any(row.n for block in summary.blocks for row in block.rows) else 0, 3.6)
  handles: dict[str, Any] = {}
  for panel, (heading, blocks) in zip(panels, panels_of.items()):
    for number, name in enumerate(names):
      rows = [(block.axes[axis], row) for block in blocks for row in block.rows if row.name == name and row.n]
      x = [value if numeric else values.index(value) for value, _ in rows]
      style: dict[str, Any] = {'color': PALETTE[number % len(PALETTE)], 'linewidth': 1.8, 'marker': 'o', 'capsize': 2}
      few = max((row.n for _, row in rows), default=0) < 3
      y, spread = [row.mean or 0.0 for _, row in rows], None if few else [row.half_width or 0.0 for _, row in rows]
      dashes = DASHES[number // len(PALETTE) % len(DASHES)]
      handles[name] = panel.errorbar(x, y, spread, linestyle=dashes, label=_short(name), elinewidth=0.8, **style)
      if few:
        each = [(place, value) for place, (_, row) in zip(x, rows) for value in row.values.values()]
        panel.scatter(
          [place for place, _ in each],
          [value for _, value in each],
          color=style['color'],
          s=12,
          alpha=0.6,
          linewidths=0,
        )
    panel.set_title(_wrapped(heading, panel), fontsize=11)
    panel.set_xticks(values if numeric else range(len(values)), [_short(str(value)) for value in values])
    panel.grid(alpha=0.25)
  _label_axes(panels, axis, f'{summary.table.split} {summary.table.metric}')
  _legend(figure, list(handles.values()))
  _save(figure, path)


def tradeoff(summary: Summary, path: str | Path) -> None:
  """The first two entries of `table.also` against each other: a point with both intervals for each row.

  A row of one task alone (`table.single`) is a line, at what it reaches in that task.

  Args:
    summary: from `summarise`, of a table with two such entries.
    path: the PNG, replaced as a whole.

  Raises:
    UserError: no row has both.
  """
  first, second = summary.table.also[:2]
  blocks = [[row for row in block.rows if first in row.also and second in row.also] for block in summary.blocks]
  figure, panels = _panels(len(blocks) if any(blocks) else 0, 5.0)
  names = list(dict.fromkeys(row.name for rows in blocks for row in rows))
  handles: dict[str, Any] = {}
  alone = {name: task for task, name in summary.table.single.items()}
  for panel, block, rows in zip(panels, summary.blocks, blocks):
    for row in rows:
      if row.name in alone:
        across = f':{alone[row.name]}/' in first
        draw, value = (panel.axvline, row.also[first]) if across else (panel.axhline, row.also[second])
        handles[row.name] = draw(value, color='black', linestyle='--' if across else ':', label=_short(row.name))
        continue
      number, spread = names.index(row.name), row.also_half_width
      marker, colour = MARKERS[number // len(PALETTE) % len(MARKERS)], PALETTE[number % len(PALETTE)]
      handles[row.name] = panel.errorbar(
        row.also[first],
        row.also[second],
        spread.get(second, 0.0),
        spread.get(first, 0.0),
        fmt=marker,
        color=colour,
        elinewidth=0.6,
        markersize=7,
        label=_short(row.name),
      )
    panel.set_title(_wrapped(title(block), panel), fontsize=11)
    panel.grid(alpha=0.25)
  _label_axes(panels, *(name.replace(':', ' ') for name in (first, second)))
  _legend(figure, list(handles.values()))
  _save(figure, path)


def curves(records: Sequence[Record], table: Table, path: str | Path) -> None:
  """The validation metric over steps: per row the mean over repeats and its interval as a band; a panel per block.

  Beyond the steps that all repeats share, as after an early stop, the mean of those left is dotted and has no band.

  Args:
    records: as for `summarise`; failed cells, and cells without a curve, are left out.
    table: names the rows, repeats, metric and confidence.
    path: the PNG, replaced as a whole.

  Raises:
    UserError: no record has a curve of the metric.
  """
  groups = [
    (axes, {name: _curves(runs, table) for name, runs in rows.items()})
    for axes, rows in grouped(records, table)
    if any(_curves(runs, table) for runs in rows.values())
  ]
  names = list(dict.fromkeys(name for _, rows in groups for name, runs in rows.items() if runs))
  figure, panels = _panels(len(groups), 3.2)
  handles: dict[str, Any] = {}
  for panel, (axes, rows) in zip(panels, groups):
    for name, runs in rows.items():
      if runs:
        handles[name] = _line(panel, names.index(name), runs, table)
        handles[name].set_label(_short(name))
    panel.set_title(_wrapped(', '.join(f'{axis} {value}' for axis, value in axes.items()), panel), fontsize=11)
    panel.grid(alpha=0.25)
  _label_axes(panels, 'step', f'validation {table.metric}')
  _legend(figure, [handles[name] for name in names])
  _save(figure, path)


def rate_finder(record: Mapping[str, Any], path: str | Path) -> None:
  """The loss over the learning rate, smoothed and (faint) of each step, with the suggested rates as vertical lines.

  Args:
    record: from `transferlab.rate_finder.find`.
    path: the PNG, replaced as a whole.
  """
  figure, (panel,) = _panels(1, 3.2)
  rates = [point['rate'] for point in record['curve']]
  losses, smoothed = ([point[name] for point in record['curve']] for name in ('loss', 'smoothed'))
  handles = panel.plot(rates, losses, '.', color=PALETTE[0], alpha=0.4, markeredgewidth=0, label='loss of a step')
  handles += panel.plot(rates, smoothed, color=PALETTE[0], linewidth=1.8, label='smoothed')
  suggested = {'steepest': 'steepest descent', 'minimum_tenth': 'minimum / 10'}
  for number, (name, words) in enumerate(suggested.items(), 1):
    rate, dashes = record['suggestions'][name], DASHES[number]
    if rate is not None:
      handles.append(panel.axvline(rate, color=PALETTE[number], linestyle=dashes, label=f'{words}: {rate:.2g}'))
  # Single losses may be so large in the end that nothing else would be seen.
  low, high = min(losses), max(smoothed)
  margin = 0.05 * max(high - low, 1e-6)
  panel.set_ylim(low - margin, high + margin)
  panel.set_xscale('log')
  panel.set_title(_wrapped(f'phase {record["phase"]}', panel), fontsize=11)
  panel.grid(alpha=0.25)
  _label_axes([panel], 'learning rate', 'training loss')
  _legend(figure, handles)
  _save(figure, path)


def depth(probes: Mapping[str, Mapping[str, Any]], metric: str, path: str | Path) -> None:
  """What probes of a network's stages reach, over depth: a line per set that was measured, but for the training split.

  Args:
    probes: `{stage: {set: {metric: value}}}`, in the order of the stages, as results.json has it.
    metric: the metric to draw.
    path: the PNG, replaced as a whole.

  Raises:
    UserError: no set but the training split has a value of the metric.
  """
  stages = list(probes)
  figure, panel = _sets(range(len(stages)), list(probes.values()), metric)
  crowded = sum(map(len, stages)) > 60
  turned: dict[str, Any] = {'rotation': 45, 'ha': 'right', 'rotation_mode': 'anchor'} if crowded else {}
  panel.set_xticks(range(len(stages)), [_short(stage) for stage in stages], **turned)
  _label_axes([panel], 'stage', metric)
  _save(figure, path)


def interpolation(points: Sequence[Mapping[str, Any]], chosen: float, metric: str, path: str | Path) -> None:
  """What weights between the start of a phase and its end reach (Wortsman et al. 2022, figure 1): a line per set.

  Args:
    points: `{'share': α, set: {metric: value}}` each, as results.json has them.
    chosen: the share that validation data chose, which is marked.
    metric: the metric to draw.
    path: the PNG, replaced as a whole.

  Raises:
    UserError: no set but the training split has a value of the metric.
  """
  figure, panel = _sets([point['share'] for point in points], points, metric)
  panel.axvline(chosen, color='0.6', linewidth=1.0, linestyle=(0, (4, 3)), zorder=0)
  _label_axes([panel], 'share of the way from the start of the phase to its end (dashed: chosen)', metric)
  _save(figure, path)


def _sets(x: Sequence[float], points: Sequence[Mapping[str, Any]], metric: str) -> tuple['Figure', 'Axes']:
  """A line per set that was measured at every x, but for the training split."""
  sets = [name for name, own in points[0].items() if isinstance(own, Mapping) and name != 'train']
  values = {name: [point[name].get(metric) for point in points] for name in sets}
  values = {name: own for name, own in values.items() if any(value is not None for value in own)}
  figure, panels = _panels(bool(values), 3.6)
  handles = []
  for number, (name, own) in enumerate(values.items()):
    style: dict[str, Any] = {'color': PALETTE[number % len(PALETTE)], 'linewidth': 1.8, 'marker': 'o'}
    y = [math.nan if value is None else value for value in own]
    dashes = DASHES[number // len(PALETTE) % len(DASHES)]
    handles += panels[0].plot(x, y, linestyle=dashes, label=_short(name), **style)
  panels[0].grid(alpha=0.25)
  _legend(figure, handles)
  return figure, panels[0]


def _curves(runs: Sequence[Record], table: Table) -> list[dict[int, float]]:
  found = (dict(curve(run, table.metric)) for run in runs if run['status'] == 'done')
  return [points for points in found if points]


def _line(panel: 'Axes', number: int, runs: Sequence[Mapping[int, float]], table: Table) -> Any:
  """One row's mean and band; gives the line, for the legend."""
  style: dict[str, Any] = {'color': PALETTE[number % len(PALETTE)], 'linewidth': 1.8}
  steps = sorted({step for run in runs for step in run})
  at = {step: [run[step] for run in runs if step in run] for step in steps}
  means = np.array([np.mean(at[step]) for step in steps])
  # A mean over fewer repeats jumps where one ends, and is not the mean of the same thing.
  shared = np.array([len(at[step]) == len(runs) for step in steps])
  last = int(np.flatnonzero(shared)[-1]) if shared.any() else 0
  panel.plot(steps[last:], means[last:], linestyle=(0, (1, 1.5)), **style)
  x, y = np.array(steps)[shared], means[shared]
  half = np.array([interval(at[step], table.confidence) or 0.0 for step in x])
  panel.fill_between(x, y - half, y + half, color=style['color'], alpha=0.15, linewidth=0)
  dashes = DASHES[number // len(PALETTE) % len(DASHES)]
  return panel.plot(x, y, linestyle=dashes, marker='o' if len(x) == 1 else None, **style)[0]


def _dot(panel: 'Axes', place: int, row: Row, baseline: str | None) -> str | None:
  """Draws one row; gives its look."""
  look = 'baseline' if row.name == baseline else row.verdict
  if row.mean is None:
    text = f'failed: {next(iter(row.failures), "no value")}'
    style: dict[str, Any] = {'va': 'center', 'fontsize': 8.5, 'style': 'italic', 'color': '#6E6E6E'}
    box = {'facecolor': 'white', 'edgecolor': 'none', 'pad': 1}
    text = textwrap.shorten(text, 40, placeholder=' …')
    panel.text(0.02, place, text, transform=panel.get_yaxis_transform(), bbox=box, **style)
    return 'baseline' if look == 'baseline' else 'none'
  colour, marker = LOOKS[look]
  values = list(row.values.values())
  panel.plot(values, [place + 0.22] * len(values), '.', color=colour, alpha=0.4, markersize=5, markeredgewidth=0)
  panel.errorbar(
    row.mean, place, xerr=row.half_width, fmt=marker, color=colour, markersize=7, capsize=3, elinewidth=1.6, zorder=3
  )
  return look


def _panels(count: int, height: float) -> tuple['Figure', list['Axes']]:
  """A figure of `count` panels with common axes, each `height` inches."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  if not count:
    raise UserError('there is nothing to plot: no run has the values asked for')
  columns = 1 if count == 1 else 2 if count in (2, 4) else 3
  lines = math.ceil(count / columns)
  figure = Figure(figsize=(WIDTH, height * lines + 0.8), dpi=DPI, layout='constrained')
  FigureCanvasAgg(figure)
  grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
  panels = list(grid.flat)
  for panel in panels[count:]:
    panel.remove()
  for panel in panels:
    panel.spines[['top', 'right']].set_visible(False)
  return figure, panels[:count]


def _label_axes(panels: Sequence['Axes'], x: str, y: str) -> None:
  """Numbers and names of the axes on the outer panels only: those without a panel below, or to the left."""
  grid = panels[0].get_gridspec()
  columns = grid.ncols if grid else 1
  for number, panel in enumerate(panels):
    lowest, leftmost = number + columns >= len(panels), number % columns == 0
    panel.tick_params(labelbottom=lowest, labelleft=leftmost)
    panel.set_xlabel(x if lowest else '')
    panel.set_ylabel(y if leftmost else '')


def _handles(looks: Sequence[str | None], table: Table) -> list[Any]:
  from matplotlib.lines import Line2D

  words = {'baseline': f'baseline ({_short(table.baseline or "")})', None: 'not tested' if table.baseline else 'mean'}
  handles = [
    Line2D([], [], color=LOOKS[look][0], marker=LOOKS[look][1], linestyle='none', label=words.get(look, look))
    for look in looks
  ]
  interval_text = f'{table.confidence * 100:g} % interval'
  handles.append(Line2D([], [], color='#6E6E6E', marker='|', linewidth=1.6, label=interval_text))
  handles.append(Line2D([], [], color='#6E6E6E', marker='.', linestyle='none', alpha=0.5, label=f'one {table.repeats}'))
  return handles


def _legend(figure: 'Figure', handles: Sequence[Any]) -> None:
  lengths = [len(handle.get_label()) + 6 for handle in handles]  # with the sample and the space between
  columns = len(handles) if sum(lengths) <= 110 else max(1, 110 // max(lengths))
  figure.legend(handles=list(handles), loc='outside lower center', ncols=columns, frameon=False, fontsize=9.5)


def _short(name: str) -> str:
  """A long name without its middle: names that begin alike stay distinct."""
  return name if len(name) <= 30 else f'{name[:17]}…{name[-12:]}'


def _wrapped(text: str, panel: 'Axes') -> str:
  grid = panel.get_gridspec()
  columns = grid.ncols if grid else 1
  return '\n'.join(textwrap.wrap(text, 84 // columns))


def _save(figure: 'Figure', path: str | Path) -> None:
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  figure.savefig(temporary, format='png')
  os.replace(temporary, path)
