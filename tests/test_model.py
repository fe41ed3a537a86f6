"""A trained run in the hand: what `transferlab.load` gives agrees with what the run measured and wrote."""

import csv
import shutil

import cv2
import numpy as np
import pandas
import pytest
from sklearn.datasets import load_digits, load_wine

import transferlab
from transferlab import folder
from transferlab.data import encoding
from transferlab.data.tables import read_table
from transferlab.errors import UserError

pytestmark = pytest.mark.usefixtures('quick_compilation')


def predictions(place, split):
  with (place / 'predictions' / f'{split}.csv').open() as file:
    return list(csv.DictReader(file))


def test_predictions_are_those_of_the_run_and_of_its_results(trained):
  model = transferlab.load(trained)
  rows = predictions(trained, 'test')
  ids = [int(row['id']) for row in rows]
  images, labels = load_digits().images[ids], load_digits().target[ids]
  predicted = model.predict(images)
  assert [model.classes[number] for number in predicted] == [row['class'] for row in rows]
  assert [str(label) for label in labels] == [row['label'] for row in rows]
  results = folder.read_json(trained / 'results.json')
  assert np.mean(predicted == labels) == pytest.approx(results['selected']['test']['accuracy'], abs=1e-12)


def test_probabilities_are_those_in_the_file_and_sum_to_one(trained):
  model = transferlab.load(trained)
  rows = predictions(trained, 'test')
  written = np.array([[float(row[name]) for name in model.classes] for row in rows])
  probabilities = model.probabilities(load_digits().images[[int(row['id']) for row in rows]])
  np.testing.assert_allclose(probabilities, written, atol=1e-5)
  np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-12)


def test_the_last_weights_are_others_than_the_selected_and_measure_as_results_say(tiny, tmp_path):
  settings = tiny(phases=[dict(steps=60, learning_rate=0.3)], evaluation=dict(every=2))
  results = transferlab.run(settings, tmp_path / 'run')
  assert results['best']['step'] < 60
  for which in ('last', 'selected'):
    model = transferlab.load(tmp_path / 'run', which)
    measured = model.evaluate(model.prepared.run.target.data, 'test')
    assert measured == pytest.approx(results[which]['test'])
  assert results['last']['test'] != results['selected']['test']


def test_images_without_their_channel_axis_are_taken_and_other_shapes_refused(trained):
  model = transferlab.load(trained)
  images = load_digits().images[:3].astype(np.float32)
  np.testing.assert_array_equal(model.outputs(images), model.outputs(images[..., None]))
  with pytest.raises(UserError, match=r'shape \[7, 8\].*\[8, 8, 1\]'):
    model.predict(images[:, 1:])
  images[1, 2, 3] = np.nan
  with pytest.raises(UserError, match='NaN'):
    model.predict(images)


def test_a_finished_run_does_without_its_source(tiny, trained, tmp_path):
  source = tmp_path / 'source'
  shutil.copytree(trained, source)
  terms = [dict(term='cross_entropy'), dict(term='l2_sp', weight=0.1)]
  transferlab.run(tiny(source=dict(weights=str(source)), objective=terms), tmp_path / 'run')
  before = transferlab.load(tmp_path / 'run').outputs(load_digits().images[:5])
  shutil.rmtree(source)
  np.testing.assert_array_equal(transferlab.load(tmp_path / 'run').outputs(load_digits().images[:5]), before)


def test_a_run_that_chose_gives_the_chosen_weights(tiny, tmp_path):
  results = transferlab.run(tiny(choose={'phases.0.learning_rate': [1e-6, 3e-2]}), tmp_path / 'run')
  assert results['chosen'] == {'phases.0.learning_rate': 3e-2}
  model = transferlab.load(tmp_path / 'run')
  assert model.evaluate(model.prepared.run.target.data) == pytest.approx(results['selected']['test'])


def test_regression_predicts_values_in_the_units_of_the_target(tmp_path):
  settings = dict(
    network=dict(name='mlp', hidden=[8]),
    target=dict(data=dict(name='linnerud', validation=3, batch_size=8)),
    phases=[dict(steps=5)],
  )
  results = transferlab.run(settings, tmp_path / 'run')
  model = transferlab.load(tmp_path / 'run')
  rows = predictions(tmp_path / 'run', 'test')
  written = np.array([[float(row[name]) for name in ('Weight', 'Waist', 'Pulse')] for row in rows])
  truth = np.array([[float(row[f'target_{name}']) for name in ('Weight', 'Waist', 'Pulse')] for row in rows])
  data = model.prepared.loaded.examples
  x = data.arrays['x'][np.searchsorted(data.arrays['id'], [int(row['id']) for row in rows])]
  np.testing.assert_allclose(model.predict(x), written, rtol=1e-4)
  assert np.mean((written - truth) ** 2) == pytest.approx(results['selected']['test']['mean_squared_error'], rel=1e-4)
  with pytest.raises(UserError, match='classification'):
    model.probabilities(x)


PEOPLE = [{'age': 20 + i % 7, 'job': 'abc'[i % 3], 'rich': 'no' if i % 3 else 'yes'} for i in range(60)]
FORMS = {
  'dicts': lambda rows: rows,
  'columns': lambda rows: {name: [row[name] for row in rows] for name in ('job', 'age')},
  'data frame': pandas.DataFrame,
}


