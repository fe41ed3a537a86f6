"""Metrics of text benchmarks and language models, against scikit-learn, SciPy, PyTorch and sums by hand."""

import math
import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from transferlab.errors import UserError
from transferlab.evaluation import metrics

RANDOM = np.random.default_rng(0)


def one(name, outputs, labels, task='classification'):
  return metrics.compute([name], outputs, labels, task)[name]


# ------------------------------------------------------------------------------------------------- Matthews correlation
@pytest.mark.parametrize('skill', [0.0, 0.5, 0.9])
@pytest.mark.parametrize('classes', [2, 3, 7])
def test_matthews_correlation_of_several_classes_is_scikit_learns(classes, skill):
  labels = RANDOM.integers(0, classes, 300) // 2 * 2 % classes  # some classes are rare
  logits = RANDOM.normal(size=(300, classes))
  chosen = np.where(RANDOM.random(300) < skill, labels, logits.argmax(1))
  logits[np.arange(300), chosen] += 9
  labels[:classes] = range(classes)
  expected = sklearn.metrics.matthews_corrcoef(labels, chosen)
  assert one('matthews', logits, labels) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize('shape', [(200,), (200, 1)])
def test_matthews_correlation_of_a_lone_logit_is_that_of_its_sign(shape):
  logits, labels = RANDOM.normal(size=200), RANDOM.random(200) < 0.3
  expected = sklearn.metrics.matthews_corrcoef(labels, logits > 0)
  assert one('matthews', logits.reshape(shape), labels, 'binary') == pytest.approx(expected, abs=1e-12)
  assert one('matthews', np.where(labels, 1.0, -1.0).reshape(shape), labels, 'binary') == pytest.approx(1.0)
  assert one('matthews', np.where(labels, -1.0, 1.0).reshape(shape), labels, 'binary') == pytest.approx(-1.0)


def test_matthews_correlation_of_many_examples_does_not_overflow():
  labels = np.arange(400_000) % 2
  chosen = np.where(np.arange(400_000) % 10 == 0, 0, labels)
  expected = sklearn.metrics.matthews_corrcoef(labels, chosen)
  assert one('matthews', np.eye(2)[chosen], labels) == pytest.approx(expected, abs=1e-12)


def test_matthews_correlation_is_none_where_all_predictions_or_labels_are_one_class():
  logits = RANDOM.normal(size=(50, 3))
  assert one('matthews', np.eye(3)[np.ones(50, int)], np.arange(50) % 3) is None
  assert one('matthews', logits, np.full(50, 2)) is None
  assert one('matthews', np.zeros((0, 3)), []) is None


# ------------------------------------------------------------------------------------------------------- correlations
OF_SCIPY = {'pearson': scipy.stats.pearsonr, 'spearman': scipy.stats.spearmanr}


@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('name', OF_SCIPY)
def test_correlations_are_scipys_and_the_mean_over_targets(name, ties):
  predictions = RANDOM.normal(size=(80, 3))
  labels = np.exp(predictions + RANDOM.normal(size=(80, 3)) * [0.1, 1, 9])
  if ties:
    predictions, labels = predictions.round(), labels.round()
  each = [OF_SCIPY[name](predictions[:, target], labels[:, target])[0] for target in range(3)]
  assert one(name, predictions, labels, 'regression') == pytest.approx(np.mean(each), abs=1e-12)
  assert len({round(value, 3) for value in each}) == 3
  assert one(name, predictions[:, :1], labels[:, 0], 'regression') == pytest.approx(each[0], abs=1e-12)


def test_ranks_ignore_the_scale_and_pearson_ignores_shift_and_positive_factors():
  predictions, labels = RANDOM.normal(size=(2, 40))
  value = one('pearson', predictions, labels, 'regression')
  assert one('pearson', 1e6 + 3 * predictions, 5 - 2 * labels, 'regression') == pytest.approx(-value, abs=1e-9)
  value = one('spearman', predictions, labels, 'regression')
  assert one('spearman', np.exp(9 * predictions), labels**3, 'regression') == pytest.approx(value, abs=1e-12)
  assert one('spearman', predictions, np.exp(predictions), 'regression') == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize('constant', [0.0, 0.1, 1e8 + 0.1, -1 / 3])
@pytest.mark.parametrize('name', OF_SCIPY)
def test_correlations_are_none_where_predictions_or_labels_are_constant(name, constant):
  """Whatever the rounding of their mean leaves."""
  for count in (1, 3, 7, 10, 1001):
    same, other = np.full(count, constant), RANDOM.normal(size=count)
    assert one(name, same, other, 'regression') is None, count
    assert one(name, other, same, 'regression') is None, count
    both = np.stack([other, same], 1)
    assert one(name, both, RANDOM.normal(size=(count, 2)), 'regression') is None, count


@pytest.mark.parametrize('name', OF_SCIPY)
def test_a_column_of_predictions_does_not_broadcast_against_a_row_of_labels(name):
  values = RANDOM.normal(size=9)
  assert one(name, values[:, None], values, 'regression') == pytest.approx(1.0, abs=1e-12)
  with pytest.raises(UserError, match='do not fit'):
    one(name, np.zeros((9, 2)), values, 'regression')


# ----------------------------------------------------------------------------------------------------- language models
def _tokens(*values):
  """Outputs of a language model: log-likelihoods, and whether each token was the likeliest."""
  return np.array([[math.log(value), value >= 0.5] for value in values])


@pytest.mark.parametrize('size', [2, 50, 50_257])
def test_the_perplexity_of_a_uniform_guess_is_the_size_of_the_vocabulary(size):
  outputs = np.stack([np.full(30, -math.log(size)), np.zeros(30)], 1)
  assert one('perplexity', outputs, np.ones(30), 'next_token') == pytest.approx(size, rel=1e-12)
  assert one('log_loss', outputs, np.ones(30), 'next_token') == pytest.approx(math.log(size), rel=1e-12)


