"""Updates against float64 NumPy, PyTorch and optax: rates and weight decay by pattern, clipping, schedules."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from transferlab import config, paths
from transferlab.errors import UserError
from transferlab.networks import network as networks
from transferlab.training import optimizer, partition
from transferlab.training.phases import Phase, Schedule

pytestmark = pytest.mark.usefixtures('quick_compilation')
STAGES = ['layer1', 'layer2', 'head']
RANDOM = np.random.default_rng(0)
START = {
  'layer1/kernel': RANDOM.normal(size=(3, 2)),
  'layer1/bias': RANDOM.normal(size=2),
  'layer2/kernel': RANDOM.normal(size=(2, 2)),
  'head/kernel': RANDOM.normal(size=(2, 3)),
}
START = {path: value.astype(np.float32) for path, value in START.items()}
STEPS = 10


def _gradient(path, value, step):
  """Of a bowl whose middle wanders: the same function for NumPy, torch and jax arrays."""
  return (value - 0.3 * step) * (1 + len(path) % 3)


def _phase(**values):
  return config.validate(Phase, {'steps': STEPS, **values})


def _ours(phase, gradient=_gradient, terms=None):
  """`START` after ten updates, and the optimizer's state."""
  params = paths.unflatten({**START, **(terms or {})})
  leaves = list(paths.flatten(params))
  trainable = partition.trainable_paths(phase, leaves, STAGES, ['extra'], 'phase')
  built = optimizer.build(phase, trainable, leaves, STAGES, 'phase')
  rates = partition.leaf_rates(phase, trainable, leaves, STAGES, 'phase')
  hyper = optimizer.hyperparameters(phase, rates, 100, STEPS)

  @jax.jit
  def step(tree, slots, number):
    gradients = {p: None if v is None else gradient(p, v, number - 100) for p, v in paths.flatten(tree).items()}
    return optimizer.update(built, paths.unflatten(gradients), slots, tree, hyper, number)[:2]

  moving, frozen = partition.split(jax.tree.map(jnp.asarray, params), trainable)
  slots = built.core.init(moving)
  for number in range(100, 100 + STEPS):
    moving, slots = step(moving, slots, jnp.int32(number))
  return paths.flatten(partition.join(moving, frozen))


def _numpy(rule, rates=None, start=None):
  """`START` after ten steps of `rule(gradient, memory, step) -> update at rate 1`, in float64."""
  found = {}
  for path, value in (start or START).items():
    value, memory = value.astype(np.float64), {}
    for number in range(STEPS):
      value = value - (rates or {}).get(path, 0.05) * rule(_gradient(path, value, number), memory, number + 1)
    found[path] = value
  return found


def _close(found, expected):
  assert found.keys() == expected.keys()
  for path in found:
    np.testing.assert_allclose(found[path], expected[path], rtol=2e-5, atol=1e-5, err_msg=path)


def _sgd(gradient, memory, step):
  return gradient


def _momentum(gradient, memory, step):
  memory['trace'] = gradient + 0.9 * memory.get('trace', 0)
  return memory['trace']


def _nesterov(gradient, memory, step):
  return gradient + 0.9 * _momentum(gradient, memory, step)


def _adam(gradient, memory, step):
  """Kingma and Ba 2015, algorithm 1."""
  memory['m'] = 0.9 * memory.get('m', 0) + 0.1 * gradient
  memory['v'] = 0.999 * memory.get('v', 0) + 0.001 * gradient**2
  return memory['m'] / (1 - 0.9**step) / (np.sqrt(memory['v'] / (1 - 0.999**step)) + 1e-8)


def _rmsprop(gradient, memory, step):
  memory['v'] = 0.99 * memory.get('v', 0) + 0.01 * gradient**2
  return gradient / (np.sqrt(memory['v']) + 1e-8)


def _adagrad(gradient, memory, step):
  """Duchi et al. 2011, with the sum of squares starting at 0.1."""
  memory['sum'] = memory.get('sum', 0.1) + gradient**2
  return gradient / np.sqrt(memory['sum'])


RMSPROP = {'decay': 0.99, 'eps': 1e-8, 'eps_in_sqrt': False}
ADAGRAD = {'initial_accumulator_value': 0.1, 'eps': 1e-12}


