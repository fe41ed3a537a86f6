"""Terms that ask a teacher: what each takes from the two networks, its own parameters, and the memory of one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transferlab.errors import UserError
from transferlab.objectives import distillation, teaching
from transferlab.objectives.objective import View

pytestmark = pytest.mark.usefixtures('quick_compilation')
RANDOM = np.random.default_rng(0)
NORMAL = lambda *shape: jnp.asarray(RANDOM.normal(size=shape), jnp.float32)
MINE = {'block1': NORMAL(6, 8, 8, 3), 'pool': NORMAL(6, 5), 'head': NORMAL(6, 4)}
THEIRS = {'stem': NORMAL(6, 4, 4, 7), 'same': NORMAL(6, 8, 8, 3), 'pool': NORMAL(6, 9), 'head': NORMAL(6, 4)}
LABELS = jnp.array([0, 3, 1, 1, 2, 0])


def view(**more):
  given = dict(
    outputs=MINE,
    output=MINE['head'],
    labels=LABELS,
    params={},
    source=None,
    mask=jnp.ones(6, bool),
    key=jax.random.split(jax.random.key(1), 6),
    progress=jnp.float32(0.25),
    total=lambda value: value,
    asked={'big': THEIRS},
    heads={'big': 'head'},
    teacher='big',
    rows=jnp.array([4, 0, 7, 2, 9, 5]),
    examples=11,
  )
  return View(**{**given, **more})


def applied(term, seen=None):
  """(loss, own state after it) with the parameters and state that the term starts from."""
  seen = seen or view()
  own = term.init(seen, jax.random.key(0))
  loss, _, stats = term.apply(seen, own)
  return np.asarray(loss), own, stats


# ------------------------------------------------------------------------------------------------------------ answers
@pytest.mark.parametrize('temperature, now', [(3.0, 3.0), ([8.0, 4.0], 7.0)])
@pytest.mark.parametrize('standardize', [False, True])
def test_answers_are_compared_at_the_temperature_of_the_moment(temperature, now, standardize):
  mine, theirs = (distillation.standardize(z) if standardize else z for z in (MINE['head'], THEIRS['head']))
  options = dict(temperature=temperature, standardize=standardize)
  np.testing.assert_allclose(applied(teaching.kd(**options))[0], distillation.kd(mine, theirs, now), rtol=1e-6)
  wanted = distillation.dkd(mine, theirs, LABELS, 0.5, 3.0, now)
  np.testing.assert_allclose(applied(teaching.dkd(alpha=0.5, beta=3.0, **options))[0], wanted, rtol=1e-6)
  wanted = distillation.dist(mine, theirs, 1.5, 0.5, now)
  np.testing.assert_allclose(applied(teaching.dist(beta=1.5, gamma=0.5, **options))[0], wanted, rtol=1e-6)


def test_one_logit_stands_for_two_classes():
  z, v = NORMAL(6, 1), NORMAL(6, 1)
  seen = view(output=z[:, 0], asked={'big': {'head': v}})
  p, q = (1 / (1 + np.exp(-np.asarray(x[:, 0], np.float64) / 2)) for x in (v, z))
  wanted = 4 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
  np.testing.assert_allclose(applied(teaching.kd(temperature=2.0), seen)[0], wanted, rtol=1e-4)


def test_a_teacher_of_several_tasks_answers_the_terms_own():
  seen = view(asked={'big': {'head': {'kind': THEIRS['head'], 'age': NORMAL(6, 1)}}}, task='kind')
  np.testing.assert_array_equal(applied(teaching.kd(), seen)[0], applied(teaching.kd())[0])


def test_other_numbers_of_classes_are_refused():
  with pytest.raises(UserError, match="teacher 'big' answers 5 classes, the student 4"):
    applied(teaching.kd(), view(asked={'big': {'head': NORMAL(6, 5)}}))


# ------------------------------------------------------------------------------------------------------------- places
def test_the_larger_side_is_averaged_down_to_the_smaller():
  mine, theirs = teaching.aligned(MINE['block1'], THEIRS['stem'])
  blocks = np.asarray(MINE['block1']).reshape(6, 4, 2, 4, 2, 3).mean((2, 4))
  np.testing.assert_allclose(mine, blocks, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(theirs, THEIRS['stem'])
  mine, theirs = teaching.aligned(MINE['block1'], THEIRS['pool'])
  np.testing.assert_allclose(mine, np.asarray(MINE['block1']).mean((1, 2)), rtol=1e-5, atol=1e-6)
  assert theirs.shape == (6, 9)
  flat = jnp.full((2, 6, 6, 1), 3.0)
  mine, theirs = teaching.aligned(flat, flat[:, :4, :4])
  assert mine.shape == (2, 4, 4, 1)
  np.testing.assert_allclose(mine, 3.0, rtol=1e-6)


# ----------------------------------------------------------------------------------------------------------- features
def test_a_hint_has_a_regressor_only_where_channels_differ():
  loss, own, _ = applied(teaching.hint(stages={'block1': 'same'}))
  assert own == {'params': {}, 'stats': {}}
  np.testing.assert_allclose(loss, distillation.hint(MINE['block1'], THEIRS['same']), rtol=1e-6)
  loss, own, _ = applied(teaching.hint(stages={'block1': 'stem', 'pool': 'pool'}))
  assert jax.tree.map(jnp.shape, own['params']) == {
    'block1': {'kernel': (3, 7), 'bias': (7,)},
    'pool': {'kernel': (5, 9), 'bias': (9,)},
  }
  small = np.asarray(MINE['block1']).reshape(6, 4, 2, 4, 2, 3).mean((2, 4))
  wanted = 0.5 * ((small @ own['params']['block1']['kernel'] - THEIRS['stem']) ** 2).sum((1, 2, 3))
  wanted += 0.5 * ((np.asarray(MINE['pool']) @ own['params']['pool']['kernel'] - THEIRS['pool']) ** 2).sum(1)
  np.testing.assert_allclose(loss, wanted, rtol=1e-4)


def test_losses_of_several_stages_add_up():
  both = applied(teaching.attention_transfer(stages={'block1': 'same', 'pool': 'pool'}))[0]
  each = [applied(teaching.attention_transfer(stages={k: v}))[0] for k, v in (('block1', 'same'), ('pool', 'pool'))]
  np.testing.assert_allclose(both, sum(each), rtol=1e-6)


LONG = [pytest.param(name, marks=pytest.mark.long) for name in ('similarity_preserving', 'pkt', 'dist')]


@pytest.mark.parametrize('name', ['relational', 'contrastive', *LONG])
def test_padding_changes_no_loss_that_couples_examples(name):
  """Two rows of padding, whatever they hold; the memory of `contrastive` does not see them."""
  options = {'dist': {}, 'contrastive': {'stage': 'pool', 'negatives': 8}}.get(name, {'stages': ['pool']})
  term = getattr(teaching, name)(**options)
  assert term.couples
  junk = lambda x: jnp.concatenate([x, 9 * jnp.ones((2, *x.shape[1:]), x.dtype)])
  outputs, asked = ({k: junk(v) for k, v in tree.items()} for tree in (MINE, THEIRS))
  longer = view(
    outputs=outputs,
    output=outputs['head'],
    asked={'big': asked},
    mask=jnp.arange(8) < 6,
    rows=jnp.array([4, 0, 7, 2, 9, 5, 0, 0]),
    key=jax.random.split(jax.random.key(1), 6)[jnp.array([0, 1, 2, 3, 4, 5, 0, 0])],
  )
  (alone, _, kept), (padded, _, state) = applied(term), applied(term, longer)
  np.testing.assert_allclose(padded[:6] if padded.ndim else padded, alone, rtol=1e-5)
  for mine, theirs in zip(jax.tree.leaves(kept), jax.tree.leaves(state), strict=True):
    np.testing.assert_allclose(mine, theirs, rtol=1e-5)


def test_the_variance_of_the_variational_term_starts_at_5():
  loss, own, _ = applied(teaching.variational(stages=['pool']))
  layers = own['params']['pool']
  x = np.asarray(MINE['pool'], np.float64)
  for number in (1, 2, 3):
    x = (x if number == 1 else np.maximum(x, 0)) @ np.asarray(layers[f'layer{number}']['kernel'], np.float64)
  wanted = (0.5 * np.log(5) + (np.asarray(THEIRS['pool']) - x) ** 2 / 10).sum(1)
  np.testing.assert_allclose(loss, wanted, rtol=1e-4)


# -------------------------------------------------------------------------------------------------------- contrastive
def embedded(own, side, x):
  x = np.asarray(x, np.float64) @ np.asarray(own['params'][side]['kernel'], np.float64)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def critic(positive, negatives, count, examples, z):
  """−log h − Σ log (1 − h) with h = e^s / Z / (e^s / Z + N / M)."""
  h = lambda s: np.exp(s) / z / (np.exp(s) / z + count / examples)
  return -np.log(h(positive)) - np.log(1 - h(np.asarray(negatives))).sum()


def test_contrastive_tells_an_example_from_the_others_of_its_batch():
  loss, own, state = applied(teaching.contrastive(stage='pool', width=4, temperature=0.5))
  s, t = embedded(own, 'student', MINE['pool']), embedded(own, 'teacher', THEIRS['pool'])
  scores = s @ t.T / 0.5
  off = ~np.eye(6, dtype=bool)
  z = 11 * np.exp(scores[off]).mean()
  wanted = [
    critic(scores[i, i], scores[i][off[i]], 5, 11, z) + critic(scores[i, i], scores[:, i][off[i]], 5, 11, z)
    for i in range(6)
  ]
  np.testing.assert_allclose(loss, wanted, rtol=1e-4)
  np.testing.assert_allclose(state['log_normalizer'], np.log([z, z]), rtol=1e-5)


def test_the_normaliser_is_that_of_the_first_step():
  term = teaching.contrastive(stage='pool', width=4)
  _, own, state = applied(term)
  other = view(outputs={**MINE, 'pool': 2 - MINE['pool']})
  again = term.apply(other, {**own, 'stats': state})[2]
  fresh = term.apply(other, own)[2]
  np.testing.assert_array_equal(again['log_normalizer'], state['log_normalizer'])
  assert np.abs(np.asarray(fresh['log_normalizer'] - state['log_normalizer'])).max() > 1e-3


def test_negatives_come_from_the_memory_and_never_are_the_example_itself():
  term = teaching.contrastive(stage='pool', width=4, temperature=0.5, negatives=30)
  loss, own, _ = applied(term)
  rows = np.asarray(jax.random.randint(view().key[0], (30,), 0, 11))
  assert np.isin(rows, np.asarray(view().rows)).any()
  memory = {side: np.asarray(bank, np.float64) for side, bank in own['stats']['memory'].items()}
  assert {bank.shape for bank in memory.values()} == {(11, 4)}
  s, t = embedded(own, 'student', MINE['pool']), embedded(own, 'teacher', THEIRS['pool'])
  others = [rows[rows != row] for row in np.asarray(view().rows)]
  against = [[s[i] @ memory['teacher'][o].T / 0.5 for i, o in enumerate(others)]]
  against += [[t[i] @ memory['student'][o].T / 0.5 for i, o in enumerate(others)]]
  wanted = np.zeros(6)
  for scores in against:
    z = 11 * np.exp(np.concatenate(scores)).mean()
    wanted += [critic(s[i] @ t[i] / 0.5, scores[i], len(scores[i]), 11, z) for i in range(6)]
  np.testing.assert_allclose(loss, wanted, rtol=1e-4)


def test_the_memory_takes_what_it_saw_and_of_an_example_seen_twice_the_last():
  term = teaching.contrastive(stage='pool', width=4, negatives=3, momentum=0.25)
  seen = view(rows=jnp.array([4, 0, 7, 4, 9, 5]), mask=jnp.array([1, 1, 1, 1, 1, 0], bool))
  _, own, state = applied(term, seen)
  for side, x in (('student', MINE['pool']), ('teacher', THEIRS['pool'])):
    old, now = np.asarray(own['stats']['memory'][side], np.float64), embedded(own, side, x)
    wanted = old.copy()
    for place, row in ((1, 0), (2, 7), (3, 4), (4, 9)):
      mixed = 0.25 * old[row] + 0.75 * now[place]
      wanted[row] = mixed / np.linalg.norm(mixed)
    np.testing.assert_allclose(state['memory'][side], wanted, rtol=1e-4, atol=1e-6)


def test_gradients_reach_the_student_and_the_terms_own_layers_alone():
  term = teaching.contrastive(stage='pool', width=4, negatives=8)
  own = term.init(view(), jax.random.key(0))

  def loss(student, params):
    return term.apply(view(outputs={'pool': student}), {**own, 'params': params})[0].sum()

  student, params = jax.grad(loss, (0, 1))(MINE['pool'], own['params'])
  assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves((student, params)))


def test_unknown_stages_are_named():
  term = teaching.hint(stages={'block1': 'nowhere'})
  with pytest.raises(UserError, match="stage of teacher 'big' 'nowhere'"):
    term.init(dataclasses.replace(view()), jax.random.key(0))


# ------------------------------------------------------------------------------------------------------------- texts
@pytest.mark.parametrize('term', [teaching.hint, teaching.variational, teaching.nst, teaching.similarity_preserving])
def test_padding_of_texts_changes_no_loss(term):
  """Their regressors do not give zero where features are zero, and variances have a price at every place."""
  features, answers, lengths = NORMAL(6, 5, 3), NORMAL(6, 5, 4), np.array([5, 2, 3, 5, 1, 4])

  def loss(places):
    real = np.arange(places) < lengths[:, None]
    padded = lambda x: jnp.where(real[..., None], jnp.pad(x, [(0, 0), (0, places - 5), (0, 0)]), 0)
    mine, theirs = ({'x': padded(x), 'mask': jnp.asarray(real)} for x in (features, answers))
    made = term(stages={'lstm1': 'lstm2'})
    seen = view(outputs={'lstm1': mine}, asked={'big': {'lstm2': theirs}})
    own = made.init(view(outputs={'lstm1': mine}, asked={'big': {'lstm2': theirs}}), jax.random.key(0))
    own['params'] = jax.tree.map(lambda leaf: leaf + 0.1, own.get('params', {}))  # biases that are not zero
    return np.asarray(made.apply(seen, own)[0])

  np.testing.assert_allclose(loss(9), loss(5), rtol=1e-5)
