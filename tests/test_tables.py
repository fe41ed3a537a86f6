"""Tables: statistics against scipy, statsmodels and formulas by hand; renderings against the records they show."""

import csv
import io
import json
import math

import numpy as np
import pytest
import rich.console
import scipy.stats
from statsmodels.stats.multitest import multipletests

from transferlab import tables
from transferlab.errors import UserError

pytestmark = pytest.mark.usefixtures('quick_compilation')

SCRATCH = [0.50, 0.55, 0.52, 0.49, 0.53]
FULL = [0.60, 0.63, 0.64, 0.57, 0.61]
PROBE = [0.51, 0.53, 0.54, 0.48, 0.52]


def record(method, seed, value, *, pair='noise', metric='accuracy', **more):
  values = {'train': {metric: value + 0.25}, 'validation': {metric: value}, 'test': {metric: value}}
  return {
    'cell': {'pair': pair, 'method': method, 'seed': seed},
    'status': 'done',
    'reason': None,
    'selected': values,
    'last': {split: {metric: 0.0} for split in values},
    'trained_parameters': 1234567,
    'steps': 60,
    'seconds': 2.0,
    'curve': [],
    'chosen': {},
    'grid': {},
    'labels': {'train': 50, 'validation': 20},
    'stands_in': None,
    **more,
  }


def failed(method, seed, reason, **more):
  return record(method, seed, 0.0, status='failed', reason=reason, selected=None, last=None, **more)


def column(method, values, **more):
  return [record(method, seed, value, **more) for seed, value in enumerate(values)]


def points(*values):
  return [{'step': 20 * (i + 1), 'validation': {'accuracy': v, 'log_loss': 1 - v}} for i, v in enumerate(values)]


def row(summary, name, block=0):
  return next(row for row in summary.blocks[block].rows if row.name == name)


def cells(summary, name):
  """{head: cell} of the first Markdown row of that name."""
  lines = [line.split(' | ') for line in tables.markdown(summary).splitlines() if '|' in line]
  lines = [[cell.strip('| ') for cell in line] for line in lines]
  return dict(zip(lines[0], next(line for line in lines if line[0] == name)))


@pytest.mark.parametrize('p_values', [[0.01, 0.04, 0.03, 0.005], [0.5, 0.9, 0.02], [0.2], [0.03] * 4, []])
def test_holm_agrees_with_statsmodels(p_values):
  expected = multipletests(p_values, method='holm')[1] if p_values else []
  assert tables.holm(p_values) == pytest.approx(list(expected))


@pytest.mark.parametrize('confidence', [0.95, 0.5])
def test_the_interval_is_students(confidence):
  summary = tables.summarise(column('full', FULL), tables.Table(confidence=confidence))
  error = math.sqrt(sum((x - sum(FULL) / 5) ** 2 for x in FULL) / 4 / 5)
  low, high = scipy.stats.t.interval(confidence, 4, loc=np.mean(FULL), scale=error)
  assert row(summary, 'full').mean == pytest.approx(sum(FULL) / 5)
  assert row(summary, 'full').half_width == pytest.approx((high - low) / 2)


def test_one_repeat_has_a_mean_but_no_interval_and_no_test():
  summary = tables.summarise(column('scratch', [0.5]) + column('full', [0.6]), tables.Table(baseline='scratch'))
  full = row(summary, 'full')
  assert (full.n, full.mean, full.half_width, full.p_value, full.verdict) == (1, 0.6, None, None, None)
  assert cells(summary, 'full')['test accuracy'] == '0.600'


def test_verdicts_come_from_paired_tests_corrected_over_all_blocks():
  records = []
  for pair, shift in {'noise': 0.0, 'rotation': 0.04}.items():
    records += column('scratch', SCRATCH, pair=pair)
    records += column('full', np.array(FULL) - shift, pair=pair) + column('probe', PROBE, pair=pair)
    records += column('worse', np.array(SCRATCH) - [0.10, 0.12, 0.09, 0.11, 0.1 + shift], pair=pair)
  summary = tables.summarise(records, tables.Table(baseline='scratch'))
  others = [row(summary, name, block) for block in (0, 1) for name in ('full', 'probe', 'worse')]
  raw = [scipy.stats.ttest_rel(list(other.values.values()), SCRATCH).pvalue for other in others]
  assert [other.p_value for other in others] == pytest.approx(list(multipletests(raw, method='holm')[1]))
  assert [other.verdict for other in others] == ['win', 'tie', 'loss'] * 2
  assert summary.comparisons == 6
  assert row(summary, 'full').difference == pytest.approx(np.mean(np.array(FULL) - SCRATCH))
  assert row(summary, 'scratch').p_value is None and row(summary, 'scratch').verdict is None


