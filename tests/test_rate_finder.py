"""The learning-rate finder: its curve against training by hand, where it stops, what it suggests, what it leaves."""

import ast
import json
import math
import re
import shutil

import numpy as np
import pytest
from outcomes import assert_same

from transferlab import config, experiment, plots, rate_finder
from transferlab.errors import Diverged, Interrupted, UserError
from transferlab.evaluation import evaluate
from transferlab.preparation import prepare, start
from transferlab.settings import Run

pytestmark = pytest.mark.usefixtures('quick_compilation')


def settings(**changes):
  """Softmax regression on iris, by SGD with a bias ten times as fast as the kernel."""
  values = {
    'network': {'name': 'mlp', 'hidden': []},
    'target': {'data': {'name': 'iris', 'validation': 5, 'batch_size': 16}},
    'phases': [
      {'name': 'all', 'epochs': 2.0, 'optimizer': 'sgd', 'learning_rate': [('.*/bias', 0.1), ('.*', 0.01)]},
      {'name': 'more', 'steps': 5},
    ],
    **changes,
  }
  return config.validate(Run, values)


def files(place):
  return {path: path.read_bytes() for path in place.rglob('*') if path.is_file()}


# --------------------------------------------------------------------------------------------------------- the curve
def by_hand(run, rates):
  """Losses of softmax regression in float64, with these rates for the bias and a tenth of them for the kernel."""
  prepared = prepare(run)
  member = start(prepared, None)
  head = member.variables['params']['head']
  kernel, bias = (np.asarray(head[name], np.float64) for name in ('kernel', 'bias'))
  inputs = (np.asarray(member.arrays['x'], np.float64) - member.record['shift']) / member.record['scale']
  losses = []
  for step, rate in enumerate(rates):
    rows = member.order.batches(step, 1)['row'][0]
    x, targets = inputs[rows], np.eye(3)[np.asarray(member.arrays['label'])[rows]]
    logits = x @ kernel + bias
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    losses.append(-np.log((shares * targets).sum(1)).mean())
    error = (shares - targets) / len(rows)
    kernel, bias = kernel - 0.1 * rate * x.T @ error, bias - rate * error.sum(0)
  return losses


def test_the_curve_is_training_by_hand_at_growing_rates_with_the_phases_own_ratios(tmp_path):
  record = rate_finder.find(settings(), tmp_path / 'run', steps=60, smallest=1e-4, largest=1.0)
  rates = [point['rate'] for point in record['curve']]
  np.testing.assert_allclose(rates, np.geomspace(1e-4, 1.0, 61)[:-1], rtol=1e-5)
  np.testing.assert_allclose([point['loss'] for point in record['curve']], by_hand(settings(), rates), rtol=2e-5)
  assert record['phase'] == 'all' and record['stopped'] is None


def test_losses_are_smoothed_by_a_mean_with_weights_that_fall_by_a_tenth_a_step(tmp_path):
  record = rate_finder.find(settings(), tmp_path / 'run', steps=20, smallest=1e-4, largest=1.0)
  losses = np.array([point['loss'] for point in record['curve']])
  for number, point in enumerate(record['curve']):
    weights = 0.9 ** np.arange(number, -1, -1)
    assert point['smoothed'] == pytest.approx((weights * losses[: number + 1]).sum() / weights.sum(), rel=1e-9)


def test_it_stops_in_the_step_in_which_the_smoothed_loss_exceeds_four_times_its_smallest(tmp_path):
  record = rate_finder.find(settings(), tmp_path / 'run', steps=100, smallest=1e-4, largest=1e5)
  smoothed = np.array([point['smoothed'] for point in record['curve']])
  above = smoothed > 4 * np.minimum.accumulate(smoothed)
  assert len(smoothed) < 100 and above[-1] and not above[:-1].any()
  assert record['stopped'] == 'the smoothed loss rose above 4 times its smallest'


