"""One run: its folder, its source, its choice on validation data, and that test data are touched once."""

import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from outcomes import assert_same

import transferlab
from transferlab import checkpoints, config, folder, paths, results
from transferlab.data import loader
from transferlab.errors import Diverged, UserError
from transferlab.evaluation import metrics
from transferlab.preparation import prepare
from transferlab.settings import Run
from transferlab.training.loop import Loop

SOURCE = dict(data=dict(name='digits', half=0, batch_size=32), phases=[dict(steps=30, learning_rate=1e-2)])


def parameters(place, which='last'):
  """The parameters of a run's newest checkpoint, by path."""
  return paths.flatten(checkpoints.weights(checkpoints.find(str(place)), which)['params'])


def moments(place):
  """When each file below a folder was last written."""
  return {path: path.stat().st_mtime_ns for path in place.rglob('*') if path.is_file() and path.name != '.lock'}


# ------------------------------------------------------------------------------------------------------- the folder
def test_a_runs_folder_holds_everything_the_design_promises(trained):
  held = {path.name for path in trained.iterdir()}
  promised = ['config.json', 'environment.json', 'parameters.txt', 'metrics.jsonl', 'events', 'checkpoints']
  assert {*promised, 'predictions', 'results.json'} <= held
  assert {path.name for path in (trained / 'predictions').iterdir()} == {'train.csv', 'validation.csv', 'test.csv'}
  environment = folder.read_json(trained / 'environment.json')
  assert {'jax', 'flax', 'optax', 'numpy'} <= set(environment['versions']) and environment['devices']


def test_the_saved_config_is_resolved_and_runs_again_to_the_same_numbers(trained, tmp_path):
  saved = folder.read_json(trained / 'config.json')['config']
  assert saved['target']['data']['batch_size'] == 16 and saved['checkpoint'] == {'every': 500, 'keep': 2}
  again = transferlab.run(saved, tmp_path / 'again')
  before = folder.read_json(trained / 'results.json')
  assert {**again, 'seconds': 0} == {**before, 'seconds': 0}


def test_results_count_the_labels_that_were_used_and_agree_with_what_run_returns(tiny, tmp_path):
  returned = transferlab.run(tiny(), tmp_path / 'run')
  assert returned == folder.read_json(tmp_path / 'run' / 'results.json')
  assert returned['labels'] == {'train': 50, 'validation': 30}
  assert returned['trained_parameters'] == 64 * 16 + 16 + 16 * 10 + 10
  assert returned['steps'] == 20 and returned['status'] == 'done'


def test_metrics_are_logged_for_every_validation_and_agree_with_results(trained):
  lines = [json.loads(line) for line in (trained / 'metrics.jsonl').read_text().splitlines()]
  validation = {line['step']: line['values'] for line in lines if line['split'] == 'validation'}
  assert list(validation) == [10, 20]
  found = folder.read_json(trained / 'results.json')
  assert validation[20]['log_loss'] == pytest.approx(found['last']['validation']['log_loss'])
  assert validation[found['best']['step']]['accuracy'] == found['selected']['validation']['accuracy']
  assert [line['step'] for line in lines if line['split'] == 'train'][-1] == 20


def test_the_table_of_parameters_says_what_trains_how_fast_and_where_it_comes_from(tiny, trained, tmp_path):
  phases = [
    dict(name='probe', train='head', steps=2, learning_rate=1e-2),
    dict(name='rest', train='.*', steps=2, learning_rate=[('head', 1e-3), ('.*', 1e-4)]),
  ]
  transferlab.run(tiny(source=dict(weights=str(trained)), phases=phases), tmp_path / 'run')
  lines = (tmp_path / 'run' / 'parameters.txt').read_text().splitlines()
  rows = {line.split()[0]: line.split()[1:] for line in lines}
  assert rows['parameter'] == ['shape', 'origin', 'probe', 'rest']
  assert rows['layer1/linear/kernel'] == ['64x16', 'copy', 'frozen', '0.0001']
  (head,) = [row for path, row in rows.items() if re.fullmatch('head.*kernel', path)]
  assert head == ['16x10', 'init', '0.01', '0.001']


def test_a_finished_run_is_read_and_what_does_not_determine_results_may_change(tiny, tmp_path):
  first = transferlab.run(tiny(), tmp_path / 'run')
  before = moments(tmp_path)
  assert transferlab.run(tiny(), tmp_path / 'run') == first
  assert transferlab.run(tiny(logging=dict(every=7), checkpoint=dict(keep=1)), tmp_path / 'run') == first
  assert moments(tmp_path) == before
  with pytest.raises(UserError, match=r'config.phases.0.learning_rate: 0.01 there, 0.1 here'):
    transferlab.run(tiny(phases=[dict(name='all', steps=20, learning_rate=0.1)]), tmp_path / 'run')


