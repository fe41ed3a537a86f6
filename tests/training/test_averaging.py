"""Averages along a run, between two ends and over several runs, against their formulas in float64."""

import numpy as np
import pytest
from outcomes import Stopper

import transferlab
from transferlab import checkpoints, config, experiment, paths
from transferlab.errors import Interrupted, UserError
from transferlab.preparation import prepare
from transferlab.settings import Run
from transferlab.training import averaging

pytestmark = pytest.mark.usefixtures('quick_compilation')

DATA = {'name': 'digits', 'shots': 6, 'validation': 4, 'batch_size': 20, 'noise': 0.3}
TRAIN = {'name': 'all', 'steps': 8, 'optimizer': 'momentum', 'learning_rate': 0.05}
PROBE = {'name': 'probe', 'train': 'head', 'steps': 6, 'learning_rate': 1e-2}


def settings(*phases, **more):
  values = {
    'network': {'name': 'mlp', 'hidden': [12]},
    'target': {'data': DATA},
    'phases': list(phases),
    'evaluation': {'every': 4},
    'checkpoint': {'every': 4},
    'logging': {'every': 4},
    **more,
  }
  return config.validate(Run, values)


def weights(place, which='last'):
  flat = paths.flatten(checkpoints.weights(checkpoints.find(str(place)), which))
  return {path: np.asarray(leaf, np.float64) for path, leaf in flat.items()}


@pytest.fixture(scope='module')
def track(tmp_path_factory):
  """θ_0 … θ_8 of the plain run, each from a run of its own length: at a constant rate a run begins any longer one."""
  place = tmp_path_factory.mktemp('track')
  found = []
  for steps in range(1, 9):
    experiment.run(settings({**TRAIN, 'steps': steps}), place / str(steps))
    found.append(weights(place / str(steps)))
  start = settings({**TRAIN, 'learning_rate': [('head', 0.0), ('.*', 0.0)], 'steps': 1})
  experiment.run(start, place / 'start')
  return [weights(place / 'start'), *found]


def assert_close(found, expected, tolerance=1e-5):
  for path, leaf in expected.items():
    np.testing.assert_allclose(found[path], leaf, rtol=tolerance, atol=tolerance, err_msg=path)


# ------------------------------------------------------------------------------------------------------ along a run
def test_an_exponential_average_is_its_closed_form(track, tmp_path):
  decay = 0.7
  experiment.run(settings({**TRAIN, 'average': {'name': 'exponential', 'decay': decay}}), tmp_path / 'run')
  expected = {
    path: decay**8 * track[0][path] + sum((1 - decay) * decay ** (8 - s) * track[s][path] for s in range(1, 9))
    for path in track[0]
  }
  assert_close(weights(tmp_path / 'run'), expected)


def test_a_late_exponential_average_starts_from_the_parameters_of_its_first_step(track, tmp_path):
  average = {'name': 'exponential', 'decay': 0.5, 'first': 0.5, 'every': 2}
  experiment.run(settings({**TRAIN, 'average': average}), tmp_path / 'run')
  assert_close(
    weights(tmp_path / 'run'),
    {path: 0.25 * track[4][path] + 0.25 * track[6][path] + 0.5 * track[8][path] for path in track[0]},
  )


@pytest.mark.parametrize('first, every, taken', [(0.0, 1, range(1, 9)), (0.5, 2, (6, 8)), (0.25, 3, (5, 8))])
def test_stochastic_weight_averaging_is_the_mean_of_what_it_takes(track, tmp_path, first, every, taken):
  average = {'name': 'uniform', 'first': first, 'every': every}
  experiment.run(settings({**TRAIN, 'average': average}), tmp_path / 'run')
  assert_close(weights(tmp_path / 'run'), {p: np.mean([track[s][p] for s in taken], axis=0) for p in track[0]})


def test_an_average_that_would_never_be_taken_is_refused():
  with pytest.raises(UserError, match=r'phases.0.average: the phase is over, after 8 steps, before the first average'):
    prepare(settings({**TRAIN, 'average': {'name': 'uniform', 'first': 0.75, 'every': 4}}))