def test_metrics_of_a_known_distribution_are_those_by_hand():
  """1 + 2 + 3 + 3 bits of four tokens, which stand for 2 + 5 + 0 + 11 characters."""
  outputs, characters = _tokens(1 / 2, 1 / 4, 1 / 8, 1 / 8), np.array([2, 5, 0, 11], np.int32)
  values = metrics.compute(metrics.METRICS['next_token'], outputs, characters, 'next_token')
  assert values == pytest.approx(
    {'perplexity': 2**2.25, 'bits_per_character': 9 / 18, 'log_loss': 2.25 * math.log(2), 'accuracy': 0.25}, rel=1e-12
  )


def test_perplexity_and_log_loss_are_pytorchs():
  torch = pytest.importorskip('torch')
  logits, labels = RANDOM.normal(size=(100, 12)) * 3, RANDOM.integers(0, 12, 100)
  loss = torch.nn.CrossEntropyLoss()(torch.tensor(logits), torch.tensor(labels)).item()
  own = logits[np.arange(100), labels] - np.log(np.exp(logits).sum(1))
  outputs = np.stack([own, logits.argmax(1) == labels], 1)
  values = metrics.compute(metrics.METRICS['next_token'], outputs, np.full(100, 4), 'next_token')
  assert values['log_loss'] == pytest.approx(loss, abs=1e-12)
  assert values['perplexity'] == pytest.approx(math.exp(loss), rel=1e-12)
  assert values['bits_per_character'] == pytest.approx(loss / math.log(2) / 4, rel=1e-12)
  assert values['accuracy'] == np.mean(logits.argmax(1) == labels)


def test_bits_per_character_are_none_where_there_is_no_character():
  assert metrics.bits_per_character(_tokens(0.5, 0.5), np.zeros(2, np.int32)) is None
  assert one('bits_per_character', _tokens(0.5, 0.5), [0, 0], 'next_token') is None
  assert one('bits_per_character', _tokens(0.5, 0.5), [0, 1], 'next_token') == pytest.approx(2.0)


def test_bits_per_character_count_many_characters_exactly():
  count = 3000
  outputs = np.stack([np.full(count, -math.log(2)), np.ones(count)], 1)
  characters = np.full(count, 2**20, np.int32)  # whose sum no 32-bit number holds
  assert one('bits_per_character', outputs, characters, 'next_token') == pytest.approx(2.0**-20, rel=1e-12)


def test_metrics_without_tokens_or_with_a_loss_that_is_no_number_are_none():
  names = list(metrics.METRICS['next_token'])
  assert set(metrics.compute(names, np.zeros((0, 2)), [], 'next_token').values()) == {None}
  assert set(metrics.compute(names, [[np.nan, 0.0]], [1], 'next_token').values()) == {None}


def test_a_hopeless_perplexity_is_still_a_number_and_larger_than_any_other():
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    hopeless = one('perplexity', [[-1e5, 0.0]], [1], 'next_token')
  assert math.isfinite(hopeless) and hopeless > math.exp(600)


# --------------------------------------------------------------------------------------------------------------- names
NEXT_TOKEN = {'perplexity', 'bits_per_character', 'log_loss', 'accuracy'}


def test_the_names_are_known_where_they_belong():
  tasks = {task for task in metrics.METRICS if 'matthews' in metrics.METRICS[task]}
  assert tasks == {'classification', 'binary'}
  for name in ('pearson', 'spearman'):
    assert {task for task in metrics.METRICS if name in metrics.METRICS[task]} == {'regression'}
  assert set(metrics.METRICS['next_token']) == set(metrics.DEFAULTS['next_token']) == NEXT_TOKEN
  assert metrics.SELECT['next_token'] == 'perplexity'
  for task, names in [*metrics.DEFAULTS.items(), *metrics.CHEAP.items()]:
    metrics.check(names, task)
    assert set(names) <= set(metrics.METRICS[task])
  assert set(metrics.DEFAULTS) == set(metrics.CHEAP) == set(metrics.METRICS)


@pytest.mark.parametrize(
  ('name', 'higher'),
  [
    ('perplexity', False),
    ('bits_per_character', False),
    ('matthews', True),
    ('pearson', True),
    ('spearman', True),
    ('sst/matthews', True),
    ('ptb/perplexity', False),
  ],
)
def test_it_is_known_whether_more_is_better(name, higher):
  assert metrics.higher_is_better(name) is higher


@pytest.mark.parametrize(
  ('name', 'task', 'offered'),
  [
    ('perplexty', 'next_token', 'nearest: perplexity'),
    ('matthew', 'classification', 'nearest: matthews'),
    ('pearson', 'classification', 'unknown metric of a classification task'),
    ('perplexity', 'classification', 'unknown metric of a classification task'),
    ('top_5', 'next_token', 'unknown metric of a next_token task'),
    ('macro_f1', 'next_token', 'unknown metric of a next_token task'),
    ('perplexity', 'next_tokens', 'nearest: next_token'),
  ],
)
def test_a_name_of_another_task_is_refused(name, task, offered):
  with pytest.raises(UserError, match=offered):
    metrics.check([name], task)


def test_of_the_metrics_asked_for_a_task_takes_its_own():
  asked = ['matthews', 'accuracy', 'pearson', 'cola/matthews', 'sts/spearman']
  assert metrics.of_task(asked, 'cola', 'classification') == ['matthews', 'accuracy']
  assert metrics.of_task(asked, 'sts', 'regression') == ['pearson', 'spearman']
  assert metrics.of_task(asked, 'ptb', 'next_token') == ['accuracy']
