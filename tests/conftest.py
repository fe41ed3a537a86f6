"""What several test files share: a few steps of real training on arrays, without files or command line."""

import functools
import os
from types import SimpleNamespace

if found := os.environ.get('TRANSFERLAB_TEST_DATA'):
  # Where configs look for what has to be fetched; before anything reads it.
  os.environ['TFDS_DATA_DIR'] = os.path.join(found, 'tfds')
  os.environ['TRANSFERLAB_DATA'] = os.path.join(found, 'tabular')

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import compiler

import transferlab
from transferlab import config, main, preparation
from transferlab.data.augmentation import Augment
from transferlab.data.examples import Info
from transferlab.data.loader import Order
from transferlab.networks import network as networks
from transferlab.training import feature_plan, methods, phases
from transferlab.training.feed import Held
from transferlab.training.loop import Loop
from transferlab.training.phases import Phase
from transferlab.training.state import Cadence, Member

# As in every command: what compiled once, in whatever test or process, is read from the disk by the others.
main.setup()

# Started first, so that no long file is left over for one worker when the others are done.
LONGEST = ['test_devices', 'test_kill', 'test_schedules', 'test_teachers', 'test_feature_cache', 'test_source_network']
LONGEST += ['test_resume', 'test_memory', 'test_real_data', 'test_peers', 'test_pretrained', 'test_export']


def pytest_collection_modifyitems(items):
  """The longest files first; within a file the order stays."""
  place = {name: number for number, name in enumerate(LONGEST)}
  items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


def _stretches(network, run_phases, x, label, objective=None, classes=3):
  info = Info('table', 'classification', classes=tuple(map(str, range(classes))))
  checked = [config.validate(Phase, phase) for phase in run_phases]
  lengths = [phases.length(phase, len(x), 8, 'carry') for phase in checked]
  example = methods.example_of({'input_shape': np.shape(x)[1:]}, np.asarray(label), Augment(), info)
  return methods.stretches(network, checked, lengths, objective, info, Augment(), example)


@pytest.fixture(scope='module')
def unoptimised(trained):
  """For files of many small functions that run once: optimising them takes longer than running them.

  Steps that were compiled so are forgotten: other files compare the bits of those that they compile themselves. For the
  same reason the run that files share is trained before.
  """
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)
  for known in (methods._METHODS, methods._OBJECTIVES, methods._UNBALANCED, feature_plan._STARTING):
    known.clear()
  for built in (networks._BUILT, preparation._INITIAL):
    built.clear()


def _without_emitters(usual, *given, env_options_overrides=None, **options):
  emitters = {'xla_cpu_use_fusion_emitters': False}
  return usual(*given, env_options_overrides={**emitters, **(env_options_overrides or {})}, **options)


@pytest.fixture(scope='module')
def quick_compilation(unoptimised):
  """As `unoptimised`, and without XLA's emitters of fused loops, which take half of what is left."""
  usual = compiler.get_compile_options
  compiler.get_compile_options = functools.partial(_without_emitters, usual)
  yield
  compiler.get_compile_options = usual


@pytest.fixture(scope='session')
def stretches():
  """`stretches(network, phases, x, label, objective=None)`: phases given as dicts, made concrete."""
  return _stretches


@pytest.fixture
def fit():
  """`fit(network, phases, x, label, variables, objective=None, start_point=None)`: trains on batches of 8.

  Gives `before` (the variables), `fitted` (what the loop returns for the run) and `order`.
  """

  def train(network, run_phases, x, label, variables, objective=None, start_point=None, cadence=None):
    made = _stretches(network, run_phases, x, label, objective)
    arrays = {'x': np.asarray(x), 'label': np.asarray(label), 'id': np.arange(len(x))}
    record = {'shift': jnp.zeros(x.shape[-1]), 'scale': jnp.ones(x.shape[-1])}
    order = Order(len(x), 8, 8, 0)
    member = Member(made, variables, start_point, arrays, order, record, 0)
    before = jax.tree.map(np.array, variables)
    (fitted,) = Loop([member], Held([arrays], [order], None, 50), cadence or Cadence()).run()
    return SimpleNamespace(before=before, fitted=fitted, order=order)

  return train


@pytest.fixture(scope='session')
def tiny():
  """`tiny(**changes)`: a run of a second, as plain dicts, with top-level keys replaced."""

  def make(**changes):
    data = dict(name='digits', shots=5, validation=3, test=0.5, batch_size=16)
    base = dict(network=dict(name='mlp', hidden=[16]), target=dict(data=data), evaluation=dict(every=10))
    return {**base, 'phases': [dict(name='all', steps=20, learning_rate=1e-2)], **changes}

  return make


@pytest.fixture(scope='session')
def trained(tiny, tmp_path_factory):
  """The folder of a finished `tiny` run."""
  folder = tmp_path_factory.mktemp('trained') / 'run'
  transferlab.run(tiny(), folder)
  return folder


@pytest.fixture
def command(capsys):
  """`command(*arguments)`: the command line in this process; gives `status`, `out` and `err`."""

  def run(*arguments):
    capsys.readouterr()
    status = main.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return SimpleNamespace(status=status, out=out, err=err)

  return run


@pytest.fixture(scope='session')
def write_config():
  """`write_config(path, values)`: a config file that returns the values; gives its path."""

  def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'from math import inf, nan\n\n\ndef get_config(arg=""):\n  return {values!r}\n')
    return path

  return write
