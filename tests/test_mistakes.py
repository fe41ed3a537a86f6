"""Mistakes of the user's, through the command line: exit status 2, one message that names the cause or the cure.

A mistaken key or value is the affair of test_mutation.py; here are files, folders, flags, overrides, patterns and data.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import transferlab
from transferlab import main

ROOT = Path(__file__).parents[1]


@pytest.fixture
def refused(command):
  """`refused(*arguments)`: the message of a command that must fail as a user's mistake."""

  def run(*arguments):
    done = command(*arguments)
    assert done.status == 2, done
    assert done.err.startswith('error: ') and done.err.count('error: ') == 1, done.err
    assert 'Traceback' not in done.err + done.out
    return done.err

  return run


@pytest.fixture
def refused_config(refused, tiny, write_config, tmp_path):
  """`refused_config(**changes)`: the message for a `tiny` config with changes."""
  return lambda **changes: refused(
    f'--config={write_config(tmp_path / "mistaken.py", tiny(**changes))}', f'--workdir={tmp_path / "run"}'
  )


# ------------------------------------------------------------------------------------------------ names in a config
@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    (dict(network=dict(name='resnett')), ["'resnett'", 'resnet']),
    (dict(network=dict(name='mlp', hiden=[4])), ['hiden', 'hidden']),
    (dict(network=dict(name='mlp', hidden=[0])), ['hidden', 'greater than 0']),
    (dict(network=dict(name='mlp', dropout=1.0)), ['dropout', 'less than 1']),
    (dict(network=dict(name='resnet', depth=9)), ['6n + 2', 'nearest: 8']),
    (dict(network=dict(name='convnet', blocks=10**9)), ['at most 3 fit']),
    (dict(network=dict(name='mlp', hidden=[10**6, 10**6])), ['GiB', 'memory']),
    (dict(network=dict(name='no.such.function')), ['no.such.function', 'mlp']),
    (dict(objective=[dict(term='cross_entropi')]), ['cross_entropi', 'cross_entropy']),
    (dict(objective=[dict(term='cross_entropy', smooth=0.1)]), ['smooth', 'smoothing']),
    (dict(objective=[dict(term='cross_entropy'), dict(term='cross_entropy')]), ['two terms', 'name']),
    (dict(objective=[dict(term='center_loss', stage='layer2')]), ['layer2', 'layer1']),
    (dict(objective=[dict(term='cross_entropy'), dict(term='l2_sp')]), ['l2_sp', 'config.source']),
    (dict(objective=[dict(term='cross_entropy', class_weights=[1.0, 2.0])]), ['2 weights', '10 classes']),
    (dict(phases=[dict(steps=1, optimizer='adma')]), ['adma', 'adam']),
    (dict(phases=[dict(steps=1, optimizer_options=dict(beta1=0.9))]), ['beta1', 'b1']),
    (dict(phases=[dict(steps=1, optimizer_options=dict(b1='high'))]), ['b1', 'high']),
    (dict(phases=[dict(steps=1, optimizer_options=dict(b1=10**12))]), ['b1', '1000000000000']),
    (dict(phases=[dict(steps=1, optimizer_options=dict(b1=float('-inf')))]), ['optimizer_options.b1', '-inf']),
    (dict(phases=[dict(steps=1, train='haed')]), ['haed', 'nearest: head']),
    (dict(phases=[dict(steps=1, train='(')]), ['regular expression']),
    (dict(phases=[dict(steps=1, learning_rate=[('head', 1e-3)])]), ['learning_rate', 'layer1', '.*']),
    (dict(phases=[dict(steps=1, learning_rate=[('.*', 1e-3), ('head', 1e-2)])]), ["'head' never applies"]),
    (dict(phases=[dict(steps=1, weight_decay=[('hed', 1e-3)])]), ['hed', 'head']),
    (dict(phases=[dict(steps=1, statistics='adapt')]), ['no running statistics']),
    (dict(phases=[dict(steps=1, epochs=1)]), ['exactly one of steps, epochs and examples']),
    (dict(phases=[dict(steps=10**12)]), ['steps', '2147483647']),
    (dict(phases=[dict(epochs=1e300)]), ['steps in all', '2,147,483,647']),
    (dict(phases=[dict(steps=2**31 - 1), dict(steps=1)]), ['2,147,483,648 steps in all']),
    (dict(phases=[dict(steps=1, learning_rate=1e300)]), ['learning_rate', '1e+300']),
    (dict(phases=[dict(steps=1, name='a'), dict(steps=1, name='a')]), ["two phases are named 'a'"]),
    (dict(phases=[]), ['at least one phase']),
    (dict(seed=2**32), ['seed', '4294967296']),
    (dict(evaluation=dict(metrics=['acuracy'])), ['acuracy', 'accuracy']),
    (dict(evaluation=dict(select='r2')), ["'r2'", 'accuracy']),
    (dict(evaluation=dict(sets={'../outside': dict(name='digits')})), ['sets', '../outside']),
    (dict(evaluation=dict(sets={'other': dict(name='iris')})), ['sets.other', 'inputs [4]', '[8, 8, 1]']),
    (dict(choose={'phases.0.learning_rat': [1e-3]}), ['learning_rat', 'learning_rate']),
    (dict(choose={'phases.3.learning_rate': [1e-3]}), ["'3' is no index", 'list of 1']),
    (dict(baseline=dict(name='logistic_regression')), ['baseline', 'phases']),
    (dict(transplant=[('head', 'init'), ('.*', 'copy')]), ['transplant needs a source']),
    (dict(parallel=dict(devices=64)), ['devices', '64']),
  ],
  ids=lambda value: None if isinstance(value, list) else json.dumps(value, default=str)[:60],
)
def test_a_wrong_name_or_value_is_refused_with_its_cause(refused_config, changes, says):
  message = refused_config(**changes)
  for part in says:
    assert part in message


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    (dict(name='digitz'), ["'digitz'", 'nearest: digits']),
    (dict(shots=1000), ['shots=1000', 'largest possible value']),
    (dict(validation=1000), ['validation=1000', 'largest possible value']),
    (dict(classes=[0, 11]), ['11', '9']),
    (dict(classes=[]), ['at least one']),
    (dict(task='regression'), ['regression', 'classification']),
    (dict(task='binary'), ['two classes', '10']),
    (dict(test=1.0), ['test', 'less than 1']),
    (dict(augment=dict(shift=8)), ['shift=8', 'out of sight']),
    (dict(batch_size=10**12), ['batch_size', '1048576']),
    (dict(shots=5, fraction=0.5), ['exclude each other']),
    (dict(inputs='x'), ['npz']),
  ],
)
def test_data_that_cannot_be_had_are_refused(refused_config, tiny, changes, says):
  data = {**tiny()['target']['data'], **changes}
  message = refused_config(target=dict(data=data))
  for part in says:
    assert part in message


