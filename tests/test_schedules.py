"""Lists of phases: what each says, checked against its paper; and that what they name moves, and nothing else, whatever
stops the run on its way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ml_collections
import numpy as np
import pytest
from outcomes import Stopper, assert_same
from test_resume import stopped

from transferlab import checkpoints, config, experiment, paths, schedules
from transferlab.errors import UserError
from transferlab.networks import network as networks
from transferlab.preparation import prepare, start
from transferlab.settings import Run
from transferlab.training import partition
from transferlab.training.phases import Phase

pytestmark = pytest.mark.usefixtures('quick_compilation')

NAMES = ['stem', 'block1', 'block2', 'head']
ADAM = {'steps': 5, 'optimizer': 'adamw', 'learning_rate': 1e-3}


def trains(phases):
  return [(phase['name'], phase['train']) for phase in phases]


# -------------------------------------------------------------------------------------------------- what they say
@pytest.mark.parametrize(
  ('made', 'expected'),
  [
    (schedules.probe(**ADAM), [('probe', 'head')]),
    (schedules.full(**ADAM), [('full', '.*')]),
    (schedules.top_stages(NAMES, 1, **ADAM), [('top1', ['head'])]),
    (schedules.top_stages(NAMES, 3, **ADAM), [('top3', ['block1', 'block2', 'head'])]),
    # Howard and Ruder 2018, section 3.3.
    (
      schedules.gradual_unfreezing(NAMES, **ADAM),
      [
        ('unfreeze_head', ['head']),
        ('unfreeze_block2', ['block2', 'head']),
        ('unfreeze_block1', ['block1', 'block2', 'head']),
        ('unfreeze_stem', '.*'),
      ],
    ),
    # Felbo et al. 2017, figure 2: a) the new layer, b) and c) each other one from the first on, d) all.
    (
      schedules.chain_thaw(NAMES, **ADAM),
      [
        ('thaw_head', 'head'),
        ('thaw_stem', 'stem'),
        ('thaw_block1', 'block1'),
        ('thaw_block2', 'block2'),
        ('thaw_all', '.*'),
      ],
    ),
    (schedules.probe_then_full(**ADAM), [('probe', 'head'), ('full', '.*')]),
    (schedules.bitfit(**ADAM), [('bitfit', ['.*/bias', 'head'])]),
    (schedules.first_stage(NAMES, **ADAM), [('first_stage', 'stem')]),
    (schedules.first_stage(NAMES, head=True, **ADAM), [('first_stage', ['stem', 'head'])]),
  ],
)
def test_each_way_to_train_is_the_list_of_phases_of_its_paper_with_the_keys_passed_through(made, expected):
  assert trains(made) == expected
  for phase in made:
    assert {key: phase[key] for key in ADAM} == ADAM and set(phase) == {'name', 'train', *ADAM}
    config.validate(Phase, phase)


def test_lengths_and_rates_may_be_given_one_for_each_phase_and_names_a_prefix():
  rules = [('head', 1e-2), ('.*', 1e-4)]
  made = schedules.probe_then_full(name='a', steps=[3, 7], learning_rate=[1e-2, rules], clip=1.0)
  assert [(phase['name'], phase['steps'], phase['clip']) for phase in made] == [('a_probe', 3, 1.0), ('a_full', 7, 1.0)]
  checked = [config.validate(Phase, phase) for phase in made]
  assert [phase.learning_rate for phase in checked] == [1e-2, rules]
  # Rules alone are for all phases; a list of two rules is not one rule for each.
  both = schedules.probe_then_full(steps=3, learning_rate=rules)
  assert [config.validate(Phase, phase).learning_rate for phase in both] == [rules, rules]
  assert schedules.probe(name='mine', epochs=1.0)[0]['name'] == 'mine'


def test_phases_share_nothing_so_that_changing_one_changes_no_other():
  first, second, *_ = schedules.chain_thaw(NAMES, steps=1, schedule={'name': 'step', 'at': [0.5]})
  first['schedule']['at'].append(0.7)
  assert second['schedule'] == {'name': 'step', 'at': [0.5]}


def test_discriminative_rates_fall_by_the_factor_from_stage_to_stage():
  """η_{l−1} = η_l / 2.6."""
  expected = {stage: 0.01 / 2.6**depth for stage, depth in [('head', 0), ('block2', 1), ('block1', 2), ('stem', 3)]}
  assert dict(schedules.discriminative(NAMES, 0.01)) == pytest.approx(expected, rel=1e-12)
  made = schedules.gradual_unfreezing(NAMES, factor=3.0, steps=1, learning_rate=[0.1, 0.2, 0.3, 0.4])
  for phase, rate in zip(made, [0.1, 0.2, 0.3, 0.4]):
    assert dict(phase['learning_rate']) == pytest.approx({s: rate / 3**d for d, s in enumerate(reversed(NAMES))})


def test_layer_decay_as_rules_equals_the_key_of_a_phase_where_all_stages_have_parameters():
  options = {'hidden': [3, 4, 5]}
  network = networks.build('mlp', options, (2,), 3)
  leaves = list(paths.flatten(network.shapes()['params']))
  rates = lambda **values: partition.leaf_rates(
    config.validate(Phase, {'steps': 1, **values}), leaves, leaves, network.stages, 'phase'
  )
  rules = schedules.layer_decay({'name': 'mlp', **options}, 0.02, 0.6)
  assert rates(learning_rate=rules) == pytest.approx(rates(learning_rate=0.02, layer_decay=0.6), rel=1e-12)


# ------------------------------------------------------------------------------------------------ names of networks
@pytest.mark.parametrize(
  ('network', 'expected'),
  [
    ({'name': 'mlp', 'hidden': [4, 4]}, ['layer1', 'layer2', 'head']),
    (ml_collections.ConfigDict({'name': 'convnet', 'blocks': 3}), ['block1', 'block2', 'block3', 'dense', 'head']),
    ('vgg', ['block1', 'block2', 'block3', 'block4', 'block5', 'dense1', 'dense2', 'head']),  # pool has none
    ({'name': 'resnet', 'depth': 8}, ['stem', 'block1', 'block2', 'block3', 'head']),
    ('squeezenet', ['stem', *(f'fire{number}' for number in range(2, 10)), 'head']),
    (tuple(NAMES), NAMES),
  ],
)
def test_stages_with_parameters_are_looked_up_by_the_networks_name_and_options(network, expected):
  assert schedules.stages(network) == expected


@pytest.mark.parametrize(
  ('name', 'options'),
  [
    ('convnet', {'batch_norm': True}),
    ('resnet', {'depth': 14, 'shortcut': 'B'}),
    ('vgg', {'depth': 11, 'batch_norm': True}),
    ('mobilenet', {}),
  ],
)
def test_norm_only_selects_the_leaves_of_layers_that_keep_running_statistics_and_the_head(name, options):
  """Which layers normalise is read from where statistics stand."""
  shapes = networks.build(name, options, (64, 64, 3), 5).shapes()
  layers = {path.rpartition('/')[0] for path in paths.flatten(shapes['stats'])}
  leaves = list(paths.flatten(shapes['params']))
  expected = [path for path in leaves if path.rpartition('/')[0] in layers or path.startswith('head/')]
  (phase,) = schedules.norm_only({'name': name, **options}, steps=1)
  assert paths.select(phase['train'], leaves, what='train') == expected
  assert 0 < len(expected) < len(leaves)


@pytest.mark.parametrize('name', ['mlp', 'convnet', 'resnet', 'vgg', 'mobilenet', 'squeezenet'])
def test_bitfit_selects_every_bias_and_the_head_of_every_network(name):
  leaves = list(paths.flatten(networks.build(name, {}, (64, 64, 3), 5).shapes()['params']))
  (phase,) = schedules.bitfit(steps=1)
  chosen = paths.select(phase['train'], leaves, what='train')
  assert chosen == [path for path in leaves if path.split('/')[-1] == 'bias' or path.split('/')[0] == 'head']


# ---------------------------------------------------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: schedules.top_stages(NAMES, 9, steps=1), r'k=9, .* 4 stages .*\(stem, block1, block2, head\); nearest: 4'),
    (lambda: schedules.top_stages(NAMES, 0, steps=1), 'nearest: 1'),
    (lambda: schedules.top_stages('convnett', 1, steps=1), "unknown network 'convnett'; nearest: convnet"),
    (lambda: schedules.chain_thaw({'name': 'convnet', 'blockz': 2}), 'blockz: no such key; nearest: blocks'),
    (lambda: schedules.norm_only('mlp', steps=1), "'mlp' has no normalisation layers; nearest: bitfit"),
    (lambda: schedules.norm_only(NAMES, steps=1), 'give config.network'),
    (lambda: schedules.first_stage(['head'], steps=1), 'nearest: full'),
    (lambda: schedules.probe(stepz=1), "no key 'stepz'; nearest: steps"),
    (lambda: schedules.probe(train='.*', steps=1), 'train is what these functions choose'),
    (lambda: schedules.chain_thaw(NAMES, steps=[1, 2]), r'steps has 2 entries for 5 phases \(thaw_head, .*thaw_all\)'),
    (lambda: schedules.gradual_unfreezing(NAMES, factor=2.6, steps=1), 'needs learning_rate as a number, not None'),
    (lambda: schedules.discriminative(NAMES, 0.1, 0.0), 'factor=0.0 should be positive'),
    (lambda: schedules.layer_decay(NAMES, 0.1, 0.0), 'decay=0.0 should be positive'),
    (lambda: schedules.stages(['a', 'b', 'a']), "'a' stands there twice"),
    (lambda: schedules.stages([]), 'stages are names'),
    (lambda: schedules.stages(7), 'a network is its name and options'),
  ],
)
def test_a_mistake_is_one_message_with_the_nearest_choice(call, message):
  with pytest.raises(UserError, match=message):
    call()


def test_a_stage_that_the_network_does_not_have_is_refused_before_anything_trains():
  phases = schedules.gradual_unfreezing(['block7', 'dense', 'head'], steps=1)
  with pytest.raises(UserError, match=r'phases\.0|phases\.1|nearest: block1'):
    prepare(digits(schedules.chain_thaw(['block7', 'dense', 'head'], steps=1)))
  # In gradual unfreezing the lowest stage is not named: the last phase trains everything.
  assert phases[-1]['train'] == '.*'


def test_config_files_can_use_schedules_and_rules_without_loading_jax():
  program = (
    'import sys; from transferlab import rules, schedules; '
    "schedules.gradual_unfreezing(['a', 'head'], steps=1, learning_rate=1.0, factor=2.6); rules.vit_rule(10, 32); "
    "print([name for name in ('jax', 'flax', 'optax', 'scipy') if name in sys.modules])"
  )
  root = Path(__file__).parents[1]
  done = subprocess.run([sys.executable, '-c', program], cwd=root, capture_output=True, text=True)
  assert done.stdout.strip() == '[]', done.stderr


# ---------------------------------------------------------------------------------------------- what moves, and stops
NETWORK = {'name': 'convnet', 'width': 4, 'blocks': 1, 'features': 12, 'batch_norm': True, 'dropout': 0.2}
STAGES = ['block1', 'dense', 'head']
LENGTHS = [8, 10, 12]
ENDS = [8, 18, 30]


def digits(phases):
  values = {
    'network': NETWORK,
    'target': {'data': {'name': 'digits', 'validation': 4, 'shots': 12, 'batch_size': 16, 'augment': {'shift': 1}}},
    'phases': phases,
    'evaluation': {'every': 5},
    'checkpoint': {'every': 4, 'keep': 100},
    'logging': {'every': 3},
  }
  return config.validate(Run, values)


def unfreezing():
  options = {'optimizer': 'momentum', 'schedule': {'name': 'slanted_triangular'}}
  return digits(
    schedules.gradual_unfreezing(NETWORK, factor=2.6, steps=LENGTHS, learning_rate=0.05, weight_decay=1e-3, **options)
  )


def moved(before, after):
  """The stages of which some leaf of the parameters, and of which some running statistic, changed by any bit."""
  found = []
  for kind in ('params', 'stats'):
    old, new = paths.flatten(before[kind]), paths.flatten(after[kind])
    assert set(old) == set(new)
    changed = {path for path in new if np.asarray(old[path]).tobytes() != np.asarray(new[path]).tobytes()}
    found.append({path.partition('/')[0] for path in changed})
  return found


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The folder of the run that nothing stops."""
  place = tmp_path_factory.mktemp('whole') / 'run'
  experiment.run(unfreezing(), place)
  return place


