"""Many runs: cells, populations, shared sources, failures as rows, and the table that comes of them."""

import csv
import json

import cv2
import pytest

import transferlab
from transferlab import cells, config, folder, study
from transferlab.settings import Run

pytestmark = pytest.mark.usefixtures('quick_compilation')

SOURCE = dict(data=dict(name='digits', half=0, batch_size=32), phases=[dict(steps=30, learning_rate=1e-2)])
HEAD = [dict(name='all', train='head', steps=20)]


@pytest.fixture(scope='module')
def settings(tiny):
  """An experiment of eight cells: with a source, without, a baseline, and one that cannot be; two seeds each."""
  rates = {'choose': {'phases.0.learning_rate': [1e-3, 1e-2]}}
  base = tiny(source=SOURCE)
  base['target']['data']['half'] = 1
  return dict(
    base=base,
    axes=dict(
      method={
        'scratch': {'source': None, **rates},
        'probe': {'phases': HEAD, **rates},
        'regression': {'network': None, 'source': None, 'phases': [], 'baseline': dict(name='logistic_regression')},
        'impossible': {'target.data.shots': 1000},
      },
      seed=[0, 1],
    ),
    table=dict(baseline='scratch'),
  )


@pytest.fixture(scope='module')
def done(settings, write_config, tmp_path_factory):
  """The folder of the finished experiment, the file of its config, and what `transferlab.run` returned."""
  place = tmp_path_factory.mktemp('study')
  file = write_config(place / 'mine.py', settings)
  return place / 'run', file, transferlab.run(str(file), place / 'run')


def records(place):
  found = [folder.read_json(path) for path in (place / 'cells').glob('*.json')]
  return {(record['cell']['method'], record['cell']['seed']): record for record in found}


def moments(place):
  return {path: path.stat().st_mtime_ns for path in place.rglob('*') if path.is_file() and path.name != '.lock'}


def test_every_cell_is_a_record_and_a_mistaken_one_a_row_with_its_reason(done):
  found = records(done[0])
  assert set(found) == {(m, s) for m in ('scratch', 'probe', 'regression', 'impossible') for s in (0, 1)}
  for (method, _), record in found.items():
    if method == 'impossible':
      assert record['status'] == 'failed' and 'largest possible value' in record['reason']
    else:
      assert record['status'] == 'done' and record['reason'] is None
      assert 0 < record['selected']['test']['accuracy'] <= 1


def test_finished_cells_are_skipped_and_nothing_is_rewritten_but_failures(command, done):
  place, file, _ = done
  before = moments(place.parent)
  again = command(f'--config={file}', f'--workdir={place}')
  assert again.status == 1  # a cell failed
  after = moments(place.parent)
  changed = {path for path in after if after[path] != before.get(path)}
  failures = {path for path in place.glob('cells/*.json') if json.loads(path.read_text())['status'] == 'failed'}
  assert changed <= {*failures, place / 'environment.json'}
  assert set(after) == set(before)
  assert 'impossible' in again.out and 'largest possible value' in again.out


