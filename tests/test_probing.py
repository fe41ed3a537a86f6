"""Runs that probe a network: weights that reach the probe, choices, the folder, and an experiment of them."""

import csv
import json

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

import transferlab
from transferlab import config, results
from transferlab.errors import UserError
from transferlab.preparation import prepare
from transferlab.settings import Run

pytestmark = pytest.mark.usefixtures('quick_compilation')

NETWORK = dict(name='convnet', width=4, features=12)
SOURCE = dict(data=dict(name='digits', half=0, batch_size=64), phases=[dict(steps=40, learning_rate=1e-2)])
DATA = dict(name='digits', half=1, shots=5, validation=4, test=0.5)
PENALTIES = [0.01, 1.0, 100.0]
STAGES = ['block1', 'block2', 'dense', 'head']


def probe(**changes):
  baseline = dict(name='logistic_regression', stage='all', penalties=PENALTIES)
  return {**dict(network=NETWORK, source=SOURCE, target=dict(data=DATA), baseline=baseline), **changes}


def by_hand(model, given, stage, penalty, name):
  """Accuracy of scikit-learn's logistic regression on a stage's pooled, standardised features."""
  prepared = prepare(config.validate(Run, given))
  features, labels = {}, {}
  for part in ('train', name):
    x, labels[part], _ = results.split(prepared, part)
    outputs, _ = model.prepared.network.apply(model.variables, np.asarray(x, np.float32) / 16)
    value = np.asarray(outputs[stage], np.float64)
    features[part] = value.reshape(len(value), -1, value.shape[-1]).mean(axis=1)
  scaler = StandardScaler().fit(features['train'])
  fitted = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=10_000)
  fitted.fit(scaler.transform(features['train']), labels['train'])
  return np.mean(fitted.predict(scaler.transform(features[name])) == labels[name])


@pytest.fixture(scope='module')
def done(tmp_path_factory):
  """The folder of a run that probed every stage, and its results; its source stands beside it."""
  place = tmp_path_factory.mktemp('probing') / 'run'
  sets = {'noisy': dict(DATA, noise=0.5)}
  return place, transferlab.run(probe(evaluation=dict(sets=sets)), place)


def test_every_stage_is_probed_with_the_sources_weights_as_scikit_learn_would(done):
  place, found = done
  assert list(found['probes']) == STAGES
  (source,) = (place.parent / 'sources').iterdir()
  model = transferlab.load(source)
  for stage in STAGES[:-1]:  # the head is initialised anew
    own = found['probes'][stage]
    assert own['features'] == {'block1': 4, 'block2': 8, 'dense': 12}[stage]
    for name in ('validation', 'test'):
      expected = {p: by_hand(model, probe(), stage, p, name) for p in PENALTIES}
      assert own[name]['accuracy'] == pytest.approx(expected[own['penalty']], abs=2e-3)
      if name == 'validation':  # the best penalty was chosen, of equally good ones the strongest
        assert own['penalty'] == max(p for p in PENALTIES if expected[p] == max(expected.values()))


def test_validation_chooses_the_stage_that_is_reported_on_every_set(done):
  _, found = done
  accuracies = {stage: own['validation']['accuracy'] for stage, own in found['probes'].items()}
  assert accuracies[found['stage']] == max(accuracies.values())
  chosen = found['probes'][found['stage']]
  assert set(found['selected']) == {'train', 'validation', 'test', 'noisy'}
  assert found['selected'] == found['last'] == {name: chosen[name] for name in found['selected']}
  assert found['selected']['noisy']['accuracy'] < found['selected']['test']['accuracy']
  assert found['standardized'] is True and found['labels'] == {'train': 50, 'validation': 40}


def test_the_folder_holds_plan_picture_and_a_prediction_for_every_example(done):
  place, found = done
  assert json.loads((place / 'results.json').read_text()) == found
  assert (place / 'depth.png').read_bytes().startswith(b'\x89PNG')
  origins = {o['path']: o['action'] for o in json.loads((place / 'transplant.json').read_text())['origins']}
  assert origins['block1/conv/kernel'] == 'copy' and 'init' in {a for p, a in origins.items() if p.startswith('head')}
  with (place / 'predictions' / 'test.csv').open() as file:
    rows = list(csv.DictReader(file))
  accuracy = np.mean([row['label'] == row['class'] for row in rows])
  assert accuracy == pytest.approx(found['selected']['test']['accuracy'])
  assert not (place / 'checkpoints').exists()