def check_what_moved(run, place, expected):
  """Between any two checkpoints, and from the start to the first, exactly the phase's stages moved.

  Args:
    expected: for each phase the stages that train.
  """
  steps = checkpoints.steps(place / 'checkpoints')
  before, done = start(prepare(run), None).variables, 0
  for step in steps:
    after = checkpoints.load(place / 'checkpoints' / str(step))
    phase = next(number for number, end in enumerate(ENDS) if step <= end)
    assert done >= ([0, *ENDS][phase])  # no checkpoint lies on both sides of a boundary
    parameters, statistics = moved(before, after)
    assert parameters == set(expected[phase]), step
    assert statistics == ({'block1'} if 'block1' in expected[phase] else set()), step
    before, done = after, step


UNFROZEN = [['head'], ['dense', 'head'], ['block1', 'dense', 'head']]


def test_gradual_unfreezing_moves_exactly_the_stages_its_phase_names(whole):
  assert set(ENDS) < set(checkpoints.steps(whole / 'checkpoints'))
  check_what_moved(unfreezing(), whole, UNFROZEN)


class Killed(BaseException):
  """Nothing in the program catches it."""


class Killer(Stopper):
  """One that ends the run in the middle of the loop, without a word to it."""

  def advance(self, steps):
    super().advance(steps)
    if self():
      raise Killed


