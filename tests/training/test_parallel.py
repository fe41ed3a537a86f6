"""Ways to compile the step: convolutions in a compiled loop and outside of one, which a CPU takes for large batches."""

import jax
import numpy as np
import pytest

from transferlab.data.augmentation import Augment
from transferlab.data.examples import Info
from transferlab.data.loader import Order
from transferlab.networks import network as networks
from transferlab.training import feed, methods, parallel
from transferlab.training.loop import Loop
from transferlab.training.phases import Phase
from transferlab.training.state import Cadence, Member

EXAMPLES, SIDE, STEPS = 20, 6, 7


def _stretch(name, options):
  network = networks.build(name, options, (SIDE, SIDE, 3), 3)
  info = Info('image', 'classification', ('a', 'b', 'c'))
  augment, phase = Augment(flip=True), Phase(steps=STEPS, optimizer='momentum', learning_rate=0.05)
  example = methods.example_of({'input_shape': [SIDE, SIDE, 3]}, np.zeros(1, np.int32), augment, info)
  return network, methods.stretches(network, [phase], [STEPS], None, info, augment, example)


@pytest.fixture(scope='module')
def member():
  """A convnet with BatchNorm on random images, in float64."""
  with jax.enable_x64(True):
    network, stretches = _stretch('convnet', {'width': 2, 'features': 4, 'batch_norm': True})
    random = np.random.default_rng(0)
    arrays = {
      'x': random.uniform(0, 1, (EXAMPLES, SIDE, SIDE, 3)),
      'label': (np.arange(EXAMPLES) % 3).astype(np.int32),
      'id': np.arange(EXAMPLES),
    }
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), jax.jit(network.init)(jax.random.key(0)))
    record = {'shift': np.zeros(3), 'scale': np.ones(3)}
    yield Member(stretches, variables, None, arrays, Order(EXAMPLES, 8, 8, 0, 'pad'), record, 0)


def _trained(member, streamed):
  """Parameters and statistics after all steps, in chunks of three."""
  held = feed.Held([member.arrays], [member.order], None, 3)
  way = feed.Streamed(member.arrays, member.order, None, 0, 3) if streamed else held
  (fitted,) = Loop([member], way, Cadence(evaluate=STEPS, log=3, checkpoint=STEPS)).run()
  return fitted.last


@pytest.mark.parametrize('streamed', [False, pytest.param(True, marks=pytest.mark.long)])
def test_steps_called_one_by_one_are_those_of_the_compiled_loop(member, monkeypatch, streamed):
  looped = _trained(member, streamed)
  monkeypatch.setattr(parallel, 'MANY', 0)
  assert not parallel.loops(member.stretches[0].method, (8, SIDE, SIDE, 3))
  single = _trained(member, streamed)
  for mine, theirs in zip(jax.tree.leaves(single), jax.tree.leaves(looped), strict=True):
    assert np.asarray(mine).dtype == np.float64
    np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-12)
  before = jax.tree.leaves(member.variables)
  assert any((mine != old).any() for mine, old in zip(jax.tree.leaves(single), before, strict=True))


@pytest.mark.parametrize(
  ('name', 'options', 'shape', 'loops'),
  [
    ('resnet', {'depth': 8}, (128, 32, 32, 3), False),
    ('resnet', {'depth': 8}, (50, 32, 32, 3), True),
    ('mlp', {}, (4096, 32, 32, 3), True),
  ],
)
def test_only_convolutions_of_large_batches_leave_the_loop_on_a_cpu(name, options, shape, loops):
  _, (stretch, *_) = _stretch(name, options)
  assert parallel.loops(stretch.method, shape) == loops