# ------------------------------------------------------------------------------------------------------- data files
def table(**changes):
  random = np.random.default_rng(0)
  arrays = dict(x=random.normal(size=(60, 4)).astype(np.float32), y=np.arange(60) % 3)
  return {**arrays, **changes}


@pytest.mark.parametrize(
  ('arrays', 'says'),
  [
    (table(x=np.full((60, 4), np.nan, np.float32)), ['NaN', 'row 0']),
    (table(y=np.arange(60) % 3 - 1), ['negative']),
    (table(y=np.arange(60) % 3 * 2), ['no example of class 1', 'without a gap']),
    (table(classes=np.array(['a', 'b'])), ['label 2', 'out of range']),
    (table(classes=np.array(['a', 'b', 'c', 'd'])), ["no example of class 'd'"]),
    (table(y=np.zeros(60, int)), ['nothing to tell apart']),
    (table(y=np.arange(59) % 3), ['60 rows', '59']),
    (table(x=np.zeros((0, 4), np.float32)), ['empty']),
    (table(x=np.array([{}] * 60)), ['pickle']),
    (table(x=np.zeros(60, np.float32)), ['shape']),
    (dict(a=np.zeros(3), b=np.zeros(3)), ['it holds a, b', 'data.inputs']),
  ],
)
def test_an_unfit_data_file_is_refused(refused_config, tmp_path, arrays, says):
  np.savez(tmp_path / 'data.npz', **arrays)
  message = refused_config(target=dict(data=dict(name=f'npz:{tmp_path / "data.npz"}')))
  for part in [*says, 'data.npz']:
    assert part in message