def test_correction_turns_a_win_alone_into_a_tie_among_many():
  values = np.array(SCRATCH) + [0.02, 0.06, -0.005, 0.05, 0.04]
  raw = scipy.stats.ttest_rel(values, SCRATCH).pvalue
  assert 0.025 < raw < 0.05
  alone = column('scratch', SCRATCH) + column('full', values)
  table = tables.Table(baseline='scratch')
  assert row(tables.summarise(alone, table), 'full').verdict == 'win'
  assert row(tables.summarise(alone + column('probe', PROBE), table), 'full').verdict == 'tie'


def test_only_repeats_that_both_have_are_paired():
  records = column('scratch', SCRATCH[:4]) + [record('full', seed, FULL[seed]) for seed in (1, 4, 3, 2)]
  full = row(tables.summarise(records, tables.Table(baseline='scratch')), 'full')
  assert full.n == 4 and full.mean == pytest.approx(np.mean(FULL[1:]))
  assert full.difference == pytest.approx(np.mean(np.subtract(FULL[1:4], SCRATCH[1:4])))
  assert full.p_value == pytest.approx(scipy.stats.ttest_rel(FULL[1:4], SCRATCH[1:4]).pvalue)


def test_differences_without_spread_are_certain_or_nothing():
  records = column('scratch', [0.5, 0.6, 0.7])
  records += column('same', [0.5, 0.6, 0.7]) + column('above', [0.6, 0.7, 0.8])  # 0.1 but for the last bit
  summary = tables.summarise(records, tables.Table(baseline='scratch'))
  assert (row(summary, 'same').p_value, row(summary, 'same').verdict) == (1.0, 'tie')
  assert (row(summary, 'above').p_value, row(summary, 'above').verdict) == (0.0, 'win')


def test_less_of_a_loss_is_a_win():
  records = column('scratch', SCRATCH, metric='log_loss') + column('full', FULL, metric='log_loss')
  assert row(tables.summarise(records, tables.Table(baseline='full', metric='log_loss')), 'scratch').verdict == 'win'


def test_blocks_and_rows_stand_in_order_of_first_appearance_and_the_last_record_of_a_cell_counts():
  records = [record('b', 0, 0.1, pair='z'), record('a', 0, 0.2, pair='a'), record('b', 0, 0.3, pair='a')]
  summary = tables.summarise([*records, record('b', 0, 0.9, pair='z')], tables.Table())
  assert [(block.axes, [row.name for row in block.rows]) for block in summary.blocks] == [
    ({'pair': 'z'}, ['b']),
    ({'pair': 'a'}, ['b', 'a']),
  ]
  assert row(summary, 'b').values == {'0': 0.9}


def test_selected_falls_back_to_last_and_the_legend_says_so():
  records = [record('full', 0, 0.6), record('full', 1, 0.6, selected=None, last={'test': {'accuracy': 0.4}})]
  summary = tables.summarise(records, tables.Table())
  assert row(summary, 'full').values == {'0': 0.6, '1': 0.4}
  assert 'the last step in 1 run that selected none' in tables.markdown(summary)
  last = tables.summarise(records, tables.Table(which='last'))
  assert row(last, 'full').values == {'0': 0.0, '1': 0.4}
  assert 'at the last step' in tables.markdown(last)


def test_steps_to_reach_are_the_first_that_meet_the_baselines_last_of_the_same_repeat():
  curves = {
    'scratch': [points(0.2, 0.6, 0.5), points(0.2, 0.3, 0.4), points(0.1)],
    'fast': [points(0.5, 0.7), points(0.39, 0.4, 0.1), points(0, 0, 0, 0, 0, 0.1)],
    'once': [points(0.4, 0.4), points(0.3, 0.5), points(0.0)],
    'never': [points(0.1), points(0.1), points(0.0)],
    'classical': [[], [], []],
  }
  records = [record(name, seed, 0.5, curve=of[seed]) for name, of in curves.items() for seed in range(3)]
  summary = tables.summarise(records, tables.Table(baseline='scratch'))
  shown = [cells(summary, name)['steps to scratch'] for name in curves]
  assert shown == ['40', '40', '40 (1/3)', 'not reached', '—']


