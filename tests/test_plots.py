"""Plots: what the drawn objects show, read back from matplotlib, and that nothing overlaps or leaves the page."""

import itertools
import sys

import numpy as np
import pytest
from matplotlib import image
from matplotlib.text import Text

from transferlab import plots, tables
from transferlab.errors import UserError

LONG = 'a_method_whose_name_is_far_too_long_to_stand_whole_beside_a_panel_of_this_width'
METHODS = {'scratch': 0.5, 'full': 0.7, f'{LONG}_1': 0.52, f'{LONG}_2': 0.3}
NOISE = np.random.default_rng(0).normal(size=(3, 4, 4)) * 0.02


def records(pairs=('noise',), steps=5):
  found = []
  for p, pair in enumerate(pairs):
    for m, (method, level) in enumerate(METHODS.items()):
      for seed in range(4):
        value = level + NOISE[p, m, seed]
        curve = [{'step': 10 * (i + 1), 'validation': {'accuracy': value * (i + 1) / steps}} for i in range(steps)]
        cell = {'pair': pair, 'method': method, 'seed': seed}
        values = {split: {'accuracy': value} for split in ('train', 'validation', 'test')}
        run = {'cell': cell, 'status': 'done', 'selected': values, 'last': values, 'seconds': 1.0, 'curve': curve}
        found.append(run)
  return found


@pytest.fixture
def drawn(monkeypatch):
  """The figures that are saved, in order; the files are written all the same."""
  figures, save = [], plots._save
  monkeypatch.setattr(plots, '_save', lambda figure, path: (figures.append(figure), save(figure, path)))
  return figures


def texts(figure):
  renderer = figure.canvas.get_renderer()
  shown = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
  shown = [text for text in shown if all(artist.get_visible() for artist in _parents(text, figure))]
  return [(text.get_text(), text.get_window_extent(renderer)) for text in shown]


def _parents(text, figure):
  # Labels of ticks beyond the limits exist, but are not drawn.
  for panel in figure.axes:
    for axis in (panel.xaxis, panel.yaxis):
      low, high = sorted(axis.get_view_interval())
      for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
        if text in (tick.label1, tick.label2) and not low <= tick.get_loc() <= high:
          return [text, type('Hidden', (), {'get_visible': lambda self: False})()]
  return [text]


@pytest.mark.parametrize('pairs', [('noise',), ('noise', 'rotation', 'colours inverted, and the background blurred')])
def test_no_text_overlaps_another_or_leaves_the_page(drawn, tmp_path, pairs):
  table = tables.Table(baseline='scratch')
  plots.comparison(tables.summarise(records(pairs), table), tmp_path / 'comparison.png')
  plots.curves(records(pairs), table, tmp_path / 'curves.png')
  for figure in drawn:
    boxes = texts(figure)
    assert len(boxes) > 8
    for text, box in boxes:
      assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text
      assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text
    for (one, first), (other, second) in itertools.combinations(boxes, 2):
      assert not first.overlaps(second), (one, other)


def test_dots_stand_at_the_means_with_their_intervals_and_verdicts(drawn, tmp_path):
  summary = tables.summarise(records(), tables.Table(baseline='scratch'))
  plots.comparison(summary, tmp_path / 'comparison.png')
  (panel,) = drawn[0].axes
  rows = summary.blocks[0].rows
  assert [row.verdict for row in rows] == [None, 'win', 'tie', 'loss']
  looks = ['baseline', 'win', 'tie', 'loss']
  for place, (row, look, bar) in enumerate(zip(rows, looks, panel.containers)):
    dot, _, (segments,) = bar.lines
    assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (pytest.approx(row.mean), place)
    assert (dot.get_color(), dot.get_marker()) == plots.LOOKS[look]
    (ends,) = segments.get_segments()
    assert ends[:, 0] == pytest.approx([row.mean - row.half_width, row.mean + row.half_width])
  names = [label.get_text() for label in panel.get_yticklabels()]
  assert names[:2] == ['scratch', 'full'] and len(set(names)) == 4  # though two are cut
  dashed = [line for line in panel.lines if line.get_linestyle() == '--']
  assert [line.get_xdata()[0] for line in dashed] == [pytest.approx(rows[0].mean)]
  labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
  assert labels == ['win', 'tie', 'loss', 'baseline (scratch)', '95 % interval', 'one seed']


def test_a_row_that_failed_says_so_in_its_place(drawn, tmp_path):
  runs = records()
  for run in runs:
    if run['cell']['method'] == 'full':
      run.update(status='failed', reason='out of memory')
  plots.comparison(tables.summarise(runs, tables.Table(baseline='scratch')), tmp_path / 'comparison.png')
  (text,) = drawn[0].axes[0].texts
  assert text.get_text() == 'failed: out of memory' and text.get_position()[1] == 1