# ------------------------------------------------------------------------------------------------------- the source
def test_runs_share_a_source_which_is_trained_once(tiny, tmp_path):
  first = transferlab.run(tiny(source=SOURCE), tmp_path / 'a')
  (source,) = (tmp_path / 'sources').iterdir()
  before = moments(source)
  frozen = [dict(name='probe', train='head', steps=5)]
  transferlab.run(tiny(source=SOURCE, phases=frozen), tmp_path / 'b')
  assert [path.name for path in (tmp_path / 'sources').iterdir()] == [source.name] and moments(source) == before
  for path, value in parameters(tmp_path / 'b').items():
    if path.startswith('layer1'):
      np.testing.assert_array_equal(value, parameters(source, 'selected')[path])
  transferlab.run(tiny(source={**SOURCE, 'seed': 5}), tmp_path / 'c')
  assert len(list((tmp_path / 'sources').iterdir())) == 2
  plan = folder.read_json(tmp_path / 'a' / 'transplant.json')
  actions = {origin['path']: origin['action'] for origin in plan['origins']}
  assert actions['layer1/linear/kernel'] == 'copy' and 'init' in actions.values()
  assert any("source's shift and scale" in note for note in plan['preprocessing'])
  assert first['status'] == 'done'


@pytest.mark.parametrize('which', ['selected', 'last'])
def test_weights_come_from_a_runs_folder_or_one_of_its_checkpoints(tiny, tmp_path, which):
  long = [dict(steps=60, learning_rate=0.3)]
  source = transferlab.run(tiny(phases=long, evaluation=dict(every=2)), tmp_path / 'source')
  assert source['best']['step'] < 60
  frozen = [dict(train='head', steps=2)]
  for number, place in enumerate([tmp_path / 'source', tmp_path / 'source' / 'checkpoints' / '60']):
    run = tmp_path / str(number)
    transferlab.run(tiny(source=dict(weights=str(place), which=which), phases=frozen), run)
    found, wanted = parameters(run), parameters(tmp_path / 'source', which)
    np.testing.assert_array_equal(found['layer1/linear/kernel'], wanted['layer1/linear/kernel'])
  other = parameters(tmp_path / 'source', 'last' if which == 'selected' else 'selected')
  assert (found['layer1/linear/kernel'] != other['layer1/linear/kernel']).any()


def test_columns_of_a_table_are_carried_over_by_name(tmp_path):
  random = np.random.default_rng(0)
  x, y = random.normal(size=(90, 4)).astype(np.float32), np.arange(90) % 3
  np.savez(tmp_path / 'source.npz', x=x, y=y, columns=['age', 'height', 'weight', 'pulse'])
  np.savez(tmp_path / 'target.npz', x=x[:, [2, 0, 1]] + 1, y=y, columns=['weight', 'age', 'shoes'])
  data = lambda name: dict(name=f'npz:{tmp_path / name}.npz', validation=3, batch_size=16)
  settings = dict(
    network=dict(name='mlp', hidden=[5]),
    source=dict(data=data('source'), phases=[dict(steps=10)]),
    target=dict(data=data('target')),
    transplant=[('layer1/linear/kernel', 'columns'), ('head', 'init'), ('.*', 'copy')],
    phases=[dict(train='head', steps=2)],
  )
  transferlab.run(settings, tmp_path / 'run')
  (source,) = (tmp_path / 'sources').iterdir()
  theirs, mine = (parameters(place, 'selected')['layer1/linear/kernel'] for place in (source, tmp_path / 'run'))
  np.testing.assert_array_equal(mine[:2], theirs[[2, 0]])
  assert not any((mine[2] == row).any() for row in theirs)
  notes = folder.read_json(tmp_path / 'run' / 'transplant.json')['notes']
  assert 'layer1/linear/kernel: new in the target, initialised: shoes' in notes
  assert 'layer1/linear/kernel: of the source not used: height, pulse' in notes
  given, own = (
    checkpoints.progress(checkpoints.find(str(place)))['preprocessing'] for place in (source, tmp_path / 'run')
  )
  assert own['shift'][:2] == [given['shift'][2], given['shift'][0]] and own['columns'] == ['weight', 'age', 'shoes']


# ------------------------------------------------------------------------------------------- validation and test data
@pytest.fixture
def touched(monkeypatch):
  """The splits in the order in which the program looked at them; 'trained' where a loop ended."""
  seen = []
  split, run = results.split, Loop.run

  def watched_split(prepared, name):
    seen.append(name)
    return split(prepared, name)

  def watched_run(self):
    fitted = run(self)
    seen.append('trained')
    return fitted

  monkeypatch.setattr(results, 'split', watched_split)
  monkeypatch.setattr(Loop, 'run', watched_run)
  return seen


def test_test_data_are_touched_once_when_training_is_over(tiny, tmp_path, touched):
  transferlab.run(tiny(), tmp_path / 'run')
  assert touched.count('test') == 1 and touched.index('test') > touched.index('trained')