@pytest.fixture(scope='module', params=['one_hot', 'embedding'])
def people(request, tiny, tmp_path_factory):
  """A folder of a run on a table of people, trained in so many rows."""
  place = tmp_path_factory.mktemp('people')
  PEOPLE[5]['age'] = None
  with (place / 'people.csv').open('w', newline='') as file:
    writer = csv.DictWriter(file, PEOPLE[0])
    writer.writeheader()
    writer.writerows(PEOPLE)
  data = dict(name=f'csv:{place}/people.csv', label='rich', batch_size=8, categorical=request.param)
  transferlab.run(tiny(network=dict(name='mlp', hidden=[4]), target=dict(data=data)), place / 'run')
  return place / 'run'


@pytest.mark.parametrize('form', FORMS)
def test_rows_of_a_table_in_the_hand_are_predicted_as_those_of_the_file(people, form):
  model, rows = transferlab.load(people), predictions(people, 'test')
  found = model.probabilities(FORMS[form]([PEOPLE[int(row['id'])] for row in rows]))
  written = [[float(row[name]) for name in model.classes] for row in rows]
  np.testing.assert_allclose(found, written, atol=1e-5)


@pytest.mark.parametrize('categorical', ['one_hot', 'embedding'])
def test_rows_in_the_hand_are_encoded_as_those_of_a_file(tmp_path, categorical):
  """Truth values, whole numbers as categories, spaces, missing and unseen values."""
  lines = [
    '{"a": 1.5, "b": true, "c": 3, "d": "x y"}',
    '{"a": null, "b": false, "c": 4, "d": null}',
    '{"a": 2.5, "b": true, "c": 5, "d": "z"}',
  ]
  types = {'b': 'category', 'c': 'category', 'd': 'category'}
  (tmp_path / 'mine.jsonl').write_text('\n'.join(f'{line[:-1]}, "y": {i % 2}}}' for i, line in enumerate(lines)))
  examples = read_table(str(tmp_path / 'mine.jsonl'), 'jsonl', columns=types)
  entries = encoding.fit(examples.arrays['x'][:2], examples.info, categorical)
  expected = encoding.encode(examples.arrays['x'], examples.info, entries)
  rows = [
    {'a': 1.5, 'b': True, 'c': 3.0, 'd': ' x y'},
    {'a': pandas.NA, 'b': np.False_, 'c': np.float32(4), 'd': ''},
    {'a': '2.5', 'b': 'true', 'c': np.int64(5), 'd': 'z'},
  ]
  np.testing.assert_array_equal(encoding.of_records(rows, entries), expected)
  np.testing.assert_array_equal(encoding.of_records(rows[0], entries), expected[:1])
  np.testing.assert_array_equal(encoding.of_records(pandas.DataFrame(rows), entries), expected)


@pytest.mark.parametrize(
  ('rows', 'message'),
  [
    ([{'Age': 3}], "the table has no column 'age', which was trained on; nearest: Age"),
    ([{'age': 3, 'jbo': 'a'}], "the table has no column 'job', which was trained on; nearest: jbo"),
    ([{'age': 'old', 'job': 'a'}], "column 'age' holds 'old', and numbers were trained on"),
    ({'age': [1, 2], 'job': ['a']}, 'columns differ in length'),
  ],
)
def test_rows_that_do_not_fit_are_refused(people, rows, message):
  with pytest.raises(UserError, match=message):
    transferlab.load(people).predict(rows)


def test_tables_of_numbers_are_taken_by_their_columns(tiny, tmp_path):
  transferlab.run(tiny(target=dict(data=dict(name='wine', batch_size=16))), tmp_path / 'run')
  model, bunch = transferlab.load(tmp_path / 'run'), load_wine(as_frame=True)
  np.testing.assert_array_equal(model.outputs(bunch.data[::-1]), model.outputs(bunch.data.to_numpy()[::-1]))
  with pytest.raises(UserError, match='NaN'):
    model.outputs(bunch.data.replace(bunch.data.iloc[3, 2], None))


def test_further_data_are_read_as_the_runs_own_were_and_their_classes_found_by_name(tiny, command, tmp_path):
  random = np.random.default_rng(0)
  for part, names in {'mine': ('ant', 'bee', 'cow'), 'yours': ('bee', 'cow')}.items():
    for name in names:
      (tmp_path / part / name).mkdir(parents=True)
      for count in range(8):
        level = 40 + 80 * ('ant', 'bee', 'cow').index(name)
        image = np.clip(random.normal(level, 9, (6 + count, 7, 3)), 0, 255).astype(np.uint8)
        cv2.imwrite(str(tmp_path / part / name / f'{count}.png'), image)
  data = dict(name=f'folder:{tmp_path}/mine', resize=dict(size=[5, 5], mode='exact'), batch_size=8)
  place = tmp_path / 'run'
  transferlab.run(tiny(target=dict(data=data), phases=[dict(steps=300, learning_rate=3e-2)]), place)
  done = command(f'--workdir={place}', f'--predict=folder:{tmp_path}/yours,split=all')
  assert done.status == 0, done.err
  (file,) = (file for file in (place / 'predictions').iterdir() if 'yours' in file.name)
  rows = list(csv.DictReader(file.open()))
  assert [row['class'] for row in rows] == [row['label'] for row in rows] == ['bee'] * 8 + ['cow'] * 8