def test_steps_to_reach_a_loss_count_values_at_most_the_baselines():
  curves = {'scratch': points(0.5, 0.4, 0.3), 'full': points(0.1, 0.2, 0.35)}  # log loss is one minus these
  records = [record(name, 0, 0.5, metric='log_loss', curve=curve) for name, curve in curves.items()]
  summary = tables.summarise(records, tables.Table(baseline='scratch', metric='log_loss'))
  assert row(summary, 'full').steps_to_reach == 60


def test_failures_stand_as_rows_with_the_first_line_of_their_reason_and_enter_no_mean():
  records = column('full', FULL[:2]) + [failed('full', seed, 'diverged at step 3\nloss: nan') for seed in (2, 3)]
  records += [failed('probe', 0, 'a|b matches nothing'), record('probe', 1, float('nan'))]
  summary = tables.summarise(records, tables.Table())
  assert row(summary, 'full').mean == pytest.approx(np.mean(FULL[:2])) and row(summary, 'full').n == 2
  assert row(summary, 'full').failures == {'diverged at step 3': 2}
  lines = tables.markdown(summary).splitlines()
  assert any(line.startswith('| full, failed | 2 | diverged at step 3 |') for line in lines)
  assert any(line.startswith('| probe, failed | 1 | a\\|b matches nothing |') for line in lines)
  assert any(line.startswith('| probe, failed | 1 | accuracy has no value on test |') for line in lines)
  assert not any(line.startswith('| probe |') for line in lines)
  assert '6 runs, of which 3 failed; 12.0 s in all.' in tables.markdown(summary)


def test_markdown_shows_every_column_that_has_a_meaning():
  grid = {'phases.0.learning_rate': [0.1, 0.01]}
  records = column('scratch', SCRATCH, trained_parameters=None, labels={'train': 50, 'validation': 0})
  for seed, value in enumerate(FULL):
    chosen = {'phases.0.learning_rate': [0.1, 0.01][seed > 1]}
    records.append(record('full', seed, value, chosen=chosen, grid=grid, stands_in='a.npz for b'))
  summary = tables.summarise(records, tables.Table(baseline='scratch', notes=['Two cores.']))
  p_value = scipy.stats.ttest_rel(FULL, SCRATCH).pvalue
  half = scipy.stats.sem(FULL) * scipy.stats.t.ppf(0.975, 4)
  assert cells(summary, 'full') == {
    'method': 'full', 'n': '5', 'test accuracy': f'0.610 ± {half:.3f}', 'difference to scratch': '+0.092',
    'p': '<0.001' if p_value < 0.001 else f'{p_value:.3f}', 'verdict': 'win', 'trained parameters': '1,234,567',
    'seconds (total)': '2.0 (10.0)', 'gap': '+0.250', 'chosen': '0.01×3 0.1×2', 'labels': '50 + 20',
  }  # fmt: skip
  assert cells(summary, 'scratch')['trained parameters'] == '—'
  text = tables.markdown(summary)
  assert 'paired two-sided t test against scratch' in text and "Holm's correction over all 1 comparison " in text
  assert '95 % t interval' in text and 'for choosing (validation)' in text
  assert 'phases.0.learning_rate from 0.1, 0.01 (full)' in text
  assert '- data: a.npz for b\n' in text and text.endswith('- Two cores.\n')
  bare = tables.markdown(tables.summarise(column('full', FULL, trained_parameters=None, labels=None), tables.Table()))
  heads = bare.splitlines()[2]
  assert heads == '| method | n | test accuracy | seconds (total) | gap |'


def test_two_chosen_keys_are_told_apart():
  chosen = {'phases.0.learning_rate': 0.1, 'phases.1.learning_rate': 0.2, 'objective.0.weight': 3}
  summary = tables.summarise([record('full', 0, 0.5, chosen=chosen)], tables.Table())
  assert cells(summary, 'full')['chosen'] == 'phases.0.learning_rate 0.1×1; phases.1.learning_rate 0.2×1; weight 3×1'


def test_small_errors_keep_three_digits():
  records = column('ridge', [0.00123, 0.00321], metric='mean_squared_error')
  summary = tables.summarise(records, tables.Table(metric='mean_squared_error'))
  assert cells(summary, 'ridge')['test mean_squared_error'].startswith('0.00222 ± ')