def test_a_phase_that_stops_before_its_first_average_gives_its_last_parameters(tmp_path):
  stop = {'early_stop': {'patience': 1, 'min_delta': 100.0}}  # after two validations, whatever they say
  experiment.run(settings({**TRAIN, **stop, 'steps': 40}), tmp_path / 'plain')
  average = {'name': 'uniform', 'first': 0.5, 'every': 5}
  experiment.run(settings({**TRAIN, **stop, 'steps': 40, 'average': average}), tmp_path / 'averaged')
  found = weights(tmp_path / 'averaged')
  for path, leaf in weights(tmp_path / 'plain').items():
    np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def test_validation_judges_the_average_and_the_next_phase_starts_from_it(track, tmp_path):
  average = {'name': 'uniform'}
  still = {'name': 'still', 'steps': 1, 'learning_rate': [('head', 0.0), ('.*', 0.0)]}
  results = experiment.run(settings({**TRAIN, 'average': average}, still), tmp_path / 'run')
  assert_close(weights(tmp_path / 'run'), {p: np.mean([t[p] for t in track[1:]], axis=0) for p in track[0]})
  at = {row['step']: row['validation']['log_loss'] for row in results['curve'] if 'validation' in row}
  assert at[8] == pytest.approx(at[9], rel=1e-6)
  plain = experiment.run(settings(TRAIN), tmp_path / 'plain')
  assert at[8] != pytest.approx(plain['last']['validation']['log_loss'], rel=1e-4)