@pytest.mark.parametrize(
  'at', [[8], [18], [12], [24], [4, 8, 12, 18, 21]], ids=['boundary', 'later boundary', 'inside', 'last', 'all']
)
def test_a_stop_at_a_boundary_or_inside_a_phase_changes_no_bit_of_gradual_unfreezing(at, tmp_path, whole):
  stopped(unfreezing(), tmp_path / 'run', *at)
  assert_same(tmp_path / 'run', whole)
  check_what_moved(unfreezing(), tmp_path / 'run', UNFROZEN)


@pytest.mark.parametrize('at', [8, 10, 14, 18, 23])
def test_what_is_lost_by_a_kill_since_the_last_checkpoint_is_done_again_bit_for_bit(at, tmp_path, whole):
  """At 8 and 18 the phase's last step is done and its checkpoint is not written."""
  with pytest.raises(Killed):
    experiment.run(unfreezing(), tmp_path / 'run', screen=Killer(at))
  saved = checkpoints.steps(tmp_path / 'run' / 'checkpoints')
  assert saved and saved[-1] < at
  experiment.run(unfreezing(), tmp_path / 'run')
  assert_same(tmp_path / 'run', whole)
  check_what_moved(unfreezing(), tmp_path / 'run', UNFROZEN)


CONFIG = f"""
from transferlab import schedules

def get_config(arg=''):
  network = {NETWORK!r}
  return dict(
    network=network,
    target=dict(data=dict(name='digits', validation=4, shots=12, batch_size=16, augment=dict(shift=1))),
    phases=schedules.gradual_unfreezing(network, steps=[8, 200, 12], learning_rate=0.01),
    evaluation=dict(every=20), checkpoint=dict(every=4), logging=dict(every=3))
"""