def test_csv_reads_back_in_full_precision():
  records = column('scratch', SCRATCH) + column('full', FULL) + [failed('full', 9, 'no, "never"')]
  summary = tables.summarise(records, tables.Table(baseline='scratch'))
  scratch, full = csv.DictReader(io.StringIO(tables.csv(summary)))
  assert float(full['mean']) == row(summary, 'full').mean and float(full['p_value']) == row(summary, 'full').p_value
  assert (full['pair'], full['method'], full['verdict'], full['n']) == ('noise', 'full', 'win', '5')
  assert full['failures'] == '1× no, "never"' and scratch['p_value'] == '' and scratch['labels'] == '50 + 20'


def test_written_files_hold_the_table_and_json_without_nan(tmp_path):
  curve = [{'step': 1, 'validation': {'accuracy': float('nan')}, 'train': {'loss': np.inf}}]
  records = column('full', FULL, curve=curve)
  summary = tables.summarise(records, tables.Table())
  (tmp_path / 'table.md').write_text('old')
  tables.write(summary, records, tmp_path)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['table.csv', 'table.json', 'table.md']
  assert (tmp_path / 'table.md').read_text() == tables.markdown(summary)
  assert (tmp_path / 'table.csv').read_text() == tables.csv(summary)
  whole = json.loads((tmp_path / 'table.json').read_text(), parse_constant=pytest.fail)
  assert whole['blocks'][0]['rows'][0]['mean'] == pytest.approx(np.mean(FULL))
  assert whole['records'][0]['curve'][0] == {'step': 1, 'validation': {'accuracy': None}, 'train': {'loss': None}}
  assert whole['table']['metric'] == 'accuracy'


@pytest.mark.parametrize('width', [70, 200])
def test_the_screen_shows_whole_cells_and_names_the_columns_it_leaves_out(width):
  records = column('[scratch]', SCRATCH) + column('full', FULL) + [failed('full', 7, 'out of memory')]
  summary = tables.summarise(records, tables.Table(baseline='[scratch]'))
  console = rich.console.Console(width=width, file=io.StringIO(), record=True)
  tables.show(summary, console)
  text = console.export_text()
  assert max(map(len, text.splitlines())) <= width
  assert '[scratch]' in text and f'0.610 ± {row(summary, "full").half_width:.3f}' in text
  assert 'full, failed (1): out of memory' in text
  assert ('1,234,567' in text) == (width == 200)
  assert ('not shown on a screen this narrow: trained parameters' in ' '.join(text.split())) == (width == 70)


@pytest.mark.parametrize(
  'table, message',
  [
    ({'baseline': 'scrach'}, "unknown baseline row 'scrach'; nearest: scratch"),
    ({'rows': 'methods'}, "'methods'; nearest: method"),
    ({'split': 'tset'}, "unknown split 'tset'; nearest: test"),
    ({'metric': 'top_5'}, "measured on test 'top_5'; nearest: accuracy"),
    ({'metric': 'acuracy'}, 'nearest: accuracy'),
  ],
)
def test_a_name_the_records_do_not_have_is_answered_with_the_nearest(table, message):
  with pytest.raises(UserError, match=message):
    tables.summarise(column('scratch', SCRATCH), tables.Table(**table))


def test_further_sets_stand_in_columns_of_their_own():
  shifted = {'none': [0.30, 0.32, 0.31, 0.29, 0.33], 'all': [0.41, 0.47, 0.44, 0.40, 0.43]}
  records = []
  for name, values in (('none', SCRATCH), ('all', FULL)):
    for seed, value in enumerate(values):
      records.append(record(name, seed, value))
      records[-1]['selected'] = {**records[-1]['selected'], 'shifted': {'accuracy': shifted[name][seed]}}
  summary = tables.summarise(records, tables.Table(baseline='none', also=['shifted']))
  low, high = scipy.stats.t.interval(0.95, 4, np.mean(shifted['all']), scipy.stats.sem(shifted['all']))
  shown = f'{np.mean(shifted["all"]):.3f} ± {(high - low) / 2:.3f}'
  assert cells(summary, 'all')['shifted accuracy'] == shown
  assert 'test accuracy and shifted accuracy: mean over seed' in tables.markdown(summary)
  (line,) = [line for line in csv.DictReader(io.StringIO(tables.csv(summary))) if line['method'] == 'all']
  name, value = line['also'].split(': ')
  assert name == 'shifted' and float(value) == pytest.approx(np.mean(shifted['all']), abs=1e-12)
  with pytest.raises(UserError, match=r"split 'shiftet'; nearest: shifted"):
    tables.summarise(records, tables.Table(also=['shiftet']))