@pytest.mark.parametrize(('smoothed', 'rose'), [(3.99, False), (4.01, True)])
def test_four_times_is_the_limit(smoothed, rose):
  curve = rate_finder.Curve(1.0)
  for loss in (1.0, 1.9 * smoothed - 0.9):  # the second mean is (0.9 · first + second) / 1.9
    curve.line(1, 'all', 'train', {'rate_factor': 0.1, 'loss': loss}, 0.0, None)
  assert curve.points[-1]['smoothed'] == pytest.approx(smoothed) and curve.rose() is rose


def test_it_stops_where_the_loss_is_not_finite_and_keeps_what_came_before(tmp_path, monkeypatch):
  monkeypatch.setattr(rate_finder, 'RISE', 1e300)
  heavy = settings(objective=[{'term': 'cross_entropy', 'weight': 1e30}])
  record = rate_finder.find(heavy, tmp_path / 'run', steps=40, smallest=1e-30, largest=1.0)
  assert 0 < len(record['curve']) < 40 and 'is not finite' in record['stopped']
  assert all(math.isfinite(value) for point in record['curve'] for value in point.values())
  assert json.loads((tmp_path / 'run' / 'rate_finder.json').read_text()) == json.loads(json.dumps(record))


def test_a_loss_that_is_not_finite_from_the_start_is_no_curve(tmp_path):
  terms = [{'term': 'cross_entropy', 'weight': 1e38, 'name': f'term{number}'} for number in range(9)]
  with pytest.raises(Diverged, match='not finite at step 1'):
    rate_finder.find(settings(objective=terms), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_it_trains_only_what_the_first_phase_trains_whatever_its_length_schedule_and_early_stop(tmp_path):
  phase = {'name': 'probe', 'train': 'head', 'optimizer': 'adam', 'learning_rate': 1e-3}
  network = {'name': 'mlp', 'hidden': [5]}
  further = {'schedule': {'name': 'cosine', 'warmup': 0.5}, 'early_stop': {'patience': 1}}
  find = lambda name, *phases: rate_finder.find(
    settings(network=network, phases=list(phases)), tmp_path / name, steps=20
  )
  plain = find('plain', {**phase, 'steps': 20})
  assert find('other', {**phase, **further, 'epochs': 0.1}, {'steps': 4})['curve'] == plain['curve']
  assert find('full', {**phase, 'train': '.*', 'steps': 20})['curve'] != plain['curve']


def test_nothing_but_training_examples_is_looked_at(tmp_path, monkeypatch):
  monkeypatch.setattr(evaluate, 'predict', lambda *given, **more: pytest.fail('something was evaluated'))
  rate_finder.find(settings(evaluation={'every': 1, 'sets': {'more': {'name': 'iris'}}}), tmp_path / 'run', steps=20)


# ------------------------------------------------------------------------------------------------------- suggestions
def test_suggestions_are_the_steepest_descent_and_a_tenth_of_the_minimum():
  """A logistic curve over log10(rate), steepest at −2, and a parabola from −1 on, whose minimum is at −0.5."""
  exponents = np.linspace(-7, 1, 801)
  losses = 1 / (1 + np.exp(4 * (exponents + 2))) + 0.2 * np.where(exponents > -1, (exponents + 0.5) ** 2, 0.25)
  found = rate_finder.suggestions(10**exponents, losses)
  assert np.log10(found['steepest']) == pytest.approx(-2, abs=0.011)
  lowest = exponents[losses.argmin()]
  assert np.log10(found['minimum_tenth']) == pytest.approx(lowest - 1) and -0.5 <= lowest < -0.4


def test_the_first_tenth_of_the_steps_whose_mean_is_of_few_losses_suggests_nothing():
  rates, losses = np.geomspace(1e-6, 1, 100), np.linspace(1, 0.5, 100)
  losses[:5] = [9, 0.1, 7, 0.1, 8]
  found = rate_finder.suggestions(rates, losses)
  assert found['steepest'] >= rates[10] and found['minimum_tenth'] == pytest.approx(rates[-1] / 10)


@pytest.mark.parametrize('losses', [np.linspace(1, 2, 50), np.ones(50), np.ones(1)])
def test_a_loss_that_does_not_fall_suggests_nothing(losses):
  rates = np.geomspace(1e-6, 1, len(losses))
  assert rate_finder.suggestions(rates, losses) == {'steepest': None, 'minimum_tenth': None}


def test_a_suggestion_is_given_in_the_form_of_the_phases_rates(tmp_path):
  record = rate_finder.find(settings(), tmp_path / 'run', steps=60, smallest=1e-4, largest=10.0)
  rate = record['suggestions']['steepest']
  (bias, top), (rest, low) = record['learning_rate']['steepest']
  assert (bias, rest) == ('.*/bias', '.*')
  assert (top, low) == (pytest.approx(rate), pytest.approx(rate / 10))


def test_a_negative_loss_that_falls_does_not_look_like_one_that_rose():
  curve = rate_finder.Curve(1.0)
  for loss in (-1.0, -2.0, -3.0):
    curve.line(1, 'all', 'train', {'rate_factor': 0.1, 'loss': loss}, 0.0, None)
    assert not curve.rose()
  curve.line(1, 'all', 'train', {'rate_factor': 0.1, 'loss': 1e3}, 0.0, None)
  assert curve.rose()


# -------------------------------------------------------------------------------------------------------- the folder
def test_a_run_trains_in_the_folder_of_its_finder_as_if_there_had_been_none(tmp_path):
  rate_finder.find(settings(), tmp_path / 'found', steps=20)
  assert sorted(path.name for path in (tmp_path / 'found').iterdir()) == ['rate_finder.json', 'rate_finder.png']
  for name in ('found', 'plain'):
    experiment.run(settings(), tmp_path / name)
  assert_same(tmp_path / 'found', tmp_path / 'plain')


def test_a_finder_in_the_folder_of_a_finished_run_changes_nothing_of_the_run(tmp_path):
  experiment.run(settings(), tmp_path / 'run')
  before = files(tmp_path / 'run')
  rate_finder.find(settings(), tmp_path / 'run', steps=20)
  after = files(tmp_path / 'run')
  assert {path.name for path in set(after) - set(before)} == {'rate_finder.json', 'rate_finder.png'}
  assert {path: after[path] for path in before} == before


def test_any_other_file_in_the_folder_is_still_refused(tmp_path):
  rate_finder.find(settings(), tmp_path / 'run', steps=20)
  (tmp_path / 'run' / 'letter.txt').write_text('mine')
  with pytest.raises(UserError, match='is not empty and holds no run'):
    experiment.run(settings(), tmp_path / 'run')


def test_a_source_that_is_pretrained_for_the_finder_is_the_runs(tmp_path):
  source = {'data': {'name': 'iris', 'half': 0}, 'phases': [{'steps': 5, 'learning_rate': 0.1}]}
  run = settings(source=source, network={'name': 'mlp', 'hidden': [4]})
  rate_finder.find(run, tmp_path / 'run', steps=20)
  before = files(tmp_path / 'sources')
  assert before
  experiment.run(run, tmp_path / 'run')
  assert files(tmp_path / 'sources') == before


# ------------------------------------------------------------------------------------------------------ the commands
def test_the_command_prints_the_curve_and_rates_that_can_be_passed_on(command, write_config, tmp_path):
  run = write_config(tmp_path / 'mine.py', config.resolved(settings()))
  done = command(f'--config={run}', f'--workdir={tmp_path / "run"}', '--find_rate')
  assert done.status == 0, done.err
  record = json.loads((tmp_path / 'run' / 'rate_finder.json').read_text())
  rows = re.findall(r'^ +(\d+) +(\S+) +(\S+) +(\S+)$', done.out, re.MULTILINE)
  assert 10 <= len(rows) <= 21 and int(rows[-1][0]) == len(record['curve'])
  for number, *shown in rows:
    point = record['curve'][int(number) - 1]
    assert [float(value) for value in shown] == pytest.approx(list(point.values()), rel=6e-3)
  (first, second) = re.findall(r'(--config\.phases\.0\.learning_rate=)"(.*)"', done.out)
  for (flag, text), name in zip((first, second), ('steepest', 'minimum_tenth')):
    rules = ast.literal_eval(text)
    assert max(rate for _, rate in rules) == pytest.approx(record['suggestions'][name], rel=0.06)
    assert command(f'--config={run}', f'--workdir={tmp_path / name}', flag + text).status == 0


def test_the_command_takes_overrides_and_the_first_of_values_to_choose_from(command, write_config, tmp_path):
  phases = [{'steps': 9, 'learning_rate': 0.3, 'optimizer': 'sgd'}]
  values = config.resolved(settings(phases=phases, choose={'target.data.batch_size': [8, 64]}))
  run = write_config(tmp_path / 'mine.py', values)
  assert command(f'--config={run}', f'--workdir={tmp_path / "a"}', '--find_rate', '--config.seed=3').status == 0
  expected = settings(phases=phases, seed=3, target={'data': {'name': 'iris', 'validation': 5, 'batch_size': 8}})
  rate_finder.find(expected, tmp_path / 'b')
  assert (tmp_path / 'a' / 'rate_finder.json').read_text() == (tmp_path / 'b' / 'rate_finder.json').read_text()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'phases': [{'steps': 3, 'learning_rate': 0.0}]}, 'learning_rate is zero'),
    ({'network': None, 'phases': [], 'baseline': {'name': 'ridge'}}, 'a baseline has none'),
    ({'axes': {'method': {'plain': {}}, 'seed': [0, 1]}}, 'this is an experiment'),
  ],
)
def test_what_the_finder_cannot_serve_is_one_message(changes, message, command, write_config, tmp_path):
  values = changes if 'axes' in changes else {**config.resolved(settings()), **changes}
  if 'axes' in changes:
    values = {**changes, 'base': config.resolved(settings())}
  done = command(f'--config={write_config(tmp_path / "c.py", values)}', f'--workdir={tmp_path / "run"}', '--find_rate')
  assert done.status == 2 and message in done.err and 'Traceback' not in done.err
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'limits', [{'smallest': 1.0, 'largest': 0.1}, {'smallest': 0.0}, {'smallest': 1e-30}, {'steps': 3}]
)
def test_limits_that_make_no_sense_are_refused(limits, tmp_path):
  with pytest.raises(UserError, match='0 < smallest < largest and at least 10 steps'):
    rate_finder.find(settings(), tmp_path / 'run', **limits)


