"""Many runs -> the pictures of their table, as PNG files. Writes files.

`comparison` draws what a `Summary` says; `curves` draws validation metrics over steps. No statistics are computed
here beyond the mean and interval of a curve, and no global state of matplotlib is touched.
"""

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transferlab.comparison import Record, Row, Summary, Table, curve, grouped, interval
from transferlab.errors import UserError
from transferlab.tables import title

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

# Colours that the colour-blind tell apart: Okabe and Ito 2008. The sequence ends in black and starts anew, dashed.
PALETTE = ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000']
DASHES = ['-', '--', '-.', ':']
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

  Args:
    summary: from `summarise`.
    path: the PNG, replaced as a whole.

  Raises:
    UserError: no runs.
  """
  names = list(dict.fromkeys(row.name for block in summary.blocks for row in block.rows))
  figure, panels = _panels(len(summary.blocks), 0.9 + 0.36 * len(names))
  looks = set()
  for panel, block in zip(panels, summary.blocks):
    for row in block.rows:
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