def test_curves_are_means_over_repeats_with_bands_and_dotted_after_an_early_stop(drawn, tmp_path):
  runs = records()
  early = {'pair': 'noise', 'method': 'full', 'seed': 2}
  stopped = [{**run, 'curve': run['curve'][:3]} if run['cell'] == early else run for run in runs]
  plots.curves(stopped, tables.Table(), tmp_path / 'curves.png')
  (panel,) = drawn[0].axes
  values = np.array([[p['validation']['accuracy'] for p in r['curve']] for r in runs if r['cell']['method'] == 'full'])
  dotted, whole = [line for line in panel.lines if line.get_color() == plots.PALETTE[1]]
  assert list(whole.get_xdata()) == [10, 20, 30]
  assert whole.get_ydata() == pytest.approx(values.mean(0)[:3])
  assert list(dotted.get_xdata()) == [30, 40, 50]
  assert dotted.get_ydata()[1:] == pytest.approx(values[[0, 1, 3]].mean(0)[3:])
  half = 3.182446305 * values.std(0, ddof=1) / 2  # Student's t for 3 degrees of freedom, four repeats
  edges = panel.collections[1].get_paths()[0].vertices
  assert edges[:, 1].max() == pytest.approx((values.mean(0) + half)[2])
  assert edges[edges[:, 0] == 10][:, 1].min() == pytest.approx((values.mean(0) - half)[0])


def test_files_are_png_of_readable_width_and_leave_no_temporary_or_global_state(tmp_path):
  plots.comparison(tables.summarise(records(), tables.Table()), tmp_path / 'deep' / 'comparison.png')
  plots.curves(records(), tables.Table(), tmp_path / 'deep' / 'curves.png')
  assert sorted(path.name for path in (tmp_path / 'deep').iterdir()) == ['comparison.png', 'curves.png']
  for path in (tmp_path / 'deep').iterdir():
    pixels = image.imread(path)
    assert pixels.shape[1] == 1350 and pixels[..., :3].std() > 0.05
  assert 'matplotlib.pyplot' not in sys.modules or not sys.modules['matplotlib.pyplot'].get_fignums()


def test_nothing_to_plot_is_the_users_mistake(tmp_path):
  with pytest.raises(UserError, match='nothing to plot'):
    plots.curves([{**r, 'curve': []} for r in records()], tables.Table(), tmp_path / 'curves.png')
  with pytest.raises(UserError, match='nothing to plot'):
    plots.comparison(tables.summarise([], tables.Table()), tmp_path / 'comparison.png')


def probes(stages):
  values = {'validation': 0.5, 'test': 0.4, 'noisy': None}
  return {
    stage: {
      'train': {'accuracy': 1.0},
      **{name: {'accuracy': value and value + 0.01 * depth} for name, value in values.items()},
      'penalty': 0.1,
      'features': 8,
    }
    for depth, stage in enumerate(stages)
  }


@pytest.mark.parametrize('stages', [['stem', 'block1', 'head'], [f'bottleneck_block{i}' for i in range(20)]])
def test_depth_draws_what_each_stage_reaches_on_every_set_but_the_training_split(drawn, tmp_path, stages):
  plots.depth(probes(stages), 'accuracy', tmp_path / 'depth.png')
  (panel,) = drawn[0].axes
  assert [line.get_label() for line in panel.lines] == ['validation', 'test']  # the third has no value
  for line, first in zip(panel.lines, (0.5, 0.4)):
    assert list(line.get_xdata()) == list(range(len(stages)))
    assert line.get_ydata() == pytest.approx(first + 0.01 * np.arange(len(stages)))
  assert [label.get_text() for label in panel.get_xticklabels()] == stages
  assert panel.get_ylabel() == 'accuracy'
  for text, box in texts(drawn[0]):
    assert figure_holds(drawn[0], box), text
  if len(stages) < 20:
    assert all(not first.overlaps(second) for (_, first), (_, second) in itertools.combinations(texts(drawn[0]), 2))
  else:  # boxes of slanted text overlap though the text does not: its feet stand apart, by more than its height
    assert {label.get_rotation() for label in panel.get_xticklabels()} == {45.0}


def figure_holds(figure, box):
  return figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1


def test_depth_without_a_set_to_draw_is_refused(tmp_path):
  with pytest.raises(UserError, match='nothing to plot'):
    plots.depth({'stem': {'train': {'accuracy': 1.0}, 'penalty': 1.0}}, 'accuracy', tmp_path / 'depth.png')


def test_interpolation_draws_every_set_over_the_shares_and_marks_the_chosen(drawn, tmp_path):
  shares = [0.0, 0.25, 0.5, 1.0]
  points = [
    {'share': share, **{name: {'accuracy': base + share / 10} for name, base in (('train', 0.9), ('test', 0.5))}}
    for share in shares
  ]
  plots.interpolation(points, 0.25, 'accuracy', tmp_path / 'interpolation.png')
  (panel,) = drawn[0].axes
  curve, mark = panel.lines
  assert curve.get_label() == 'test' and list(curve.get_xdata()) == shares
  assert curve.get_ydata() == pytest.approx([0.5, 0.525, 0.55, 0.6])
  assert list(mark.get_xdata()) == [0.25, 0.25]
  for text, box in texts(drawn[0]):
    assert figure_holds(drawn[0], box), text
  with pytest.raises(UserError, match='nothing to plot'):
    plots.interpolation(points, 0.25, 'log_loss', tmp_path / 'interpolation.png')