def test_an_interrupted_finder_says_so_and_writes_nothing(tmp_path):
  with pytest.raises(Interrupted, match='starts anew'):
    rate_finder.find(settings(), tmp_path / 'run', stop=lambda: True)
  assert not (tmp_path / 'run').exists()


# ----------------------------------------------------------------------------------------------------------- picture
def test_the_picture_shows_the_curve_over_a_logarithmic_rate_and_the_suggestions(tmp_path, monkeypatch):
  figures, save = [], plots._save
  monkeypatch.setattr(plots, '_save', lambda figure, path: (figures.append(figure), save(figure, path)))
  record = rate_finder.find(settings(), tmp_path / 'run', steps=60, smallest=1e-4, largest=1e5)
  (panel,) = figures[0].axes
  assert panel.get_xscale() == 'log'
  losses, smoothed, *suggested = panel.lines
  for line, name in ((losses, 'loss'), (smoothed, 'smoothed')):
    assert list(line.get_xdata()) == [point['rate'] for point in record['curve']]
    assert list(line.get_ydata()) == [point[name] for point in record['curve']]
  assert [line.get_xdata()[0] for line in suggested] == list(record['suggestions'].values())
  # Of the losses of single steps, which may be very large, as much is shown as the smoothed curve needs.
  low, high = panel.get_ylim()
  assert low < min(losses.get_ydata()) and max(smoothed.get_ydata()) < high < 1.2 * max(smoothed.get_ydata())
  shutil.rmtree(tmp_path / 'run')