def test_an_experiment_without_failures_ends_with_status_0_and_is_read_the_second_time(
  command, settings, write_config, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  method = {name: axis for name, axis in settings['axes']['method'].items() if name == 'regression'}
  axes = dict(method=method, seed=[0, 1])
  write_config(tmp_path / 'small.py', dict(settings, axes=axes, table=dict(metric='accuracy')))
  first = command('--config=small.py')
  assert first.status == 0, first.err
  before = moments(tmp_path / 'runs' / 'small')
  monkeypatch.setattr(study, '_run_cells', lambda *_: pytest.fail('finished cells were run again'))
  again = command('--config=small.py')
  assert again.status == 0 and again.out.splitlines()[-8:] == first.out.splitlines()[-8:]
  assert moments(tmp_path / 'runs' / 'small') == before


def test_the_grid_is_in_the_record_and_the_better_value_is_chosen_on_validation_data(done, settings, tmp_path):
  place, _, _ = done
  record = records(place)['scratch', 0]
  assert record['grid'] == {'phases.0.learning_rate': [1e-3, 1e-2]}
  (cell,) = [
    cell
    for cell in cells.expand(config.validate(cells.Study, settings))
    if cell.where == {'method': 'scratch', 'seed': 0}
  ]
  scores = []
  for number, candidate in enumerate(cell.candidates):
    single = transferlab.run(candidate.settings.model_dump(mode='json'), tmp_path / str(number))
    scores.append((single['best']['value'], candidate.chosen))
  assert record['chosen'] == max(scores, key=lambda pair: pair[0])[1]


@pytest.mark.parametrize(('method', 'seed'), [('scratch', 0), ('scratch', 1), ('probe', 1), ('regression', 0)])
def test_a_cell_of_a_population_equals_the_same_run_alone(done, settings, tmp_path, method, seed):
  record = records(done[0])[method, seed]
  values = settings['base']
  for key, value in {**settings['axes']['method'][method], 'seed': seed}.items():
    values = config.override(values, key, value)
  alone = config.resolved(config.validate(Run, {**values, 'choose': {}}))
  for key, value in record['chosen'].items():
    alone = config.override(alone, key, value)
  single = transferlab.run(alone, tmp_path / 'alone')
  for which in ('selected', 'last'):
    for split in ('train', 'validation', 'test'):
      for metric in ('accuracy', 'log_loss'):
        assert record[which][split][metric] == pytest.approx(single[which][split][metric], abs=1e-5), (which, split)
  assert record['labels'] == single['labels'] and record['best'] == pytest.approx(single['best'], abs=1e-5)


def test_cells_share_the_pretraining_of_their_source(done):
  sources = [path for path in (done[0].parent / 'sources').iterdir() if path.is_dir()]
  assert len(sources) == 2  # one for each seed, whatever the method and its rate
  for source in sources:
    assert folder.read_json(source / 'results.json')['steps'] == 30


def test_the_table_is_written_in_three_forms_that_agree(done):
  place, _, returned = done
  assert folder.read_json(place / 'table.json') == json.loads(json.dumps(returned))
  found = records(place)
  mean = sum(found['probe', seed]['selected']['test']['accuracy'] for seed in (0, 1)) / 2
  with (place / 'table.csv').open() as file:
    rows = {row['method']: row for row in csv.DictReader(file)}
  assert set(rows) == {'scratch', 'probe', 'regression', 'impossible'}
  assert float(rows['probe']['mean']) == pytest.approx(mean)
  markdown = (place / 'table.md').read_text()
  assert all(method in markdown for method in rows) and f'{mean:.3f}'[1:] in markdown


def test_the_pictures_show_something(done):
  for name in ('comparison.png', 'curves.png'):
    picture = cv2.imread(str(done[0] / name))
    assert picture is not None and min(picture.shape[:2]) > 200
    assert picture.std() > 5 and len({tuple(pixel) for pixel in picture.reshape(-1, 3)}) > 20


def test_a_folder_of_another_experiment_is_left_alone(command, done, settings, write_config, tmp_path):
  other = write_config(tmp_path / 'other.py', dict(settings, table=dict(baseline='probe')))
  before = moments(done[0])
  refused = command(f'--config={other}', f'--workdir={done[0]}')
  assert refused.status == 2 and 'belongs to a run with other values' in refused.err
  assert moments(done[0]) == before


def test_a_dry_run_shows_every_method_and_what_cannot_be(command, done, tmp_path):
  shown = command(f'--config={done[1]}', f'--workdir={tmp_path / "none"}', '--dry_run')
  assert shown.status == 0 and not (tmp_path / 'none').exists()
  assert shown.out.startswith('8 cells')
  for method in ('scratch', 'probe', 'regression', 'impossible'):
    assert f'== {method}' in shown.out
  assert shown.out.count('fails: ') == 1


def test_overrides_reach_the_base_run_and_the_experiment(command, settings, write_config, tmp_path):
  axes = dict(settings['axes'], method={'scratch': {'source': None}})
  file = write_config(tmp_path / 'mine.py', dict(settings, axes=axes, table={}))
  done = command(
    f'--config={file}', f'--workdir={tmp_path / "run"}', '--config.axes.seed=[3]', '--config.phases.0.steps=4'
  )
  assert done.status == 0, done.err
  (record,) = records(tmp_path / 'run').values()
  assert record['cell'] == {'method': 'scratch', 'seed': 3} and record['steps'] == 4


def test_equal_cells_train_once_and_share_their_seconds(settings, tmp_path, monkeypatch):
  trained, train = [], study.train
  monkeypatch.setattr(study, 'train', lambda runs, *rest: trained.extend(runs) or train(runs, *rest))
  base = {**settings['base'], 'source': None}
  axes = dict(method={'none': {}, 'all': {'phases': HEAD}}, depth={'one': {}, 'two': {}}, seed=[0])
  table = transferlab.run(dict(base=base, axes=axes, table=dict(along='depth')), tmp_path / 'run')
  assert len(trained) == 2
  found = {(r['cell']['method'], r['cell']['depth']): r for r in table['records']}
  for method in ('none', 'all'):
    assert found[method, 'one']['last'] == found[method, 'two']['last']
    assert found[method, 'one']['seconds'] == found[method, 'two']['seconds']
  assert found['none', 'one']['last'] != found['all', 'one']['last']
  assert (tmp_path / 'run' / 'along.png').stat().st_size > 10_000