@pytest.mark.parametrize(
  ('name', 'options', 'rule'),
  [
    ('sgd', {}, _sgd),
    ('sgd', {'momentum': 0.9}, _momentum),
    ('momentum', {}, _momentum),
    ('nesterov', {}, _nesterov),
    ('adam', {}, _adam),
    ('adamw', {}, _adam),
    ('rmsprop', RMSPROP, _rmsprop),
    ('adagrad', ADAGRAD, _adagrad),
  ],
)
def test_updates_follow_their_formula(name, options, rule):
  _close(_ours(_phase(optimizer=name, optimizer_options=options, learning_rate=0.05)), _numpy(rule))


@pytest.mark.parametrize(
  ('name', 'options', 'decay', 'theirs', 'arguments'),
  [
    ('sgd', {}, 0.1, 'SGD', {}),
    ('momentum', {}, 0.1, 'SGD', {'momentum': 0.9}),
    ('nesterov', {}, 0.1, 'SGD', {'momentum': 0.9, 'nesterov': True}),
    ('adam', {}, 0.1, 'Adam', {}),
    ('adamw', {}, 0.1, 'AdamW', {}),
    ('rmsprop', RMSPROP, 0.1, 'RMSprop', {}),
    ('adagrad', ADAGRAD, 0.1, 'Adagrad', {'initial_accumulator_value': 0.1}),
  ],
)
def test_updates_with_weight_decay_equal_those_of_torch(name, options, decay, theirs, arguments):
  torch = pytest.importorskip('torch')
  leaves = {path: torch.tensor(value.astype(np.float64), requires_grad=True) for path, value in START.items()}
  peer = getattr(torch.optim, theirs)(leaves.values(), lr=0.05, weight_decay=decay, **arguments)
  for number in range(STEPS):
    for path, value in leaves.items():
      value.grad = _gradient(path, value.detach(), number)
    peer.step()
  found = _ours(_phase(optimizer=name, optimizer_options=options, learning_rate=0.05, weight_decay=decay))
  _close(found, {path: value.detach().numpy() for path, value in leaves.items()})


def test_the_rate_of_every_optimizer_on_offer_is_a_factor_of_its_update():
  """Rates stand at the end of the chain, so an optimizer built at rate 1 must scale to any other."""
  names = [name for name in optimizer.optimizer_names() if name not in optimizer.ALIASES]
  assert {'adam', 'sgd', 'lion', 'lamb'} <= set(names)
  start = jnp.array([[1.0, -2.0], [0.5, 3.0]])

  def trajectory(transform, rate):
    value, slots = start, transform.init(start)
    for number in range(2):
      updates, slots = transform.update(_gradient('', value, number), slots, value)
      value = value + rate * updates
    return value

  @jax.jit
  def both():
    found = {}
    for name in names:
      function = getattr(optax, name)
      options = {'weight_decay': 0.0} if 'weight_decay' in inspect.signature(function).parameters else {}
      found[name] = [
        trajectory(function(learning_rate=0.01, **options), 1.0),
        trajectory(function(learning_rate=1.0, **options), 0.01),
      ]
    return found

  for name, (expected, found) in both().items():
    np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=name)


# ----------------------------------------------------------------------------------------------------- per pattern
def test_rates_go_by_the_first_rule_that_matches_and_a_rate_of_zero_holds_still():
  rules = [('head', 0.1), ('.*/bias', 0.0), ('layer1', 0.02), ('.*', 0.05)]
  rates = {'head/kernel': 0.1, 'layer1/bias': 0.0, 'layer1/kernel': 0.02, 'layer2/kernel': 0.05}
  _close(_ours(_phase(optimizer='adam', learning_rate=rules)), _numpy(_adam, rates))


def test_layer_decay_multiplies_the_rate_once_for_each_stage_above():
  rates = {'head/kernel': 0.1, 'layer2/kernel': 0.05, 'layer1/kernel': 0.025, 'layer1/bias': 0.025}
  _close(_ours(_phase(optimizer='sgd', learning_rate=0.1, layer_decay=0.5)), _numpy(_sgd, rates))


def test_rates_of_terms_are_the_largest_unless_a_pattern_names_them():
  terms = {'terms/extra/w': np.ones(2, np.float32)}
  everything = {**START, **terms}
  rates = {**dict.fromkeys(START, 0.01), 'layer1/kernel': 0.03, 'layer1/bias': 0.03, 'terms/extra/w': 0.03}
  rules = [('layer1', 0.03), ('.*', 0.01)]
  _close(_ours(_phase(optimizer='sgd', learning_rate=rules), terms=terms), _numpy(_sgd, rates, everything))
  rates['terms/extra/w'] = 0.2
  rules = [('terms/.*', 0.2), *rules]
  _close(_ours(_phase(optimizer='sgd', learning_rate=rules), terms=terms), _numpy(_sgd, rates, everything))