def test_of_several_candidates_only_the_chosen_one_is_tested(tiny, tmp_path, touched):
  rates = [1e-6, 1e-2, 1e-5]
  found = transferlab.run(tiny(choose={'phases.0.learning_rate': rates}), tmp_path / 'run')
  assert touched.count('trained') >= 3 and touched.count('test') == 1
  assert touched.index('test') > [n for n, what in enumerate(touched) if what == 'trained'][2]
  assert found['chosen'] == {'phases.0.learning_rate': 1e-2} and found['grid'] == {'phases.0.learning_rate': rates}
  tested = [
    folder.read_json(tmp_path / 'run' / 'candidates' / str(number) / 'results.json')['tested'] for number in range(3)
  ]
  assert tested == [False, True, False]
  assert found['scores'].index(max(found['scores'])) == 1


def test_a_candidate_that_diverges_is_out_of_the_choice(tiny, tmp_path):
  found = transferlab.run(tiny(choose={'phases.0.learning_rate': [1e38, 1e-2]}), tmp_path / 'run')
  assert found['chosen'] == {'phases.0.learning_rate': 1e-2} and found['scores'][0] is None
  with pytest.raises(Diverged):
    transferlab.run(tiny(choose={'phases.0.learning_rate': [1e38]}), tmp_path / 'none')


def test_the_best_step_is_chosen_on_validation_data(tiny, tmp_path):
  settings = tiny(phases=[dict(steps=40, learning_rate=0.3)], evaluation=dict(every=2, select='log_loss'))
  found = transferlab.run(settings, tmp_path / 'run')
  curve = {point['step']: point['validation']['log_loss'] for point in found['curve'] if 'validation' in point}
  assert found['best']['step'] == min(curve, key=curve.get) < 40
  assert found['selected']['validation']['log_loss'] == pytest.approx(min(curve.values()), rel=1e-5)


def test_without_validation_data_the_last_step_is_reported_and_nothing_selected(tiny, tmp_path):
  data = {**tiny()['target']['data'], 'validation': None}
  found = transferlab.run(tiny(target=dict(data=data)), tmp_path / 'run')
  assert found['selected'] is None and found['best'] is None and set(found['last']) == {'train', 'test'}
  assert found['labels'] == {'train': 50}


def test_further_sets_are_evaluated_at_the_end(tiny, tmp_path):
  data = dict(name='digits', test=0.5)
  sets = {'same': data, 'noisy': dict(data, noise=1.0)}
  found = transferlab.run(tiny(evaluation=dict(every=10, sets=sets)), tmp_path / 'run')
  measured = found['selected']
  assert measured['same'] == measured['test'] and measured['noisy']['accuracy'] < measured['test']['accuracy']
  assert (tmp_path / 'run' / 'predictions' / 'noisy.csv').exists()


def test_a_baseline_is_measured_like_a_network(tmp_path):
  from sklearn.linear_model import LogisticRegression

  data = dict(name='digits', shots=5, validation=3, test=0.5)
  settings = dict(target=dict(data=data), baseline=dict(name='logistic_regression', C=0.5))
  found = transferlab.run(settings, tmp_path / 'run')
  prepared = prepare(config.validate(Run, settings))
  x, y, _ = results.split(prepared, 'train')
  model = LogisticRegression(C=0.5, max_iter=1000).fit(x.reshape(len(x), -1) / 16, y)
  x, y, _ = results.split(prepared, 'test')
  expected = metrics.compute(['accuracy'], np.log(model.predict_proba(x.reshape(len(x), -1) / 16)), y, 'classification')
  assert found['last']['test']['accuracy'] == pytest.approx(expected['accuracy'], abs=2e-3)


# -------------------------------------------------------------------------------------------------------- streaming
def test_streaming_tells_the_share_of_time_it_waited_and_holding_waits_for_nothing(tiny, trained, tmp_path):
  given = tiny()
  given['target']['data']['hold'] = 'stream'
  transferlab.run(given, tmp_path / 'run')
  shares = [line.get('waited') for line in lines_of(tmp_path / 'run') if line['split'] == 'train']
  assert shares and all(0 <= share <= 1 for share in shares)
  assert not any('waited' in line for line in lines_of(trained))
  assert_same(tmp_path / 'run', trained)


def lines_of(place):
  return [json.loads(line) for line in (place / 'metrics.jsonl').read_text().splitlines()]


def test_worker_processes_give_the_same_run_from_the_command_line(tiny, trained, write_config, tmp_path):
  file = write_config(tmp_path / 'tiny.py', tiny())
  streamed = ['--config.target.data.hold=stream', '--config.target.data.workers=1']
  command = [sys.executable, '-m', 'transferlab.main', f'--config={file}', f'--workdir={tmp_path / "run"}', *streamed]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert_same(tmp_path / 'run', trained)


def test_time_spent_on_slow_reading_is_time_waited(tiny, tmp_path, monkeypatch):
  order = loader.Order.batches
  slowly = lambda self, *arguments: time.sleep(0.3) or order(self, *arguments)
  monkeypatch.setattr(loader.Order, 'batches', slowly)
  given = tiny()
  given['target']['data']['hold'] = 'stream'
  transferlab.run({**given, 'logging': {'every': 5}}, tmp_path / 'run')
  shares = [line.get('waited') for line in lines_of(tmp_path / 'run') if line['split'] == 'train']
  assert max(shares) > 0.5