def test_an_averaged_network_has_the_statistics_of_its_own_activations(tmp_path):
  network = {'name': 'convnet', 'width': 4, 'blocks': 1, 'features': 8, 'batch_norm': True}
  run = settings({**TRAIN, 'average': {'name': 'uniform'}}, network=network)
  experiment.run(run, tmp_path / 'run')
  found, prepared = weights(tmp_path / 'run'), prepare(run)
  x, _, _ = prepared.loaded.evaluated('train', prepared.record)
  x = (np.asarray(x, np.float64) - prepared.record['shift']) / prepared.record['scale']
  kernel = found['params/block1/conv/kernel']
  padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
  patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))  # n h w c i j
  y = np.einsum('nhwcij,ijco->nhwo', patches, kernel) + found.get('params/block1/conv/bias', 0)
  np.testing.assert_allclose(found['stats/block1/norm/mean'], y.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(found['stats/block1/norm/var'], y.var(axis=(0, 1, 2)), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------------- between two ends
@pytest.mark.parametrize('share', [0.0, 0.3, 1.0])
def test_wise_ft_goes_part_of_the_way_and_its_ends_are_exact(tmp_path, share):
  experiment.run(settings(PROBE), tmp_path / 'start')
  experiment.run(settings(PROBE, TRAIN), tmp_path / 'end')
  results = experiment.run(settings(PROBE, {**TRAIN, 'interpolate': [share]}), tmp_path / 'run')
  found, start, end = (weights(tmp_path / name) for name in ('run', 'start', 'end'))
  for path in found:
    if share in (0, 1):
      np.testing.assert_array_equal(found[path], (end if share else start)[path], err_msg=path)
    np.testing.assert_allclose(found[path], (1 - share) * start[path] + share * end[path], rtol=1e-5, atol=1e-7)
  assert results['interpolation']['chosen'] == share


def test_validation_data_choose_the_share_and_the_curve_shows_every_set(tmp_path):
  shares = [0.0, 0.25, 0.5, 0.75, 1.0]
  more = {'evaluation': {'every': 4, 'select': 'log_loss', 'sets': {'clean': {**DATA, 'noise': 0.0}}}}
  results = experiment.run(settings(PROBE, {**TRAIN, 'interpolate': shares}, **more), tmp_path / 'run')
  curve = results['interpolation']
  assert [point['share'] for point in curve['points']] == shares
  assert all({'train', 'validation', 'test', 'clean'} < set(point) for point in curve['points'])
  losses = [point['validation']['log_loss'] for point in curve['points']]
  assert curve['chosen'] == shares[int(np.argmin(losses))]
  chosen = curve['points'][shares.index(curve['chosen'])]
  assert chosen['test'] == results['last']['test']


def test_what_is_selected_is_the_point_that_was_chosen(tmp_path):
  # Not the end of the phase, nor a state on the way to it, however good: none of them was offered.
  results = experiment.run(settings({**TRAIN, 'interpolate': [0.1]}), tmp_path / 'run')
  assert results['best']['step'] == 8 and results['selected'] == results['last']
  selected, last = weights(tmp_path / 'run', 'selected'), weights(tmp_path / 'run')
  for path in last:
    np.testing.assert_array_equal(selected[path], last[path], err_msg=path)


def test_frozen_weights_keep_their_bits_between_the_ends(tmp_path):
  network = {'name': 'convnet', 'width': 4, 'blocks': 1, 'features': 8, 'batch_norm': True}
  top = {**TRAIN, 'train': 'dense|head', 'interpolate': [0.3]}
  experiment.run(settings(PROBE, network=network), tmp_path / 'start')
  experiment.run(settings(PROBE, top, network=network), tmp_path / 'run')
  found = weights(tmp_path / 'run')
  for path, leaf in weights(tmp_path / 'start').items():
    if 'block1' in path:
      np.testing.assert_array_equal(found[path], leaf, err_msg=path)


@pytest.mark.parametrize('ending', [{'average': {'name': 'exponential', 'decay': 0.5}}, {'interpolate': [0.5]}])
def test_an_extended_run_goes_on_from_where_training_stood(tmp_path, ending):
  longer = settings({**TRAIN, **ending, 'steps': 16})
  experiment.run(settings({**TRAIN, **ending}), tmp_path / 'run')
  experiment.run(longer, tmp_path / 'run', extend=True)
  experiment.run(longer, tmp_path / 'whole')
  found = weights(tmp_path / 'run')
  for path, leaf in weights(tmp_path / 'whole').items():
    np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def test_several_shares_need_validation_data_to_choose():
  data = {**DATA, 'validation': None}
  with pytest.raises(UserError, match='interpolate chooses among several shares on validation data'):
    prepare(settings({**TRAIN, 'interpolate': [0.0, 1.0]}, target={'data': data}))
  prepare(settings({**TRAIN, 'interpolate': [0.5]}, target={'data': data}))


@pytest.mark.parametrize(
  'at', [4, 8, pytest.param(12, marks=pytest.mark.long), pytest.param(16, marks=pytest.mark.long)]
)
def test_averages_and_ends_survive_a_stop_to_the_bit(tmp_path, at):
  first = {**TRAIN, 'average': {'name': 'exponential', 'decay': 0.8}}
  second = {**TRAIN, 'name': 'second', 'average': {'name': 'uniform', 'every': 2}, 'interpolate': [0.25, 0.5, 1.0]}
  run = settings(first, second)
  whole = experiment.run(run, tmp_path / 'whole')
  stopper = Stopper(at)
  with pytest.raises(Interrupted):
    experiment.run(run, tmp_path / 'cut', screen=stopper, stop=stopper)
  cut = experiment.run(run, tmp_path / 'cut')
  found = weights(tmp_path / 'cut')
  for path, leaf in weights(tmp_path / 'whole').items():
    np.testing.assert_array_equal(leaf, found[path], err_msg=path)
  assert cut['interpolation'] == whole['interpolation'] and cut['last'] == whole['last']


# ------------------------------------------------------------------------------------------------------- over several
def test_a_population_averages_and_interpolates_each_member_by_itself(tmp_path):
  phases = [PROBE, {**TRAIN, 'average': {'name': 'uniform'}, 'interpolate': [0.0, 0.5, 1.0]}]
  tables = {}
  for together in (True, False):
    base = {key: value for key, value in settings(*phases).model_dump(mode='json').items() if key != 'seed'}
    study = {'base': {**base, 'network': {'name': 'mlp', 'hidden': [12]}}, 'axes': {'seed': [0, 1, 2]}}
    place = tmp_path / str(together)
    tables[together] = transferlab.run({**study, 'table': {'rows': 'seed'}, 'population': together}, place)
  chosen = set()
  for one, other in zip(tables[True]['records'], tables[False]['records']):
    assert one['interpolation']['chosen'] == other['interpolation']['chosen']
    assert one['last']['test']['log_loss'] == pytest.approx(other['last']['test']['log_loss'], rel=1e-4)
    chosen.add(one['interpolation']['chosen'])


def test_rows_that_differ_in_their_shares_are_not_trained_as_one(tmp_path):
  base = {key: value for key, value in settings(PROBE, TRAIN).model_dump(mode='json').items() if key != 'seed'}
  base['network'] = {'name': 'mlp', 'hidden': [12]}
  axes = {'method': {str(share): {'phases.1.interpolate': [share]} for share in (0.25, 0.75)}, 'seed': [0]}
  table = transferlab.run({'base': base, 'axes': axes}, tmp_path / 'run')
  assert [record['interpolation']['chosen'] for record in table['records']] == [0.25, 0.75]
  losses = [record['last']['train']['log_loss'] for record in table['records']]
  assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_a_soup_whose_ingredients_learnt_its_validation_data_is_refused(tmp_path):
  run = settings(TRAIN, choose={'seed': [0, 1]}, soup='greedy')
  with pytest.raises(UserError, match=r'other validation data each.*config\.target\.data\.seed fixes the split'):
    experiment.run(run, tmp_path / 'run')
  fixed = settings(TRAIN, choose={'seed': [0, 1]}, soup='greedy', target={'data': {**DATA, 'seed': 0}})
  assert experiment.run(fixed, tmp_path / 'fixed')['soup']['ingredients']


def test_a_soup_can_be_extended(tmp_path):
  choose = {'phases.0.learning_rate': [0.01, 0.05]}
  experiment.run(settings(TRAIN, choose=choose, soup='uniform'), tmp_path / 'run')
  longer = experiment.run(
    settings({**TRAIN, 'steps': 12}, choose=choose, soup='uniform'), tmp_path / 'run', extend=True
  )
  whole = experiment.run(settings({**TRAIN, 'steps': 12}, choose=choose, soup='uniform'), tmp_path / 'whole')
  assert longer['last'] == whole['last'] and longer['steps'] == 12


def test_greedy_soup_takes_what_does_not_harm_the_best_first():
  random = np.random.default_rng(0)
  trees = [{'w': random.normal(size=5).astype(np.float32)} for _ in range(6)]
  goal = random.normal(size=5)
  judge = lambda tree: -float(np.abs(np.asarray(tree['w'], np.float64) - goal).sum())
  scores = [judge(tree) for tree in trees]
  _, chosen, best = averaging.greedy_soup(trees, scores, judge)
  order, kept = list(np.argsort([-s for s in scores])), []
  for number in order:
    with_it = np.mean([trees[n]['w'] for n in [*kept, number]], axis=0)
    without = np.mean([trees[n]['w'] for n in kept], axis=0) if kept else None
    if without is None or judge({'w': with_it}) >= judge({'w': without}):
      kept.append(number)
  assert chosen == kept and len(kept) > 1
  assert best == pytest.approx(judge({'w': np.mean([trees[n]['w'] for n in kept], axis=0)}), rel=1e-5)


@pytest.mark.parametrize('recipe', ['uniform', 'greedy'])
def test_a_soup_is_the_mean_of_its_ingredients_in_a_folder_of_its_own(tmp_path, recipe):
  choose = {'phases.1.learning_rate': [0.01, 0.05, 0.1]}
  run = settings(PROBE, {**TRAIN, 'train': 'head'}, choose=choose, soup=recipe)
  results = experiment.run(run, tmp_path / 'run')
  said = results['soup']
  assert said['recipe'] == recipe and (recipe == 'greedy' or said['ingredients'] == [0, 1, 2])
  parts = [weights(tmp_path / 'run' / 'candidates' / str(n), 'selected') for n in said['ingredients']]
  found = weights(tmp_path / 'run', 'selected')
  for path, leaf in found.items():
    np.testing.assert_allclose(leaf, np.mean([part[path] for part in parts], axis=0), rtol=1e-6, atol=1e-7)
    if not path.startswith('params/head'):
      np.testing.assert_array_equal(leaf, parts[0][path], err_msg=path)
  model = transferlab.load(tmp_path / 'run')
  assert model.evaluate(run.target.data)['accuracy'] == pytest.approx(results['selected']['test']['accuracy'])
  assert experiment.run(run, tmp_path / 'run')['soup'] == said


def test_a_soup_in_a_study_is_that_of_the_single_run(tmp_path):
  choose = {'phases.0.learning_rate': [0.01, 0.05, 0.1]}
  run = settings(TRAIN, choose=choose, soup='greedy')
  alone = experiment.run(run, tmp_path / 'run')
  base = {**settings(TRAIN).model_dump(mode='json'), 'choose': choose, 'soup': 'greedy'}
  base['network'] = {'name': 'mlp', 'hidden': [12]}
  del base['seed']
  table = transferlab.run({'base': base, 'axes': {'seed': [0]}, 'table': {'rows': 'seed'}}, tmp_path / 'study')
  (record,) = table['records']
  assert record['soup']['ingredients'] == alone['soup']['ingredients']
  assert record['selected']['test']['log_loss'] == pytest.approx(alone['selected']['test']['log_loss'], rel=1e-4)


def test_a_soup_without_candidates_is_refused():
  with pytest.raises(UserError, match='a soup is made of the candidates of choose'):
    settings(TRAIN, soup='greedy')