DECAYS = {'layer1/kernel': 0.2, 'layer1/bias': 0.0, 'layer2/kernel': 0.1, 'head/kernel': 0.1}
DECAY_RULES = [('.*/bias', 0.0), ('layer1', 0.2), ('.*', 0.1)]


@pytest.mark.parametrize('form', ['coupled', 'decoupled'])
@pytest.mark.parametrize(('name', 'rule'), [('momentum', _momentum), ('adam', _adam)])
def test_weight_decay_goes_by_pattern_into_the_gradient_or_beside_the_update(name, rule, form):
  expected = {}
  for path, value in START.items():
    value, memory = value.astype(np.float64), {}
    for number in range(STEPS):
      gradient = _gradient(path, value, number)
      if form == 'coupled':
        value = value - 0.05 * rule(gradient + DECAYS[path] * value, memory, number + 1)
      else:
        value = value - 0.05 * (rule(gradient, memory, number + 1) + DECAYS[path] * value)
    expected[path] = value
  phase = _phase(optimizer=name, learning_rate=0.05, weight_decay=DECAY_RULES, weight_decay_form=form)
  _close(_ours(phase), expected)


def test_automatic_weight_decay_is_decoupled_where_the_optimizer_has_its_own():
  forms = {name: [_phase(optimizer=name, weight_decay=0.3)] for name in ('adam', 'adamw', 'lion', 'sgd')}
  leaves = list(START)
  found = {name: optimizer.build(phase, leaves, leaves, STAGES, 'p').coupled for name, (phase,) in forms.items()}
  assert found == {'adam': True, 'adamw': False, 'lion': False, 'sgd': True}


def test_weight_decay_reaches_terms_only_through_their_own_patterns():
  terms = {'terms/extra/w': np.ones(2, np.float32)}
  still = lambda path, value, step: 0 * value
  phase = _phase(optimizer='sgd', learning_rate=0.1, weight_decay=0.5)
  found = _ours(phase, still, terms)
  np.testing.assert_array_equal(found['terms/extra/w'], [1, 1])
  np.testing.assert_allclose(found['head/kernel'], START['head/kernel'] * 0.95**STEPS, rtol=1e-5)
  phase = _phase(optimizer='sgd', learning_rate=0.1, weight_decay=[('terms/.*', 0.2), ('.*', 0.5)])
  found = _ours(phase, still, terms)
  np.testing.assert_allclose(found['terms/extra/w'], np.full(2, 0.98**STEPS), rtol=1e-5)
  np.testing.assert_allclose(found['head/kernel'], START['head/kernel'] * 0.95**STEPS, rtol=1e-5)


def test_a_closing_default_of_weight_decay_may_be_idle():
  rules = [('layer.*', 0.1), ('head', 0.2), ('.*', 0.5)]
  built = optimizer.build(_phase(weight_decay=rules), list(START), list(START), STAGES, 'phase')
  assert built.decay == ({'layer1/kernel', 'layer1/bias', 'layer2/kernel'}, {'head/kernel'}, set())


# ------------------------------------------------------------------------------------------------- weight constraints
@pytest.mark.parametrize('rules', [0.4, [('layer1', 0.4), ('.*/kernel', 0.2)]])
def test_the_weights_that_come_into_a_unit_keep_within_their_norm(rules):
  """After every step, column by column; biases and what is shorter stay as they are."""
  largest = {path: rules if isinstance(rules, float) else 0.4 if path.startswith('layer1') else 0.2 for path in START}
  expected, cut = {}, 0
  for path, value in START.items():
    value, memory = value.astype(np.float64), {}
    for number in range(STEPS):
      value = value - 0.05 * _momentum(_gradient(path, value, number), memory, number + 1)
      for unit in range(value.shape[-1]) if value.ndim > 1 else ():
        norm = np.linalg.norm(value[..., unit])
        if norm > largest[path]:
          value[..., unit] *= largest[path] / norm
          cut += 1
    expected[path] = value
  assert cut
  _close(_ours(_phase(optimizer='momentum', learning_rate=0.05, max_norm=rules)), expected)


def test_a_phase_without_constraints_keeps_its_identity_and_its_program():
  assert 'max_norm' not in config.identity(_phase())
  assert optimizer.build(_phase(), list(START), list(START), STAGES, 'phase').norms == ()