def test_a_finished_probe_is_read_and_not_fitted_again(done, monkeypatch):
  place, found = done
  monkeypatch.setattr(results, 'final_baseline', lambda *_: pytest.fail('fitted again'))
  sets = {'noisy': dict(DATA, noise=0.5)}
  assert transferlab.run(probe(evaluation=dict(sets=sets)), place) == found


def test_without_a_source_the_random_initialisation_is_probed(tmp_path):
  given = probe(source=None, baseline=dict(name='ridge', stage='block2', alpha=3.0))
  found = transferlab.run(given, tmp_path / 'run')
  prepared = prepare(config.validate(Run, given))
  variables = prepared.network.init(jax.random.fold_in(jax.random.key(0), 5))  # as a run from scratch starts
  features, labels = {}, {}
  for name in ('train', 'test'):
    x, labels[name], _ = results.split(prepared, name)
    value = np.asarray(prepared.network.apply(variables, np.asarray(x, np.float32) / 16)[0]['block2'], np.float64)
    features[name] = value.mean(axis=(1, 2))
  scaler = StandardScaler().fit(features['train'])
  fitted = Ridge(alpha=3.0).fit(scaler.transform(features['train']), 2 * np.eye(10)[labels['train']] - 1)
  guesses = fitted.predict(scaler.transform(features['test'])).argmax(axis=1)
  assert found['last']['test']['accuracy'] == pytest.approx(np.mean(guesses == labels['test']), abs=2e-3)
  assert list(found['probes']) == ['block2'] and found['probes']['block2']['penalty'] == 3.0
  assert not (tmp_path / 'run' / 'depth.png').exists() and not (tmp_path / 'sources').exists()


def test_a_run_of_ones_own_can_be_probed_from_its_folder(done, tmp_path):
  place, found = done
  (source,) = (place.parent / 'sources').iterdir()
  again = transferlab.run(probe(source=dict(weights=str(source))), tmp_path / 'run')
  assert {stage: own['test'] for stage, own in again['probes'].items()} == {
    stage: own['test'] for stage, own in found['probes'].items()
  }


def test_without_validation_data_the_last_stage_before_the_head_is_reported(done, tmp_path):
  (source,) = (done[0].parent / 'sources').iterdir()
  data = {name: value for name, value in DATA.items() if name != 'validation'}
  given = dict(source=dict(weights=str(source)), target=dict(data=data))
  baseline = dict(name='nearest_neighbours', stage='all', neighbours=5, metric='cosine', temperature=0.07)
  found = transferlab.run(probe(**given, baseline=baseline), tmp_path / 'run')
  assert found['stage'] == 'dense' and found['selected'] is None and found['standardized'] is False
  assert found['last']['test'] == found['probes']['dense']['test']
  assert {own['penalty'] for own in found['probes'].values()} == {None}


def test_streamed_inputs_are_probed_alike_with_flat_features_too(done, tmp_path):
  (source,) = (done[0].parent / 'sources').iterdir()
  baseline = dict(name='ridge', stage='block2', pool='flat', penalties=PENALTIES)
  found = []
  for hold in ('device', 'stream'):
    given = probe(source=dict(weights=str(source)), target=dict(data=dict(DATA, hold=hold)), baseline=baseline)
    found.append(transferlab.run(given, tmp_path / hold))
  assert found[0]['probes'] == found[1]['probes'] and found[0]['probes']['block2']['features'] == 2 * 2 * 8