def test_a_missing_truncated_or_foreign_data_file_is_refused(refused, refused_config, tmp_path):
  good = tmp_path / 'good.npz'
  np.savez(good, **table())
  whole = good.read_bytes()
  (tmp_path / 'cut.npz').write_bytes(whole[: len(whole) // 2])
  (tmp_path / 'text.npz').write_text('x, y\n1, 2\n')
  (tmp_path / 'folder.npz').mkdir()
  np.save(tmp_path / 'bare.npy', np.zeros(3))
  (tmp_path / 'bare.npy').rename(tmp_path / 'bare.npz')
  for name, says in [
    ('goood.npz', 'nearest in'),
    ('none/good.npz', 'no folder'),
    ('cut.npz', 'cut short'),
    ('text.npz', 'not an npz file'),
    ('folder.npz', 'no file'),
    ('bare.npz', 'bare array'),
  ]:
    assert says in refused_config(target=dict(data=dict(name=f'npz:{tmp_path / name}')))
    assert name.rpartition('/')[2] in refused(f'--inspect={tmp_path / name}')


# ---------------------------------------------------------------------------------------------------- config files
@pytest.mark.parametrize(
  ('text', 'says'),
  [
    ('def get_config(arg):\n  raise KeyError("lost")', "KeyError: 'lost'"),
    ('def get_config(arg):\n  pass', 'returned NoneType'),
    ('def get_config(arg):\n  return [1]', 'returned list'),
    ('def get_config():\n  return {}', 'TypeError'),
    ('def get_config(arg', 'SyntaxError'),
    ('import nothing_there', 'nothing_there'),
    ('import sys\nsys.exit(0)', 'SystemExit'),
    ('settings = {}', 'no function get_config'),
    ('def get_config(arg):\n  d = {}\n  d["d"] = d\n  return d', 'RecursionError'),
    ('def get_config(arg):\n  return dict(network=open)', 'builtin_function_or_method'),
    ('def get_config(arg):\n  return dict(axes=3)', 'config.axes'),
    ('def get_config(arg):\n  return dict(axes={}, base={})', "no axis 'method'"),
    ('def get_config(arg):\n  return dict(axes=dict(method={}, seed=[0]), base={})', 'an axis needs values'),
    ('def get_config(arg):\n  return dict(axes=dict(method={"a": {"sed": 1}}, seed=[0]), base={})', 'nearest: seed'),
  ],
)
def test_a_config_file_that_gives_no_config_is_refused(refused, tmp_path, text, says):
  file = tmp_path / 'broken.py'
  file.write_text(text + '\n')
  assert says in refused(f'--config={file}', f'--workdir={tmp_path / "run"}')


def test_a_config_file_that_is_not_there_names_the_nearest(refused, tmp_path):
  (tmp_path / 'digits_new.py').write_text('')
  (tmp_path / 'binary.py').write_bytes(b'\xff\xfe\x00')
  assert f'nearest: {tmp_path / "digits_new.py"}' in refused(f'--config={tmp_path / "digits_mew.py"}')
  assert 'digits_new.py' in refused(f'--config={tmp_path}')
  assert 'binary.py failed' in refused(f'--config={tmp_path / "binary.py"}')


# ---------------------------------------------------------------------------------------------- flags and overrides
@pytest.mark.parametrize(
  ('arguments', 'says'),
  [
    (['--conifg=x.py'], '--config'),
    (['--dryrun'], '--dry_run'),
    (['train'], "'train'"),
    (['--config'], 'needs a value'),
    (['--workdir=x'], '--config is missing'),
    (['--dry_run'], '--config is missing'),
    (['--help=x'], 'takes no value'),
    (['--list=netwroks'], 'networks'),
    (['--evaluate=test'], 'need --workdir'),
    (['--predict=test'], 'need --workdir'),
  ],
)
def test_an_unknown_or_incomplete_flag_names_the_nearest(refused, arguments, says):
  assert says in refused(*arguments)


@pytest.mark.parametrize(
  ('override', 'says'),
  [
    ('phases.0.step=3', 'nearest: steps'),
    ('phases.7.steps=3', "'7' is no index into a list of 1"),
    ('phases.x.steps=3', "'x' is no index"),
    ('phases.0.steps=three', "'three'"),
    ('phases.0.steps=-3', 'greater than or equal to 0'),
    ('phases.0.steps=None', 'exactly one of'),
    ('phases.0.learning_rate.head=1', 'no keys'),
    ('phases=', 'config.phases'),
    ('seeed=3', 'nearest: seed'),
    ('=3', 'no such key'),
    ('..=3', 'no such key'),
    ('network=(', 'config.network'),
    ('target.data.name=digitz', 'nearest: digits'),
  ],
)
def test_a_bad_override_is_refused(refused, tiny, write_config, tmp_path, override, says):
  config = write_config(tmp_path / 'good.py', tiny())
  assert says in refused(f'--config={config}', f'--workdir={tmp_path / "run"}', f'--config.{override}')
  assert not (tmp_path / 'run').exists()


# ------------------------------------------------------------------------------------------------ folders and runs
def test_a_folder_that_belongs_to_another_config_is_left_alone(refused, tiny, write_config, trained):
  before = {path: path.read_bytes() for path in trained.rglob('*') if path.is_file()}
  config = write_config(trained.parent / 'other.py', tiny(seed=3))
  message = refused(f'--config={config}', f'--workdir={trained}')
  assert 'other values' in message and 'config.seed: 0 there, 3 here' in message
  assert {path: path.read_bytes() for path in trained.rglob('*') if path.is_file()} == before


def test_a_foreign_or_impossible_folder_is_refused(refused, tiny, write_config, tmp_path):
  config = write_config(tmp_path / 'good.py', tiny())
  foreign = tmp_path / 'foreign'
  foreign.mkdir()
  (foreign / 'thesis.tex').write_text('five years')
  assert 'holds no run' in refused(f'--config={config}', f'--workdir={foreign}')
  assert (foreign / 'thesis.tex').read_text() == 'five years'
  assert 'File exists' in refused(f'--config={config}', f'--workdir={config}')
  for text, says in [('{"config"', 'cannot be read'), ('[]', 'no record of a run'), ('{}', 'no record of a run')]:
    (foreign / 'config.json').write_text(text)
    assert says in refused(f'--config={config}', f'--workdir={foreign}')


def test_data_that_changed_under_a_run_are_an_error_that_names_the_file(refused, tiny, write_config, tmp_path):
  file = tmp_path / 'mine.npz'
  np.savez(file, **table())
  config = write_config(tmp_path / 'good.py', tiny(target=dict(data=dict(name=f'npz:{file}', validation=2))))
  transferlab.run(str(config), tmp_path / 'run')
  np.savez(file, **table(y=(np.arange(60) + 1) % 3))
  message = refused(f'--config={config}', f'--workdir={tmp_path / "run"}')
  assert 'data changed' in message and 'mine.npz' in message


@pytest.mark.parametrize('flag', ['--evaluate', '--predict'])
def test_measuring_what_is_not_there_is_refused(refused, trained, tmp_path, flag):
  assert 'does not exist' in refused(f'{flag}=test', f'--workdir={tmp_path / "none"}')
  assert 'no complete checkpoint' in refused(f'{flag}=test', f'--workdir={tmp_path}')
  for spec, says in [
    ('tset', "'tset'"),
    ('digits,hlaf=0', 'nearest: half'),
    ('digits,half', 'not key=value'),
    ('digits,split=tset', 'there are train, test, all'),
    ('iris', "class of iris 'setosa'"),
    ('diabetes', 'regression'),
    ('npz:none.npz', 'no file'),
  ]:
    assert says in refused(f'{flag}={spec}', f'--workdir={trained}')


def copied(trained, tmp_path):
  """A copy of a finished run, to be damaged; gives it and its newest checkpoint."""
  folder = tmp_path / 'damaged'
  shutil.copytree(trained, folder)
  return folder, max((folder / 'checkpoints').iterdir(), key=lambda path: int(path.name) if path.name.isdigit() else -1)


def test_a_damaged_checkpoint_is_refused(refused, tiny, write_config, trained, tmp_path):
  for number, damage in enumerate(['empty files', 'cut files', 'no metadata', 'foreign metadata', 'newer format']):
    folder, checkpoint = copied(trained, tmp_path / str(number))
    files = [path for path in (checkpoint / 'state').rglob('*') if path.is_file()]
    record = checkpoint / '_CHECKPOINT_METADATA'
    if damage == 'empty files':
      [path.write_bytes(b'') for path in files]
    elif damage == 'cut files':
      [path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]) for path in files]
    elif damage == 'no metadata':
      record.unlink()
    elif damage == 'foreign metadata':
      record.write_text('{}')
    else:
      values = json.loads(record.read_text())
      values['custom_metadata']['format'] = 99
      record.write_text(json.dumps(values))
    message = refused('--evaluate=test', f'--workdir={folder}')
    assert str(folder) in message, damage
    config = write_config(tmp_path / 'target.py', tiny(source=dict(weights=str(folder))))
    assert str(folder) in refused(f'--config={config}', f'--workdir={tmp_path / "run"}'), damage
    assert str(folder) in refused(f'--inspect={folder}'), damage


