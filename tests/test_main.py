"""The command line: what each flag does, and what it leaves on the disk."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import transferlab
from transferlab import folder
from transferlab.cells import Study
from transferlab.config import Schema
from transferlab.objectives.objective import TERMS
from transferlab.settings import Run
from transferlab.training.optimizer import optimizer_names


@pytest.fixture
def config(tiny, write_config, tmp_path):
  return write_config(tmp_path / 'mine.py', tiny())


@pytest.fixture
def finished(trained, tmp_path):
  """A copy of a finished run, for commands that write into it."""
  return Path(shutil.copytree(trained, tmp_path / 'finished'))


def files(place):
  """Every file below a folder, with its contents."""
  return {path: path.read_bytes() for path in place.rglob('*') if path.is_file()}


# ------------------------------------------------------------------------------------------------------ what it runs
def test_a_run_ends_with_status_0_and_shows_what_results_hold(command, config, tmp_path):
  done = command(f'--config={config}', f'--workdir={tmp_path / "run"}')
  assert done.status == 0 and not done.err
  results = folder.read_json(tmp_path / 'run' / 'results.json')
  for which in ('selected', 'last'):
    shown = done.out[done.out.index(which) :]
    for split in ('train', 'validation', 'test'):
      accuracy = results[which][split]['accuracy']
      assert re.search(rf'{split} +accuracy {accuracy:.4f}', shown)


def test_the_default_folder_is_runs_and_the_name_of_the_config(command, config, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert command('--config=mine.py').status == 0
  assert (tmp_path / 'runs' / 'mine' / 'results.json').exists()
  assert command('--config=mine.py:other').status == 0
  assert (tmp_path / 'runs' / 'mine_other' / 'results.json').exists()


def test_a_finished_run_is_shown_again_and_nothing_is_written(command, config, tmp_path):
  arguments = f'--config={config}', f'--workdir={tmp_path / "run"}'
  first = command(*arguments)
  before = files(tmp_path)
  again = command(*arguments)
  assert again.status == 0 and 'is finished' in again.out
  assert again.out.splitlines()[1:] == first.out.splitlines()
  assert files(tmp_path) == before


def test_a_flag_takes_its_value_with_or_without_an_equals_sign(command, config, tmp_path):
  assert command('--config', config, '--workdir', tmp_path / 'run', '--config.seed', 4).status == 0
  assert folder.read_json(tmp_path / 'run' / 'config.json')['config']['seed'] == 4


def test_the_home_folder_may_be_meant_by_its_sign(command, config, tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  assert command(f'--config={config}', '--workdir=~/mine').status == 0
  assert command('--inspect=~/mine').status == 0
  assert (tmp_path / 'mine' / 'results.json').exists() and not (tmp_path / '~').exists()


@pytest.mark.parametrize(
  ('override', 'where', 'value'),
  [
    ('seed=7', ['seed'], 7),
    ('phases.0.learning_rate=0.02', ['phases', 0, 'learning_rate'], 0.02),
    ("phases.0.learning_rate=[('head', 0.02), ('.*', 0.01)]", ['phases', 0, 'learning_rate', 0], ['head', 0.02]),
    ('phases.-1.name=last', ['phases', 0, 'name'], 'last'),
    ('phases.0.schedule.name=cosine', ['phases', 0, 'schedule', 'name'], 'cosine'),
    ('target.data.validation=None', ['target', 'data', 'validation'], None),
    ('network.hidden=[8, 4]', ['network', 'hidden'], [8, 4]),
    ('evaluation.metrics=["top_3"]', ['evaluation', 'metrics'], ['top_3']),
    ('target.data.relabel=false', ['target', 'data', 'relabel'], False),
    ("objective=[{'term': 'cross_entropy', 'smoothing': 0.1}]", ['objective', 0, 'smoothing'], 0.1),
  ],
)
def test_an_override_reaches_the_resolved_config(command, config, tmp_path, override, where, value):
  done = command(f'--config={config}', f'--workdir={tmp_path / "run"}', f'--config.{override}')
  assert done.status == 0, done.err
  found = folder.read_json(tmp_path / 'run' / 'config.json')['config']
  for key in where:
    found = found[key]
  assert found == value


# --------------------------------------------------------------------------------------------------------- dry run
def test_a_dry_run_writes_nothing_and_says_what_would_happen(command, tiny, write_config, tmp_path):
  source = dict(data=dict(name='digits', half=0), phases=[dict(steps=7)])
  phases = [dict(name='probe', train='head', steps=5), dict(name='rest', steps=3)]
  config = write_config(tmp_path / 'mine.py', tiny(source=source, phases=phases))
  before = files(tmp_path)
  done = command(f'--config={config}', f'--workdir={tmp_path / "run"}', '--dry_run')
  assert done.status == 0 and files(tmp_path) == before and not (tmp_path / 'run').exists()
  lines = [line.strip() for line in done.out.splitlines()]
  assert any(re.match(r'50 train, 30 validation, \d+ test; labels used: 80', line) for line in lines)
  assert any(re.match(r'layer1/linear/kernel +\(64, 16\) +copy +layer1/linear/kernel', line) for line in lines)
  assert any(re.match(r'layer1/linear/kernel +64x16 +copy +frozen +0.001', line) for line in lines)
  assert any(re.match(r'head/\S*kernel +\(16, 10\) +init', line) for line in lines)
  (probe,) = [line for line in lines if line.startswith('probe:')]
  (rest,) = [line for line in lines if line.startswith('rest:')]
  # The head has 16 · 10 + 10 parameters, the hidden layer 64 · 16 + 16.
  assert '5 steps of adam, 170 of 1,210 parameters' in probe
  assert '3 steps of adam, 1,210 of 1,210 parameters' in rest
  cost = lambda line: [float(found) for found in re.findall(r'([\d.e-]+) (?:MFLOP|MiB)', line)]
  assert all(np.array(cost(probe)) > 0) and len(cost(probe)) == 3
  assert cost(probe)[0] < cost(rest)[0] and cost(probe)[2] < cost(rest)[2]


# ------------------------------------------------------------------------------------------------------- listings
def test_lists_name_everything_a_config_may_say(command):
  listed = {what: command(f'--list={what}').out for what in ('terms', 'optimizers', 'networks', 'data', 'metrics')}
  for what, names in [
    ('terms', TERMS),
    ('optimizers', optimizer_names()),
    ('networks', ['mlp', 'convnet', 'resnet']),
    ('data', ['digits', 'iris', 'wine', 'breast_cancer', 'diabetes', 'linnerud', 'npz']),
    ('metrics', ['accuracy', 'log_loss', 'r2']),
  ]:
    for name in names:
      assert re.search(rf'\b{name}\b', listed[what]), (what, name)
  assert 'hidden=[128]' in listed['networks'] and 'smoothing=None' in listed['terms']
  assert 'cosine' in command('--list=schedules').out
  assert 'nearest_neighbours' in command('--list=baselines').out
  assert 'vgg as torchvision writes it' in command('--list=weights').out


def keys(schema, where, seen=()):
  """Every documented key, through nested schemas and lists of them; one that holds itself is named once."""
  for name, field in schema.model_fields.items():
    yield f'{where}.{name}', field.description
    for inner in _schemas(field.annotation):
      in_list = str(field.annotation).startswith('list')
      if inner not in (*seen, schema):
        yield from keys(inner, f'{where}.{name}' + ('.0' if in_list else ''), (*seen, schema))


def _schemas(annotation):
  if isinstance(annotation, type) and issubclass(annotation, Schema):
    yield annotation
  for inner in getattr(annotation, '__args__', ()):
    yield from _schemas(inner)


def test_help_config_names_and_explains_every_key(command):
  shown = command('--help_config').out.splitlines()
  for schema in (Run, Study):
    for key, description in keys(schema, 'config'):
      (place,) = {number for number, line in enumerate(shown) if line.startswith(f'{key}  (')} or [None]
      assert place is not None, key
      assert description and description in shown[place + 1], key


def test_help_is_shown_where_nothing_is_asked(command):
  assert command().out == command('--help').out
  assert '--dry_run' in command().out and 'exit status' in command().out


# ------------------------------------------------------------------------------------- --evaluate, --predict, --inspect
def test_evaluate_measures_as_the_run_did(command, trained):
  results = folder.read_json(trained / 'results.json')['selected']
  for spec, split in [('test', 'test'), ('digits,test=0.5,split=test', 'test'), ('validation', 'validation')]:
    done = command(f'--evaluate={spec}', f'--workdir={trained}')
    assert done.status == 0
    accuracy = float(re.search(r'accuracy ([\d.]+)', done.out)[1])
    assert accuracy == pytest.approx(results[split]['accuracy'], abs=5e-5)


def test_predict_writes_a_row_per_example_that_agrees_with_the_model(command, finished):
  done = command('--predict=digits,test=0.5', f'--workdir={finished}')
  assert done.status == 0
  path, rows = re.match(r'(.*): (\d+) rows', done.out).groups()
  with Path(path).open() as file:
    table = list(csv.DictReader(file))
  model = transferlab.load(finished)
  assert len(table) == int(rows) and list(table[0]) == ['id', 'label', 'class', *model.classes]
  assert len({row['id'] for row in table}) == len(table)
  probabilities = np.array([[float(row[name]) for name in model.classes] for row in table])
  np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
  assert [row['class'] for row in table] == [model.classes[number] for number in probabilities.argmax(axis=1)]
  accuracy = np.mean([row['class'] == row['label'] for row in table])
  assert accuracy == pytest.approx(folder.read_json(finished / 'results.json')['selected']['test']['accuracy'])


def test_predict_on_a_file_of_ones_own(command, finished, tmp_path):
  random = np.random.default_rng(0)
  np.savez(tmp_path / 'new.npz', x=random.uniform(0, 16, (20, 8, 8)).astype(np.float32), y=np.arange(20) % 10)
  done = command(f'--predict=npz:{tmp_path / "new.npz"},split=all', f'--workdir={finished}')
  assert done.status == 0 and '20 rows' in done.out


def test_inspect_shows_what_a_run_a_checkpoint_and_a_file_hold(command, trained, tmp_path):
  newest = max((trained / 'checkpoints').iterdir(), key=lambda path: int(path.name))
  for spec in (trained, newest):
    shown = command(f'--inspect={spec}').out
    assert re.search(r'params +layer1/linear/kernel +64x16 +float32', shown) and 'step 20' in shown
  np.savez(tmp_path / 'a.npz', x=np.zeros((3, 4), np.uint8))
  assert re.search(r'x +3x4 +uint8', command(f'--inspect={tmp_path / "a.npz"}').out)


def test_records_are_json_without_nan(trained):
  strict = lambda text: json.loads(text, parse_constant=lambda name: pytest.fail(f'{name} in a record'))
  for path in trained.glob('*.json'):
    strict(path.read_text())
  for line in (trained / 'metrics.jsonl').read_text().splitlines():
    assert set(strict(line)) == {'step', 'phase', 'split', 'values', 'seconds'}


def test_two_verbs_in_one_command_are_refused(command, trained):
  done = command('--sample=The', '--evaluate=digits', f'--workdir={trained}')
  assert done.status == 2 and '--evaluate and --sample: one after the other' in done.err