# -------------------------------------------------------------------------------------------------------- clipping
@pytest.mark.parametrize('largest', [0.5, 1e6])
def test_clipping_is_by_the_global_norm_of_what_trains_and_of_that_alone(largest):
  """The gradient of the frozen leaves is huge, and counts for nothing; weight decay is added after, as in torch."""

  def gradient(path, value, step):
    return 1e3 + 0 * value if path.startswith('layer2') else _gradient(path, value, step)

  moving = {path: value.astype(np.float64) for path, value in START.items() if not path.startswith('layer2')}
  for number in range(STEPS):
    gradients = {path: _gradient(path, value, number) for path, value in moving.items()}
    norm = math.sqrt(sum((g**2).sum() for g in gradients.values()))
    factor = min(1.0, largest / norm)
    moving = {path: value - 0.1 * (gradients[path] * factor + 0.3 * value) for path, value in moving.items()}
  phase = _phase(optimizer='sgd', learning_rate=0.1, train='layer1|head', clip=largest, weight_decay=0.3)
  _close(_ours(phase, gradient), {**moving, 'layer2/kernel': START['layer2/kernel']})


# -------------------------------------------------------------------------------------------------------- schedules
def _factors(schedule, steps):
  values = Schedule(**schedule)
  numbers = optimizer.schedule_values(values)
  factor = lambda step: optimizer.schedule_factor(values, step / jnp.float32(steps), numbers)
  return np.asarray(jax.jit(jax.vmap(factor))(jnp.arange(steps)))


def _warm(warm, after):
  return lambda step: optax.join_schedules([optax.linear_schedule(0.0, 1.0, warm), after], [warm])(step)


@pytest.mark.parametrize(
  ('schedule', 'peer'),
  [
    ({'name': 'constant'}, optax.constant_schedule(1.0)),
    ({'name': 'cosine'}, optax.cosine_decay_schedule(1.0, 200)),
    ({'name': 'cosine', 'final': 0.1}, optax.cosine_decay_schedule(1.0, 200, alpha=0.1)),
    ({'name': 'linear', 'final': 0.2}, optax.linear_schedule(1.0, 0.2, 200)),
    ({'name': 'step', 'at': [0.3, 0.75], 'factor': 0.2}, optax.piecewise_constant_schedule(1.0, {60: 0.2, 150: 0.2})),
    ({'name': 'one_cycle'}, optax.cosine_onecycle_schedule(200, 1.0, pct_start=0.3, div_factor=25)),
    ({'warmup': 0.1}, _warm(20, optax.constant_schedule(1.0))),
    (
      {'name': 'cosine', 'warmup': 0.1, 'final': 0.1},
      optax.warmup_cosine_decay_schedule(0.0, 1.0, 20, 200, end_value=0.1),
    ),
    ({'name': 'linear', 'warmup': 0.25}, _warm(50, optax.linear_schedule(1.0, 0.0, 150))),
  ],
)
def test_schedules_equal_those_of_optax_at_every_step(schedule, peer):
  expected = np.array([float(peer(step)) for step in range(200)])
  np.testing.assert_allclose(_factors(schedule, 200), expected, atol=2e-6)


@pytest.mark.parametrize(('cut_frac', 'ratio'), [(0.1, 32.0), (0.25, 10.0)])
def test_the_slanted_triangular_schedule_is_equation_3_of_howard_and_ruder(cut_frac, ratio):
  """T = 200, so that T · cut_frac is whole and the paper's rounding changes nothing."""
  options = {} if cut_frac == 0.1 else {'cut_frac': cut_frac, 'ratio': ratio}
  cut, expected = math.floor(200 * cut_frac), []
  for t in range(200):
    p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_frac - 1))
    expected.append((1 + p * (ratio - 1)) / ratio)
  found = _factors({'name': 'slanted_triangular', **options}, 200)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  assert found.argmax() == cut and found[0] == pytest.approx(1 / ratio)


@pytest.mark.parametrize('steps', [1, 3, 7, 15])
def test_the_slanted_triangular_schedule_is_positive_in_phases_of_a_few_steps_where_the_papers_is_not(steps):
  found = _factors({'name': 'slanted_triangular'}, steps)
  assert (found >= 1 / 32 - 1e-6).all() and (found <= 1 + 1e-6).all()


