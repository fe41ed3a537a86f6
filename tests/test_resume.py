"""Stopping and going on: N steps equal k steps, a stop and N − k steps, bit for bit, whatever the run is made of."""

import shutil

import numpy as np
import pytest
from outcomes import Stopper, assert_same

from transferlab import checkpoints, config, experiment
from transferlab.errors import Interrupted, UserError
from transferlab.settings import Run

pytestmark = pytest.mark.usefixtures('quick_compilation')

DIGITS = {'name': 'digits', 'validation': 4, 'shots': 12, 'batch_size': 16, 'augment': {'shift': 1}}
PROBE = {'name': 'probe', 'train': 'head', 'steps': 12, 'statistics': 'update', 'learning_rate': 1e-2}
TOP = {
  'name': 'top',
  'train': 'dense|head',
  'steps': 18,
  'optimizer': 'adamw',
  'weight_decay': 1e-3,
  'schedule': {'name': 'cosine', 'warmup': 0.2},
  'statistics': 'adapt',
}
CHANGES = {
  'flip': True,
  'crop': 7,
  'resized_crop': [0.5, 1.0],
  'brightness': 0.3,
  'contrast': 0.3,
  'randaugment': {'layers': 2, 'magnitude': 9.0},
  'erase': 0.5,
  'mixup': 0.4,
  'cutmix': 1.0,
}
ALL = {'name': 'all', 'steps': 14, 'optimizer': 'momentum', 'learning_rate': [('head', 0.1), ('.*', 0.01)]}
TERMS = [
  {'term': 'cross_entropy'},
  {'term': 'center_loss', 'stage': 'dense', 'weight': 0.1},
  {'term': 'deep_supervision', 'stage': 'block1', 'weight': 0.3},
]


def settings(*phases, data=DIGITS, **more):
  values = {
    'network': {'name': 'convnet', 'width': 4, 'blocks': 1, 'features': 12, 'batch_norm': True, 'dropout': 0.2},
    'target': {'data': data},
    'phases': list(phases),
    'evaluation': {'every': 6},
    'checkpoint': {'every': 4},
    'logging': {'every': 3},
    **more,
  }
  return config.validate(Run, values)


def stopped(run, place, *at):
  """Runs in the folder with a stop at (or at the end of the chunk after) each of the steps, then to the end."""
  done = 0
  for step in at:
    stopper = Stopper(step - done)
    with pytest.raises(Interrupted, match='the same command continues'):
      experiment.run(run, place, screen=stopper, stop=stopper)
    done = checkpoints.steps(place / 'checkpoints')[-1]
    assert done == step
  return experiment.run(run, place)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  """The folder of a run that nothing interrupts; the same for the same settings."""
  made = {}

  def folder(run):
    key = config.digest(config.resolved(run))
    if key not in made:
      made[key] = tmp_path_factory.mktemp('undisturbed') / 'run'
      experiment.run(run, made[key])
    return made[key]

  return folder


# ------------------------------------------------------------------------------------------------- stop and go on
CASES = {
  'in the middle of the second phase': (settings(PROBE, TOP, ALL), [20]),
  'at the end of a phase': (settings(PROBE, TOP, ALL), [12]),
  'at the end of the last phase': (settings(PROBE, TOP, ALL), [44]),
  'again and again': (settings(PROBE, TOP, ALL), [3, 8, 12, 15, 30, 33, 42]),
  'with an optimizer that is kept, at the boundary and beyond': (
    settings(ALL, {**ALL, 'name': 'more', 'keep_optimizer': True}),
    [14, 18],
  ),
  'with terms that have parameters and state': (settings(PROBE, {**ALL, 'objective': TERMS}), [12, 16]),
  'streaming': (settings(PROBE, data={**DIGITS, 'hold': 'stream'}), [4]),
  'with all that augments': (settings(ALL, data={**DIGITS, 'augment': CHANGES}), [8]),
  'under pmap': (settings(ALL, parallel={'compile': 'pmap'}), [6]),
  'with a padded last batch and balanced classes': (
    settings(ALL, data={**DIGITS, 'last_batch': 'pad', 'sampling': 'balanced', 'batch_size': 50}),
    [8],
  ),
}
LONG = ('at the end of the last phase', 'with all that augments')


