"""Rules of hyper-parameters, at their thresholds, against what the papers and their programs say."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from transferlab import config, rules
from transferlab.errors import UserError
from transferlab.settings import Run
from transferlab.training import optimizer
from transferlab.training.phases import Phase


def whole(rule):
  """A run of images from files to which the rule is applied, by one line, and that is then validated."""
  given = ml_collections.ConfigDict()
  given.network = dict(name='resnet', depth=8)
  given.target = dict(data=dict(name='tfds:cifar10', validation=0.1, batch_size=7))
  given.update(rule)
  return config.validate(Run, config.plain(given))


def factors(phase, steps):
  schedule = phase.schedule
  numbers = optimizer.schedule_values(schedule)
  share = lambda step: optimizer.schedule_factor(schedule, step / jnp.float32(phase.steps), numbers)
  return np.asarray(jax.jit(jax.vmap(share))(jnp.asarray(steps)))


def published_rate(step, examples):
  """The rate of BiT's program as its paper and comments describe it: supports are warm-up, three decays and the end."""
  if examples < 20_000:
    warm, *decays, end = 100, 200, 300, 400, 500
  elif examples < 500_000:
    warm, *decays, end = 500, 3000, 6000, 9000, 10_000
  else:
    warm, *decays, end = 500, 6000, 12_000, 18_000, 20_000
  assert step < end
  return 0.003 * min(1, step / warm) * 0.1 ** sum(step > decay for decay in decays)


@pytest.mark.parametrize('examples', [1, 19_999, 20_000, 499_999, 500_000, 14_000_000])
def test_the_rate_of_the_bit_rule_is_that_of_the_authors_program_at_every_step(examples):
  """But at the very steps of decay, where theirs still holds the old rate."""
  (phase,) = whole(rules.bit_hyperrule(examples, 224)).phases
  assert phase.steps == (500 if examples < 20_000 else 10_000 if examples < 500_000 else 20_000)
  expected = np.array([published_rate(step, examples) for step in range(phase.steps)])
  found = phase.learning_rate * factors(phase, np.arange(phase.steps))
  decays = np.flatnonzero(expected[1:] < expected[:-1] * 0.5)
  assert len(decays) == 3
  same = ~np.isin(np.arange(phase.steps), decays)
  np.testing.assert_allclose(found[same], expected[same], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(('examples', 'mixup'), [(19_999, 0.0), (20_000, 0.1), (1_000_000, 0.1)])
@pytest.mark.parametrize(
  ('resolution', 'side', 'crop'),
  [(95, 160, 128), ((96, 95), 160, 128), (96, 512, 480), ((72, 128), 512, 480), (224, 512, 480)],
)
def test_the_bit_rule_takes_sizes_from_the_area_and_mixup_from_the_number_of_examples(
  examples, mixup, resolution, side, crop
):
  run = whole(rules.bit_hyperrule(examples, resolution))
  data, (phase,) = run.target.data, run.phases
  assert (data.resize.sides, data.resize.mode) == ((side, side), 'exact')
  assert (data.augment.crop, data.augment.flip, data.augment.mixup) == (crop, True, mixup)
  assert (data.batch_size, phase.optimizer, phase.weight_decay, phase.train) == (512, 'momentum', 0.0, '.*')
  assert data.name == 'tfds:cifar10' and data.validation == 0.1


@pytest.mark.parametrize(
  ('examples', 'steps', 'warm'),
  [(19_999, 500, 100), (20_000, 10_000, 500), (499_999, 10_000, 500), (500_000, 20_000, 500)],
)
def test_the_vit_rule_warms_up_and_falls_as_a_cosine_over_steps_by_the_number_of_examples(examples, steps, warm):
  (phase,) = whole(rules.vit_rule(examples, 224)).phases
  assert phase.steps == steps
  places = np.arange(0, steps, 7)
  after = (places - warm) / (steps - warm)
  expected = np.where(places < warm, places / warm, 0.5 * (1 + np.cos(np.pi * after)))
  np.testing.assert_allclose(factors(phase, places), expected, atol=2e-6)


def test_the_vit_rule_is_the_fine_tuning_of_mae_for_vit_b_and_leaves_strong_augmentation_to_large_data_sets():
  run = whole(rules.vit_rule(1_200_000, 224))
  augment, (phase,) = run.target.data.augment, run.phases
  # He et al. 2022, table 9 and FINETUNE.md: blr 5e-4 per 256 examples, layer decay .65, weight decay .05.
  assert phase.learning_rate == pytest.approx(1e-3) and run.target.data.batch_size == 512
  assert (phase.optimizer, phase.layer_decay, phase.clip) == ('adamw', 0.65, 1.0)
  assert phase.optimizer_options == {'b1': 0.9, 'b2': 0.999}
  assert phase.weight_decay == [('.*/kernel', 0.05)]
  assert (augment.mixup, augment.cutmix, augment.erase, augment.randaugment.magnitude) == (0.8, 1.0, 0.25, 9.0)
  assert run.objective == [{'term': 'cross_entropy', 'smoothing': 0.1}]
  small = whole(rules.vit_rule(19_999, 224))
  augment = small.target.data.augment
  assert (augment.mixup, augment.cutmix, augment.erase, augment.randaugment) == (0.0, 0.0, 0.0, None)
  assert augment.flip and small.objective == [{'term': 'cross_entropy'}]


@pytest.mark.parametrize(('resolution', 'side', 'crop'), [(32, 256, 224), ((95, 97), 256, 224), (96, 448, 384)])
def test_the_vit_rule_takes_sizes_from_the_area(resolution, side, crop):
  data = whole(rules.vit_rule(1_000, resolution)).target.data
  assert (data.resize.sides, data.augment.crop) == ((side, side), crop)


@pytest.mark.parametrize('rule', [rules.bit_hyperrule, rules.vit_rule])
def test_a_rule_gives_a_new_part_in_every_call_and_refuses_what_is_not_positive(rule):
  first = rule(10, 32)
  first['phases'][0]['steps'] = 1
  assert config.validate(Phase, rule(10, 32)['phases'][0]).steps == 500
  for wrong in [(0, 32), (10, 0), (10, (32, -1))]:
    with pytest.raises(UserError, match='should be positive'):
      rule(*wrong)