@pytest.mark.parametrize('first', [1e-6, 1e-8, 0.5])
def test_the_exponential_schedule_multiplies_by_the_same_factor_in_every_step(first):
  options = {} if first == 1e-6 else {'first': first}
  expected = np.geomspace(first, 1, 101)[:-1]  # the hundred-and-first step would be at 1
  np.testing.assert_allclose(_factors({'name': 'exponential', **options}, 100), expected, rtol=1e-5)


def test_one_cycle_has_the_course_of_torchs_with_its_defaults():
  """torch puts the peak at step 0.3 T − 1 and the end at T − 1, ours at shares 0.3 and 1 of the phase: both halves are
  compared at the same shares of the way. Momentum, which torch moves the other way, stays."""
  torch = pytest.importorskip('torch')
  total = 400
  moved = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
  peer = torch.optim.lr_scheduler.OneCycleLR(moved, max_lr=1.0, total_steps=total)
  values = Schedule(name='one_cycle')
  numbers = optimizer.schedule_values(values)
  peak = 0.3 * total - 1
  for step in range(total):
    share = 0.3 * step / peak if step <= peak else 0.3 + 0.7 * (step - peak) / (total - 1 - peak)
    ours = optimizer.schedule_factor(values, jnp.float32(share), numbers)
    assert float(ours) == pytest.approx(peer.get_last_lr()[0], abs=1e-6), step
    moved.step()
    if step < total - 1:
      peer.step()


def test_schedules_that_differ_in_numbers_only_share_one_compiled_method(stretches):
  """The method is what the compiled step is found by."""
  network = networks.build('mlp', {'hidden': [3]}, (4,), 3)
  x, y = np.zeros((12, 4), np.float32), np.arange(12) % 3
  for name, one, other in [
    ('slanted_triangular', {'cut_frac': 0.2, 'ratio': 9.0}, {}),
    ('exponential', {'first': 0.1}, {'first': 1e-8}),
    ('cosine', {'final': 0.5, 'warmup': 0.1}, {}),
  ]:
    phases = [{'steps': 2, 'schedule': {'name': name, **options}} for options in (one, other)]
    first, second = stretches(network, phases, x, y)
    assert first.method is second.method
    hyper = [optimizer.hyperparameters(own.phase, own.rates, 0, 2) for own in (first, second)]
    assert any(hyper[0][key] != hyper[1][key] for key in one)


def test_a_schedule_starts_with_its_phase_and_multiplies_the_rates():
  """`START` holds at steps 100 … 109 of the run; its schedule begins at 1."""
  expected = {}
  for path, value in START.items():
    value = value.astype(np.float64)
    for number in range(STEPS):
      value = value - 0.05 * (1 - number / STEPS) * _gradient(path, value, number)
    expected[path] = value
  _close(_ours(_phase(optimizer='sgd', learning_rate=0.05, schedule={'name': 'linear'})), expected)


# ---------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'optimizer': 'adma'}, "unknown optimizer 'adma'; nearest: adam"),
    ({'optimizer': 'fromage'}, "unknown optimizer 'fromage'"),
    ({'optimizer': 'apply_updates'}, "unknown optimizer 'apply_updates'"),
    ({'optimizer_options': {'b11': 0.5}}, "optimizer_options for adam: 'b11'; nearest: b1"),
    ({'optimizer_options': {'learning_rate': 0.5}}, "optimizer_options for adam: 'learning_rate'"),
    ({'optimizer': 'adamw', 'optimizer_options': {'weight_decay': 0.5}}, "for adamw: 'weight_decay'"),
    ({'optimizer_options': {'b1': 'x'}}, "phase.optimizer_options: optax.adam refuses {'b1': 'x'}"),
    ({'weight_decay': [('haed', 0.1)]}, "phase.weight_decay: pattern 'haed' matches no parameter; nearest: head"),
    ({'max_norm': [('haed', 0.1)]}, "phase.max_norm: pattern 'haed' matches no parameter; nearest: head"),
  ],
)
def test_a_mistaken_optimizer_is_answered_with_the_nearest(values, message):
  with pytest.raises(UserError, match=message):
    optimizer.build(_phase(**values), list(START), list(START), STAGES, 'phase')


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'learning_rate': [('haed', 0.1), ('.*', 1.0)]}, "phase.learning_rate: pattern 'haed' matches no parameter"),
    ({'learning_rate': [('head', 0.1)]}, 'phase.learning_rate: no rule matches layer1/kernel'),
  ],
)
def test_a_mistaken_rate_is_answered_with_the_nearest(values, message):
  with pytest.raises(UserError, match=message):
    partition.leaf_rates(_phase(**values), list(START), list(START), STAGES, 'phase')