def test_a_damaged_record_of_a_run_is_refused(refused, trained, tmp_path):
  for number, text in enumerate(['', '{"config": {"netwrok": 1}}', '{"config": 3}', '[]', '\x00', '{"confi']):
    folder, _ = copied(trained, tmp_path / str(number))
    (folder / 'config.json').write_text(text)
    refused('--evaluate=test', f'--workdir={folder}')


def test_a_damaged_result_is_refused_and_damaged_metrics_are_left_out(command, refused, tiny, write_config, tmp_path):
  config = write_config(tmp_path / 'good.py', tiny())
  arguments = f'--config={config}', f'--workdir={tmp_path / "run"}'
  assert command(*arguments).status == 0
  results = tmp_path / 'run' / 'results.json'
  for text in ('', '[]', '{}', '{"status": "done"'):
    results.write_text(text)
    assert 'results.json' in refused(*arguments)
  results.unlink()
  with (tmp_path / 'run' / 'metrics.jsonl').open('ab') as file:
    file.write(b'[]\n3\n{"step": "x"}\n\xff{"st')
  assert command(*arguments).status == 0
  for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines():
    assert json.loads(line)['step'] <= 20


def test_a_damaged_cell_of_an_experiment_is_refused(command, refused, tiny, write_config, tmp_path):
  axes = dict(method={'scratch': {'phases.0.steps': 2}}, seed=[0])
  config = write_config(tmp_path / 'good.py', dict(base=tiny(), axes=axes))
  arguments = f'--config={config}', f'--workdir={tmp_path / "run"}'
  assert command(*arguments).status == 0
  (cell,) = (tmp_path / 'run' / 'cells').iterdir()
  for text in ('', '[]', '{}'):
    cell.write_text(text)
    assert cell.name in refused(*arguments)