def test_another_metric_of_a_set_stands_in_a_column_of_its_own():
  agreement, records = [0.8, 0.9, 0.7, 0.8, 0.8], []
  for name, values in (('none', SCRATCH), ('all', FULL)):
    for seed, value in enumerate(values):
      records.append(record(name, seed, value))
      if name == 'all':
        records[-1]['selected']['test'] |= {'agreement': agreement[seed]}
  summary = tables.summarise(records, tables.Table(baseline='none', also=['test:agreement']))
  low, high = scipy.stats.t.interval(0.95, 4, np.mean(agreement), scipy.stats.sem(agreement))
  assert cells(summary, 'all')['test agreement'] == f'{np.mean(agreement):.3f} ± {(high - low) / 2:.3f}'
  assert cells(summary, 'none')['test agreement'] == '—'
  assert 'test accuracy and test agreement: mean over seed' in tables.markdown(summary)
  with pytest.raises(UserError, match=r"measured on test 'agrement'; nearest: agreement"):
    tables.summarise(records, tables.Table(also=['test:agrement']))


def test_long_values_that_begin_alike_stay_apart_and_short():
  rules = [[['head', 0.001], ['block3/(conv|norm).*', 0.0003846153846153846], ['.*', rate]] for rate in (1e-4, 2e-4)]
  records = [record('all', seed, 0.5, chosen={'rate': rules[seed % 2]}, grid={'rate': rules}) for seed in range(3)]
  chosen = row(tables.summarise(records, tables.Table()), 'all').chosen['rate']
  assert sorted(chosen.values()) == [1, 2] and all(len(text) < 50 for text in chosen)


def test_delta_m_is_the_mean_relative_difference_to_networks_of_one_task():
  """Maninis et al. 2019: (M - M_single) / M_single for each task, with the sign turned where less is better."""
  left, right = {'alone left': [0.90, 0.80], 'alone right': [0.1, 0.1], 'both': [0.81, 0.84]}, {}
  right = {'alone left': [0.1, 0.2], 'alone right': [0.50, 0.60], 'both': [0.55, 0.54]}
  for metric, sign in (('accuracy', 1), ('log_loss', -1)):
    records = []
    for name in left:
      for seed in range(2):
        records.append(record(name, seed, 0.5, metric=metric))
        records[-1]['selected']['test'] |= {f'left/{metric}': left[name][seed], f'right/{metric}': right[name][seed]}
    single = {'left': 'alone left', 'right': 'alone right'}
    table = tables.Table(metric=metric, single=single, also=[f'test:left/{metric}', f'test:right/{metric}'])
    summary = tables.summarise(records, table)
    each = [
      50 * sign * ((0.81 - 0.90) / 0.90 + (0.55 - 0.50) / 0.50),
      50 * sign * ((0.84 - 0.80) / 0.80 + (0.54 - 0.60) / 0.60),
    ]
    found = {own.name: own for block in summary.blocks for own in block.rows}
    assert found['both'].delta_m == pytest.approx(np.mean(each), abs=1e-9)
    assert found['alone left'].delta_m is None
    assert cells(summary, 'both')['Δm'].startswith(f'{np.mean(each):+.2f} %')
    helped = [100 * sign * (0.81 - 0.90) / 0.90, 100 * sign * (0.84 - 0.80) / 0.80]
    low, high = scipy.stats.t.interval(0.95, 1, np.mean(helped), scipy.stats.sem(helped))
    assert cells(summary, 'both')['Δ left'] == f'{np.mean(helped):+.2f} % ± {(high - low) / 2:.2f}'
    assert cells(summary, 'both')['Δ right'].startswith(f'{2 * np.mean(each) - np.mean(helped):+.2f} %')
    assert cells(summary, 'alone left')['Δ left'] == '—'
    assert 'left by alone left, right by alone right' in tables.markdown(summary)
  with pytest.raises(UserError, match=r"table.single: row 'alone rigth'; nearest: alone right"):
    tables.summarise(records, tables.Table(metric='log_loss', single={'right': 'alone rigth'}))