def launched(place, name):
  """The run of `CONFIG` in a process of its own."""
  environment = {
    **os.environ,
    'PYTHONPATH': os.fspath(Path(__file__).parents[1]),
    'JAX_COMPILATION_CACHE_DIR': os.fspath(place / 'cache'),
  }
  command = [sys.executable, '-m', 'transferlab.main', f'--config={place / "config.py"}']
  output = (place / f'{name}.txt').open('a')
  return subprocess.Popen(
    [*command, f'--workdir={place / name}'], env=environment, cwd=place, stdout=output, stderr=output
  )


def newest(place):
  return max(checkpoints.steps(place / 'checkpoints'), default=0) if place.exists() else 0


@pytest.mark.long
def test_a_process_that_is_killed_at_a_boundary_and_again_inside_a_phase_ends_with_the_same_bits(tmp_path):
  (tmp_path / 'config.py').write_text(CONFIG)
  assert launched(tmp_path, 'undisturbed').wait() == 0, (tmp_path / 'undisturbed.txt').read_text()
  killed = []
  for reached in (8, 60):
    process = launched(tmp_path, 'killed')
    while newest(tmp_path / 'killed') < reached:
      assert process.poll() is None, (tmp_path / 'killed.txt').read_text()
      time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    killed.append(newest(tmp_path / 'killed'))
  assert 8 <= killed[0] < killed[1] < 208
  assert launched(tmp_path, 'killed').wait() == 0, (tmp_path / 'killed.txt').read_text()
  assert_same(tmp_path / 'killed', tmp_path / 'undisturbed')


@pytest.mark.long
def test_chain_thaw_moves_one_stage_at_a_time_and_then_all(tmp_path, monkeypatch):
  monkeypatch.setattr(sys.modules[__name__], 'ENDS', [4, 8, 12, 16])
  run = digits(schedules.chain_thaw(NETWORK, steps=4, learning_rate=[0.01, 0.001, 0.001, 0.001]))
  stopper = Stopper(8)
  with pytest.raises(BaseException, match='the same command continues'):
    experiment.run(run, tmp_path / 'run', screen=stopper, stop=stopper)
  experiment.run(run, tmp_path / 'run')
  check_what_moved(run, tmp_path / 'run', [['head'], ['block1'], ['dense'], STAGES])
