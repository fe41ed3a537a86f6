"""Metrics against formulas written out here, and against scikit-learn where the program does not use it."""

import subprocess
import sys

import numpy as np
import pytest
import sklearn.metrics

from transferlab.errors import UserError
from transferlab.evaluation import metrics

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(200, 5)) * 2
LABELS = np.where(RANDOM.random(200) < 0.5, LOGITS.argmax(1), RANDOM.integers(0, 5, 200))
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)


def one(name, outputs, labels, task='classification'):
  return metrics.compute([name], outputs, labels, task)[name]


def test_accuracy_and_top_k_count_examples_with_fewer_than_k_larger_logits():
  for k in (1, 2, 3, 5, 9):
    hits = [sum(row[j] > row[label] for j in range(5)) < k for row, label in zip(LOGITS, LABELS)]
    assert one(f'top_{k}', LOGITS, LABELS) == sum(hits) / 200
  assert one('accuracy', LOGITS, LABELS) == one('top_1', LOGITS, LABELS)


def test_equal_logits_do_not_all_count_as_the_largest():
  assert one('accuracy', np.zeros((4, 2)), [0, 1, 1, 1]) == 0.25
  assert one('top_1', np.zeros((4, 2)), [0, 1, 1, 1]) == 0.25


@pytest.mark.parametrize('classes', [5, 6], ids=['all classes occur', 'a class occurs nowhere'])
def test_balanced_accuracy_f1_and_confusion_agree_with_scikit_learn(classes):
  logits = np.pad(LOGITS, ((0, 0), (0, classes - 5)), constant_values=-50)
  predictions = LOGITS.argmax(1)
  assert one('balanced_accuracy', logits, LABELS) == pytest.approx(
    sklearn.metrics.balanced_accuracy_score(LABELS, predictions), abs=1e-12
  )
  assert one('macro_f1', logits, LABELS) == pytest.approx(
    sklearn.metrics.f1_score(LABELS, predictions, average='macro'), abs=1e-12
  )
  expected = sklearn.metrics.confusion_matrix(LABELS, predictions, labels=range(classes)).tolist()
  assert one('confusion_matrix', logits, LABELS) == expected


def test_log_loss_is_the_mean_negative_log_probability_and_survives_large_logits():
  assert one('log_loss', LOGITS, LABELS) == pytest.approx(sklearn.metrics.log_loss(LABELS, PROBABILITIES), abs=1e-9)
  assert one('log_loss', np.array([[5000.0, 0.0], [0.0, 1000.0]]), [1, 1]) == pytest.approx(2500.0)


def test_float16_outputs_are_measured_in_float64():
  logits = LOGITS.astype(np.float16)
  exact = logits.astype(np.float64)
  expected = np.mean(np.log(np.exp(exact).sum(1)) - exact[np.arange(200), LABELS])
  assert one('log_loss', logits, LABELS) == pytest.approx(expected, abs=1e-12)


def pairs_won(scores, positive):
  """AUROC as the fraction of (positive, negative) pairs in order; a tie is half a pair."""
  above, below = scores[positive][:, None], scores[~positive][None, :]
  return np.mean((above > below) + 0.5 * (above == below))


def precision_at_each_gain(scores, positive):
  """Average precision by walking down the distinct thresholds."""
  total, recall = 0.0, 0.0
  for threshold in sorted(set(scores), reverse=True):
    chosen = scores >= threshold
    total += (positive[chosen].sum() / positive.sum() - recall) * positive[chosen].mean()
    recall = positive[chosen].sum() / positive.sum()
  return total


@pytest.mark.parametrize(
  'name, formula', [('auroc', pairs_won), ('average_precision', precision_at_each_gain)], ids=['auroc', 'ap']
)
def test_ranking_metrics_agree_with_their_definitions(name, formula):
  several = np.mean([formula(PROBABILITIES[:, c], np.equal(LABELS, c)) for c in range(5)])
  assert one(name, LOGITS, LABELS) == pytest.approx(several, abs=1e-12)
  scores, positive = np.round(LOGITS[:, 0]), (LABELS < 1)  # rounded, so that there are ties
  assert one(name, scores, positive, 'binary') == pytest.approx(formula(scores, positive), abs=1e-12)


def test_auroc_tells_logits_apart_whose_probabilities_round_to_one():
  assert one('auroc', np.array([60.0, 50.0, 45.0, 40.0]), [1, 1, 0, 0], 'binary') == 1.0
  logits = np.array([[60.0, 0, 0], [50.0, 0, 0], [0, 9, 0], [0, 0, 9]])
  assert one('auroc', logits, [0, 1, 1, 2]) == pytest.approx(np.mean([1.0, 0.75, 1.0]))


def test_a_metric_without_meaning_is_none_and_never_nan():
  assert one('auroc', LOGITS, np.zeros(200, int)) is None
  assert one('average_precision', LOGITS[:, 0], np.ones(200), 'binary') is None
  assert metrics.r2(np.arange(3.0), np.ones(3)) is None
  assert one('accuracy', np.zeros((0, 5)), []) is None
  spoilt = LOGITS.copy()
  spoilt[3, 2] = np.nan
  names = [name.replace('top_k', 'top_2') for name in metrics.METRICS['classification']]
  assert set(metrics.compute(names, spoilt, LABELS, 'classification').values()) == {None}
  assert one('log_loss', np.array([[-np.inf, 0.0]]), [0]) is None
  assert one('mean_squared_error', [np.inf], [0.0], 'regression') is None