def test_along_draws_a_line_for_each_row_over_the_axis(drawn, tmp_path):
  shots, names = [1, 5, 25], ['none', 'all']
  made = []
  for number, (count, name, seed) in enumerate(itertools.product(shots, names, range(3))):
    values = {'test': {'accuracy': 0.3 + 0.02 * number}}
    cell = {'method': name, 'shots': count, 'seed': seed}
    made.append({**records()[0], 'cell': cell, 'selected': values, 'last': values, 'curve': []})
  plots.along(tables.summarise(made, tables.Table(along='shots')), tmp_path / 'along.png')
  (panel,) = drawn[0].axes
  for place, line in enumerate(panel.containers):
    x, y = line.lines[0].get_data()
    assert list(x) == shots
    expected = [0.3 + 0.02 * np.mean([6 * block + 3 * place + seed for seed in range(3)]) for block in range(3)]
    assert y == pytest.approx(expected)
  assert [line.get_label() for line in panel.containers] == names and panel.get_xlabel() == 'shots'
  for text, box in texts(drawn[0]):
    assert figure_holds(drawn[0], box), text


def test_along_shows_two_repeats_themselves_and_no_interval(drawn, tmp_path):
  made = []
  for number, (count, seed) in enumerate(itertools.product([1, 5], range(2))):
    values = {'test': {'accuracy': 0.5 + 0.1 * number}}
    made.append(
      {**records()[0], 'cell': {'method': 'all', 'shots': count, 'seed': seed}, 'selected': values, 'curve': []}
    )
  plots.along(tables.summarise(made, tables.Table(along='shots')), tmp_path / 'along.png')
  (panel,) = drawn[0].axes
  assert not panel.containers[0].has_yerr
  shown = np.asarray(panel.collections[0].get_offsets())
  np.testing.assert_allclose(shown, [[1, 0.5], [1, 0.6], [5, 0.7], [5, 0.8]])


def test_a_trade_off_draws_a_point_for_each_row_that_has_both(drawn, tmp_path):
  made = []
  for name, place in (('alone', 0.2), ('both', 0.6)):
    for seed in range(3):
      values = {'test': {'accuracy': 0.5, 'left/accuracy': place + 0.01 * seed}}
      if name == 'both':
        values['test']['right/accuracy'] = place + 0.1
      made.append({**records()[0], 'cell': {'method': name, 'seed': seed}, 'selected': values, 'curve': []})
  also = ['test:left/accuracy', 'test:right/accuracy']
  plots.tradeoff(tables.summarise(made, tables.Table(also=also, tradeoff=True)), tmp_path / 'tradeoff.png')
  (panel,) = drawn[0].axes
  (point,) = panel.containers
  assert point.get_label() == 'both'
  x, y = point.lines[0].get_data()
  assert (float(x[0]), float(y[0])) == pytest.approx((0.61, 0.7))
  assert (panel.get_xlabel(), panel.get_ylabel()) == ('test left/accuracy', 'test right/accuracy')
  with pytest.raises(Exception, match='tradeoff draws two entries'):
    tables.Table(also=also[:1], tradeoff=True)


def test_networks_of_one_task_are_lines_of_a_trade_off_and_no_rows_of_a_comparison(drawn, tmp_path):
  made = []
  for name, left, right in (('left alone', 0.9, 0.1), ('right alone', 0.2, 0.8), ('both', 0.7, 0.6)):
    for seed in range(3):
      values = {'accuracy': (left + right) / 2, 'left/accuracy': left + 0.01 * seed, 'right/accuracy': right}
      made.append({**records()[0], 'cell': {'method': name, 'seed': seed}, 'selected': {'test': values}, 'curve': []})
  alone = {'left': 'left alone', 'right': 'right alone'}
  table = tables.Table(also=['test:left/accuracy', 'test:right/accuracy'], tradeoff=True, single=alone, baseline='both')
  summary = tables.summarise(made, table)
  plots.tradeoff(summary, tmp_path / 'tradeoff.png')
  plots.comparison(summary, tmp_path / 'comparison.png')
  across, along = drawn[0].axes[0].lines[:2]
  assert list(across.get_xdata()) == pytest.approx([0.91, 0.91]) and list(along.get_ydata()) == pytest.approx(
    [0.8, 0.8]
  )
  assert [container.get_label() for container in drawn[0].axes[0].containers] == ['both']
  assert [label.get_text() for label in drawn[1].axes[0].get_yticklabels()] == ['both']
  rows = {row.name: row for row in summary.blocks[0].rows}
  assert rows['left alone'].p_value is None and rows['left alone'].verdict is None and summary.comparisons == 0