@pytest.mark.parametrize('case', [pytest.param(c, marks=pytest.mark.long if c in LONG else ()) for c in CASES])
def test_a_stop_changes_nothing(case, tmp_path, undisturbed):
  run, at = CASES[case]
  stopped(run, tmp_path / 'run', *at)
  assert_same(tmp_path / 'run', undisturbed(run))


@pytest.mark.parametrize('at', [15, 21, 36])
def test_a_stop_while_validation_stalls_does_not_move_the_early_end(at, tmp_path, undisturbed):
  still = {**TOP, 'learning_rate': 1e-9, 'steps': 60, 'early_stop': {'patience': 3, 'min_delta': 0.5}}
  run = settings(PROBE, still, ALL)
  stopped(run, tmp_path / 'run', at)
  progress = checkpoints.progress(checkpoints.find(str(tmp_path / 'run')))
  # The first evaluation, at step 18, improves on nothing; the three after it do not improve on that.
  assert progress['ends'] == [12, 36, 50]
  assert progress['early'] == [1]
  assert_same(tmp_path / 'run', undisturbed(run))


def test_metrics_are_cut_to_the_step_of_the_checkpoint(tmp_path, undisturbed):
  run, place = settings(PROBE, TOP, ALL), tmp_path / 'run'
  stopper = Stopper(20)
  with pytest.raises(Interrupted):
    experiment.run(run, place, screen=stopper, stop=stopper)
  # What a kill leaves behind: lines beyond the checkpoint, the last one cut short.
  with (place / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 21, "phase": "top", "split": "train", "values": {}, "seconds": 1.0}\n{"step": 22, "pha')
  experiment.run(run, place)
  assert_same(place, undisturbed(run))


# --------------------------------------------------------------------------------------------------------- longer
@pytest.mark.parametrize('longer', [[PROBE, {**ALL, 'steps': 24}], [PROBE, {**ALL, 'steps': 12}, TOP]])
def test_an_extended_run_equals_one_that_was_longer_from_the_start(longer, tmp_path, undisturbed):
  short = settings(PROBE, {**ALL, 'steps': 12})
  experiment.run(short, tmp_path / 'run')
  long = settings(*longer)
  experiment.run(long, tmp_path / 'run', extend=True)
  assert_same(tmp_path / 'run', undisturbed(long))
  assert experiment.run(long, tmp_path / 'run')['steps'] == sum(phase['steps'] for phase in longer)


@pytest.mark.parametrize(
  'phases',
  [[PROBE, {**ALL, 'steps': 8}], [{**PROBE, 'steps': 20}, {**ALL, 'steps': 12}], [PROBE, {**ALL, 'clip': 1.0}]],
  ids=['shorter', 'longer in an earlier phase', 'otherwise different'],
)
def test_extending_by_anything_but_length_at_the_end_is_refused(phases, tmp_path):
  experiment.run(settings(PROBE, {**ALL, 'steps': 12}), tmp_path / 'run')
  before = (tmp_path / 'run' / 'config.json').read_text()
  with pytest.raises(UserError, match=r'belongs to a run with other values(.|\n)*config\.phases\.'):
    experiment.run(settings(*phases), tmp_path / 'run', extend=True)
  assert (tmp_path / 'run' / 'config.json').read_text() == before


# -------------------------------------------------------------------------------------------- what does not belong
def interrupted(run, place, at=4):
  stopper = Stopper(at)
  with pytest.raises(Interrupted):
    experiment.run(run, place, screen=stopper, stop=stopper)


def files(place):
  """Contents of everything in a folder, but for the lock."""
  return {file: file.read_bytes() for file in place.rglob('*') if file.is_file() and file.name != '.lock'}


def test_a_folder_of_another_config_is_left_alone_and_the_difference_named(tmp_path):
  interrupted(settings(PROBE), tmp_path / 'run')
  before = files(tmp_path / 'run')
  other = settings({**PROBE, 'learning_rate': 0.5}, data={**DIGITS, 'noise': 0.1})
  with pytest.raises(UserError) as caught:
    experiment.run(other, tmp_path / 'run')
  lines = str(caught.value).splitlines()
  assert 'belongs to a run with other values; nothing was overwritten' in lines[0]
  assert sorted(lines[1:]) == [
    'config.phases.0.learning_rate: 0.01 there, 0.5 here',
    'config.target.data.noise: 0.0 there, 0.1 here',
  ]
  assert files(tmp_path / 'run') == before


@pytest.mark.parametrize('role', ['target', 'evaluation'])
def test_data_that_changed_under_a_run_are_an_error_that_names_the_file(role, tmp_path):
  random = np.random.default_rng(0)
  x, y = random.normal(size=(60, 4)), np.arange(60) % 3
  np.savez(tmp_path / 'mine.npz', x=x, y=y)
  mine = {'name': f'npz:{tmp_path / "mine.npz"}', 'batch_size': 8}
  values = {'data': mine} if role == 'target' else {'data': {'name': 'iris'}, 'evaluation': {'sets': {'mine': mine}}}
  run = settings({**PROBE, 'statistics': 'auto'}, network={'name': 'mlp'}, **values)
  interrupted(run, tmp_path / 'run')
  x[17, 2] += 1e-3
  np.savez(tmp_path / 'mine.npz', x=x, y=y)
  before = files(tmp_path / 'run')
  with pytest.raises(UserError, match=r'the data changed since this run began:\n.*mine\.npz'):
    experiment.run(run, tmp_path / 'run')
  assert files(tmp_path / 'run') == before


# ------------------------------------------------------------------------------------------- damaged checkpoints
def newest_and_older(place):
  older, newest = checkpoints.steps(place / 'checkpoints')[-2:]
  return place / 'checkpoints' / str(newest), older


def test_an_unfinished_checkpoint_does_not_count_and_the_one_before_is_taken(tmp_path, undisturbed):
  run, place = settings(PROBE, TOP, ALL), tmp_path / 'run'
  interrupted(run, place, 20)
  newest, older = newest_and_older(place)
  (newest / '_CHECKPOINT_METADATA').unlink()
  assert checkpoints.steps(place / 'checkpoints')[-1] == older
  experiment.run(run, place)
  assert_same(place, undisturbed(run))


def test_a_missing_checkpoint_means_the_one_before_and_none_means_the_start(tmp_path, undisturbed):
  run, place = settings(PROBE, TOP, ALL), tmp_path / 'run'
  interrupted(run, place, 20)
  shutil.rmtree(newest_and_older(place)[0])
  interrupted(run, place, 0)
  shutil.rmtree(place / 'checkpoints')
  experiment.run(run, place)
  assert_same(place, undisturbed(run))


def test_a_damaged_checkpoint_is_one_message_that_says_how_to_go_on(tmp_path, undisturbed):
  """It is never skipped in silence: the run would throw work away without a word."""
  run, place = settings(PROBE, TOP, ALL), tmp_path / 'run'
  interrupted(run, place, 20)
  newest, older = newest_and_older(place)
  largest = max((newest / 'state').rglob('d/*'), key=lambda file: file.stat().st_size)
  for damaged in (newest / '_CHECKPOINT_METADATA', newest / 'state' / '_METADATA', largest):
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError) as caught:
      experiment.run(run, place)
    assert str(caught.value).startswith(f'checkpoint {newest} cannot be read')
    assert str(caught.value).endswith(f'delete it to go on from step {older}')
    assert '\n' not in str(caught.value)
    damaged.write_bytes(whole)
  shutil.rmtree(newest)
  experiment.run(run, place)
  assert_same(place, undisturbed(run))