def test_a_grid_on_raw_inputs_is_chosen_by_validation_too(tmp_path):
  data = dict(name='diabetes', validation=0.3)
  penalties = [0.1, 10.0, 1000.0]
  found = transferlab.run(
    dict(target=dict(data=data), baseline=dict(name='ridge', penalties=penalties)), tmp_path / 'a'
  )
  prepared = prepare(config.validate(Run, dict(target=dict(data=data), baseline=dict(name='ridge'))))
  record = prepared.record
  parts = {name: results.split(prepared, name) for name in ('train', 'validation', 'test')}
  x = {name: (part[0] - np.array(record['shift'])) / np.array(record['scale']) for name, part in parts.items()}
  errors = {}
  for penalty in penalties:
    fitted = Ridge(alpha=penalty).fit(x['train'], parts['train'][1])
    error = lambda name, fitted=fitted: np.mean((np.ravel(fitted.predict(x[name])) - parts[name][1].ravel()) ** 2)
    errors[penalty] = [error(name) for name in ('validation', 'test')]
  best = min(penalties, key=lambda penalty: errors[penalty][0])
  assert found['probes']['inputs']['penalty'] == best
  assert found['selected']['test']['mean_squared_error'] == pytest.approx(errors[best][1], rel=1e-5)


def test_of_equally_good_ones_the_strongest_penalty_and_the_first_stage_are_chosen(tmp_path):
  random, labels = np.random.default_rng(0), np.arange(80) % 2
  x = random.normal(size=(80, 3)) * 0.1 + np.array([[-5.0] * 3, [5.0] * 3])[labels]
  np.savez(tmp_path / 'apart.npz', x=x.astype(np.float32), y=labels)
  given = dict(
    network=dict(name='mlp', hidden=[8, 8]),
    target=dict(data=dict(name=f'npz:{tmp_path}/apart.npz', validation=10)),
    baseline=dict(name='ridge', stage='all', penalties=[0.1, 10.0, 1.0]),
  )
  found = transferlab.run(given, tmp_path / 'run')
  assert {own['validation']['accuracy'] for own in found['probes'].values()} == {1.0}
  assert [own['penalty'] for own in found['probes'].values()] == [10.0] * 3 and found['stage'] == 'layer1'


def test_a_binary_task_has_one_probability_in_its_predictions(tmp_path):
  given = dict(
    network=dict(name='mlp', hidden=[8]),
    target=dict(data=dict(name='breast_cancer', task='binary', validation=20)),
    baseline=dict(name='logistic_regression', stage='layer1', penalties=PENALTIES),
  )
  found = transferlab.run(given, tmp_path / 'run')
  with (tmp_path / 'run' / 'predictions' / 'test.csv').open() as file:
    rows = list(csv.DictReader(file))
  classes = list(rows[0])[3:]
  probabilities = np.array([[float(row[name]) for name in classes] for row in rows])
  labels = np.array([classes.index(row['label']) for row in rows])
  assert probabilities.sum(axis=1) == pytest.approx(np.ones(len(rows)), abs=1e-5)
  assert np.mean(probabilities.argmax(1) == labels) == pytest.approx(found['selected']['test']['accuracy'])
  expected = -np.mean(np.log(np.clip(probabilities[np.arange(len(rows)), labels], 1e-12, 1)))
  assert found['selected']['test']['log_loss'] == pytest.approx(expected, rel=1e-3)


def test_an_experiment_of_stages_and_seeds_pretrains_once_and_agrees_with_single_runs(done, tmp_path):
  _, found = done
  settings = dict(
    base=probe(source=dict(SOURCE, seed=0)),
    axes=dict(
      method={
        **{stage: {'baseline.stage': stage} for stage in ('block2', 'dense')},
        'raw inputs': {'baseline.stage': None, 'source': None, 'network': None},
      },
      seed=[0, 1],
    ),
    table=dict(which='selected'),
  )
  transferlab.run(settings, tmp_path / 'study')
  cells = [json.loads(path.read_text()) for path in (tmp_path / 'study' / 'cells').iterdir()]
  assert [cell['status'] for cell in cells] == ['done'] * 6
  assert len(list((tmp_path / 'sources').iterdir())) == 1
  of = {(cell['cell']['method'], cell['cell']['seed']): cell for cell in cells}
  for stage in ('block2', 'dense'):
    assert of[stage, 0]['selected']['test']['accuracy'] == pytest.approx(
      found['probes'][stage]['test']['accuracy'], abs=5e-3
    )
    assert of[stage, 0]['selected'] != of[stage, 1]['selected']  # other shots
  assert list(of['raw inputs', 0]['probes']) == ['inputs']