def test_calibration_error_is_the_weighted_distance_of_confidence_and_accuracy_per_bin():
  logits = LOGITS * 0.6  # too modest in some bins and too sure in others: else any bins give the same sum
  probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  confidence, right = probabilities.max(1), probabilities.argmax(1) == LABELS
  expected, signs = 0.0, set()
  for m in range(15):
    inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
    if inside.any():
      excess = right[inside].mean() - confidence[inside].mean()
      signs.add(np.sign(excess))
      expected += inside.sum() / 200 * abs(excess)
  assert signs == {-1, 1}
  assert one('calibration_error', logits, LABELS) == pytest.approx(expected, abs=1e-12)


def test_certain_and_right_is_calibrated_and_certain_and_wrong_is_not():
  certain = np.array([[800.0, 0.0]] * 4)
  assert one('calibration_error', certain, [0, 0, 0, 0]) == 0.0
  assert one('calibration_error', certain, [1, 1, 1, 1]) == 1.0


@pytest.mark.parametrize('shape', [(200,), (200, 1)])
def test_a_binary_logit_is_the_log_odds_of_class_one(shape):
  logits, labels = LOGITS[:, 0], (LABELS < 2).astype(float)
  probability = 1 / (1 + np.exp(-logits))
  expected = -np.mean(labels * np.log(probability) + (1 - labels) * np.log(1 - probability))
  assert one('log_loss', logits.reshape(shape), labels, 'binary') == pytest.approx(expected, abs=1e-12)
  assert one('accuracy', logits.reshape(shape), labels, 'binary') == np.mean((logits > 0) == labels)


def test_regression_metrics_agree_with_scikit_learn_for_one_and_several_targets():
  for targets in (1, 3):
    predictions, labels = RANDOM.normal(size=(2, 50, targets))
    labels = labels * 3 + 1
    values = metrics.compute(metrics.DEFAULTS['regression'], predictions, labels, 'regression')
    assert values == pytest.approx(
      {
        'mean_absolute_error': sklearn.metrics.mean_absolute_error(labels, predictions),
        'mean_squared_error': sklearn.metrics.mean_squared_error(labels, predictions),
        'r2': sklearn.metrics.r2_score(labels, predictions),
      },
      abs=1e-12,
    )


def test_a_column_of_predictions_does_not_broadcast_against_a_row_of_labels():
  assert one('mean_squared_error', np.array([[1.0], [2.0]]), np.array([1.0, 2.0]), 'regression') == 0.0
  with pytest.raises(UserError, match='do not fit'):
    one('mean_squared_error', np.zeros((4, 2)), np.zeros(4), 'regression')


@pytest.mark.parametrize('label', [5, -1, 0.5])
def test_a_label_that_is_no_class_of_the_outputs_is_an_error(label):
  with pytest.raises(UserError, match=f'label {label} is none of the 5 classes'):
    one('accuracy', LOGITS, [label] * 200)


@pytest.mark.parametrize(
  'name, task, offered',
  [
    ('acuracy', 'classification', 'nearest: accuracy'),
    ('top_k', 'classification', 'top_5'),
    ('top_0', 'classification', 'top_5'),
    ('top_5', 'regression', 'r2'),
    ('accuracy', 'regression', 'mean_absolute_error'),
    ('r2', 'classificaton', 'nearest: classification'),
  ],
)
def test_a_wrong_name_is_answered_with_the_nearest(name, task, offered):
  with pytest.raises(UserError, match=offered):
    metrics.check([name], task)


def test_errors_are_better_when_lower_and_what_is_no_number_cannot_be_compared():
  losses = {'log_loss', 'calibration_error', 'mean_absolute_error', 'mean_squared_error'}
  losses |= {'perplexity', 'bits_per_character'}
  names = {name for task in metrics.METRICS.values() for name in task} - {'confusion_matrix', 'top_k'}
  assert {name for name in names if not metrics.higher_is_better(name)} == losses
  assert metrics.higher_is_better('top_5')
  with pytest.raises(UserError, match='not a number'):
    metrics.higher_is_better('confusion_matrix')
  with pytest.raises(UserError, match='nearest: accuracy'):
    metrics.higher_is_better('accuracies')


def test_defaults_exist_and_are_measured_without_scikit_learn():
  script = (
    'import sys\n'
    'from transferlab.evaluation import metrics\n'
    'for task, names in metrics.DEFAULTS.items():\n'
    '  several = task in ("classification", "next_token")\n'
    '  outputs = [[0.0, 1.0], [2.0, 1.0]] if several else [0.5, -1.0]\n'
    '  values = metrics.compute(names, outputs, [0, 1], task)\n'
    '  assert None not in values.values(), values\n'
    'assert "sklearn" not in sys.modules and "jax" not in sys.modules\n'
  )
  subprocess.run([sys.executable, '-c', script], check=True)