def test_a_source_that_does_not_fit_is_refused(refused_config, tiny, trained, tmp_path):
  source = dict(weights=str(trained))
  iris = dict(data=dict(name='iris', validation=2))
  assert 'does not exist' in refused_config(source=dict(weights=str(tmp_path / 'none')))
  assert 'no complete checkpoint' in refused_config(source=dict(weights=str(ROOT / 'configs')))
  assert 'trained on image data' in refused_config(source=source, target=iris)
  wider = refused_config(source=source, network=dict(name='mlp', hidden=[32]))
  assert '(32,)' in wider and '(16,)' in wider and "'init'" in wider
  assert 'copies nothing' in refused_config(source=source, transplant=[('.*', 'init')])
  assert 'layer1' in refused_config(source=source, transplant=[('layr1', 'init'), ('.*', 'copy')])
  assert "unknown action 'kopy'" in refused_config(source=source, transplant=[('.*', 'kopy')])
  missing = refused_config(source=source, transplant=[('head', 'init'), ('layer1', 'copy:layer2')])
  assert 'layer2/linear' in missing and 'nearest: layer1/linear' in missing
  assert 'column names' in refused_config(
    source=source, transplant=[('layer1/linear/kernel', 'columns'), ('.*', 'copy')]
  )


# ---------------------------------------------------------------------------------------------------- real processes
@pytest.mark.parametrize(
  ('arguments', 'says'),
  [
    (['--config=configs/digits_few_shot.py', '--config.phases.0.stepz=3'], 'nearest: steps'),
    (['--config=configs/digits_few_shott.py'], 'configs/digits_few_shot.py'),
    (['--evaluate=test', '--workdir=nothing/there'], 'does not exist'),
    (['--config=configs/wine_columns.py', '--config.target.data.shots=500', '--dry_run'], 'shots=500'),
  ],
)
def test_a_real_process_ends_with_status_2_and_one_line(arguments, says):
  done = subprocess.run(
    [sys.executable, '-m', 'transferlab.main', *arguments], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 2
  assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
  assert says in done.stderr and not done.stdout


def test_memory_that_does_not_suffice_is_said_without_a_traceback(command, monkeypatch):
  def exhausted(parsed):
    raise MemoryError('Unable to allocate 8.00 TiB')

  monkeypatch.setattr(main, 'run', exhausted)
  done = command('--help')
  assert done.status == 2 and done.err.startswith('error: out of memory') and '8.00 TiB' in done.err