def test_what_to_choose_goes_through_a_probe(done, tmp_path):
  (source,) = (done[0].parent / 'sources').iterdir()
  baseline = dict(name='nearest_neighbours', stage='dense', metric='cosine')
  choose = {'baseline.neighbours': [1, 45]}
  given = probe(source=dict(weights=str(source)), baseline=baseline, choose=choose)
  found = transferlab.run(given, tmp_path / 'run')
  assert found['chosen'] == {'baseline.neighbours': 1} and found['scores'][0] > found['scores'][1]
  assert found['scores'][0] == found['selected']['validation']['accuracy']


# --------------------------------------------------------------------------------------------------- the command line
def test_the_screen_shows_accuracy_by_depth_and_a_dry_run_the_plan(done, command, write_config, tmp_path):
  (source,) = (done[0].parent / 'sources').iterdir()
  file = write_config(tmp_path / 'mine.py', probe(source=dict(weights=str(source))))
  shown = command(f'--config={file}', f'--workdir={tmp_path / "run"}', '--dry_run')
  assert shown.status == 0 and 'probe: logistic_regression, stage all' in shown.out
  assert 'transplant' in shown.out and not (tmp_path / 'run').exists()
  shown = command(f'--config={file}', f'--workdir={tmp_path / "run"}')
  lines = shown.out.splitlines()
  (start,) = [number for number, line in enumerate(lines) if line.startswith('accuracy by depth')]
  assert lines[start + 1].split() == ['stage', 'features', 'penalty', 'train', 'validation', 'test']
  for stage, line in zip(STAGES, lines[start + 2 :]):
    own, words = done[1]['probes'][stage], line.replace('*', '').split()
    assert words[:3] == [stage, str(own['features']), f'{own["penalty"]:g}']
    assert float(words[-1]) == pytest.approx(own['test']['accuracy'], abs=5e-5)


def test_nothing_can_be_loaded_from_a_probe_and_the_message_says_so(done, command):
  with pytest.raises(UserError, match='is a probe: only its results and predictions are kept'):
    transferlab.load(done[0])
  for flag in ('--predict=test', '--evaluate=test', '--export=x.npz'):
    shown = command(flag, f'--workdir={done[0]}')
    assert shown.status == 2 and ('only its results' in shown.err or 'no network is kept' in shown.err)


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    (dict(baseline=dict(name='ridge', stage='blok1')), "unknown stage 'blok1'; nearest: block1"),
    (dict(network=None), 'baseline.stage needs a network'),
    (dict(phases=[dict(steps=1)]), 'a baseline has no phases'),
    (dict(baseline=dict(name='ridge')), 'a baseline has neither phases nor a source'),
    (dict(target=dict(data=dict(DATA, validation=None))), 'validation data choose among several'),
    (dict(target=dict(data=dict(name='diabetes', validation=0.2))), 'no method for regression; nearest: ridge'),
    (dict(evaluation=dict(sets={'penalty': DATA})), 'results of a probe have a number of that name'),
    (dict(evaluation=dict(sets={'test': DATA})), 'has a split of that name'),
  ],
)
def test_mistakes_are_answered_before_anything_is_pretrained(changes, says):
  with pytest.raises(UserError, match=says):
    prepare(config.validate(Run, probe(**changes)))


@pytest.mark.parametrize('stage', [None, 'all'])
def test_a_baseline_of_several_labels_is_refused(tmp_path, stage):
  random = np.random.default_rng(0)
  labels = dict(first=np.arange(60) % 3, second=np.arange(60) % 2)
  np.savez(tmp_path / 'two.npz', x=random.normal(size=(60, 4)).astype(np.float32), **labels)
  data = dict(name=f'npz:{tmp_path}/two.npz', label=['first', 'second'])
  given = dict(network=dict(name='mlp'), target=dict(data=data), baseline=dict(name='ridge', stage=stage))
  with pytest.raises(UserError, match='learns one label, not first, second'):
    prepare(config.validate(Run, given))
