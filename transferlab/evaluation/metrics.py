"""What a split's outputs are worth: metrics over complete arrays, in float64 NumPy.

Every function takes the outputs and labels of a whole split, so nothing is averaged over batches. Which
examples those are is decided in evaluate.py; losses that train a network live in objectives/.
"""

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num

from transferlab import errors

Outputs = Float[np.ndarray, 'examples *classes']
Labels = Num[np.ndarray, 'examples *one']
Targets = Float[np.ndarray, 'examples *targets']
Value = float | list[list[int]] | None


def accuracy(outputs: Outputs, labels: Labels) -> float:
  """Fraction of examples whose largest logit is the label's; the first of equal logits counts as the largest.

  Args:
    outputs: logits [N, C], or [N] or [N, 1] for class 1 of two.
    labels: class numbers [N] or [N, 1].
  """
  logits, classes = _classified(outputs, labels)
  return float(np.mean(logits.argmax(1) == classes))


def top_k(outputs: Outputs, labels: Labels, k: int) -> float:
  """Fraction of examples whose label is among the k largest logits; written `top_5` in a config.

  Logits [N, C] and labels [N]; 1 where k >= C. Equal logits rank by class number, so that top_1 is
  `accuracy`. Russakovsky et al. 2015, section 4.1.
  """
  logits, classes = _classified(outputs, labels)
  own = logits[np.arange(len(classes)), classes][:, None]
  earlier = np.arange(logits.shape[1]) < classes[:, None]
  rank = np.sum((logits > own) | ((logits == own) & earlier), axis=1)
  return float(np.mean(rank < k))


def balanced_accuracy(outputs: Outputs, labels: Labels) -> float:
  """Mean recall over the classes that occur among the labels [N]; logits [N, C]. Brodersen et al. 2010."""
  counts = _counts(outputs, labels)
  support = counts.sum(1)
  return float(np.mean(np.diag(counts)[support > 0] / support[support > 0]))


def macro_f1(outputs: Outputs, labels: Labels) -> float:
  """Mean of 2TP / (2TP + FP + FN) over the classes among labels [N] or predictions; logits [N, C].

  The mean of F1 values, not the F1 of means: Opitz and Burst 2019.
  """
  counts = _counts(outputs, labels)
  total = counts.sum(0) + counts.sum(1)
  return float(np.mean(2 * np.diag(counts)[total > 0] / total[total > 0]))


def auroc(outputs: Outputs, labels: Labels) -> float | None:
  """Area under the ROC curve: of class 1 for two classes, else the mean of one versus rest.

  Args:
    outputs: logits [N, C], or [N] or [N, 1]; ranked by the log-odds of each class's softmax probability.
    labels: class numbers [N].

  Returns:
    In [0, 1]; None where a class does not occur. Ties count one half. Fawcett 2006.
  """
  from sklearn.metrics import roc_auc_score

  return _one_versus_rest(roc_auc_score, outputs, labels)


def average_precision(outputs: Outputs, labels: Labels) -> float | None:
  """Sum of precision times gain in recall over thresholds; classes and None as in `auroc`.

  Logits [N, C] and labels [N]. No interpolation: Davis and Goadrich 2006 say why.
  """
  from sklearn.metrics import average_precision_score

  return _one_versus_rest(average_precision_score, outputs, labels)


def log_loss(outputs: Outputs, labels: Labels) -> float:
  """Mean negative log-probability (nats) of the labels [N] under the softmax of the logits [N, C]."""
  logits, classes = _classified(outputs, labels)
  own = logits[np.arange(len(classes)), classes]
  return float(np.mean(_log_sum_exp(logits) - own))


def calibration_error(outputs: Outputs, labels: Labels, bins: int = 15) -> float:
  """Expected calibration error: mean distance of confidence and accuracy over equal-width bins of confidence.

  Logits [N, C] and labels [N]; the bins are ((m-1)/M, m/M]. Guo et al. 2017, equation 3.
  """
  logits, classes = _classified(outputs, labels)
  confidence = np.exp(logits.max(1) - _log_sum_exp(logits))
  right = logits.argmax(1) == classes
  place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
  excess = np.bincount(place, weights=right - confidence, minlength=bins)
  return float(np.abs(excess).sum() / len(classes))


def confusion_matrix(outputs: Outputs, labels: Labels) -> list[list[int]]:
  """Counts [C, C]: row = the label's class, column = the largest logit's; logits [N, C], labels [N]."""
  return _counts(outputs, labels).tolist()


def mean_absolute_error(outputs: Targets, labels: Targets) -> float:
  """Mean over examples and targets of |prediction - label|, in the label's unit; both [N, T] or [N]."""
  predictions, targets = _paired(outputs, labels)
  return float(np.mean(np.abs(predictions - targets)))


def mean_squared_error(outputs: Targets, labels: Targets) -> float:
  """Mean over examples and targets of (prediction - label)², in squared units; both [N, T] or [N]."""
  predictions, targets = _paired(outputs, labels)
  return float(np.mean(np.square(predictions - targets)))


def r2(outputs: Targets, labels: Targets) -> float | None:
  """One minus residual over total sum of squares, mean over targets; None where a target is constant.

  Predictions and labels [N, T] or [N]; the mean is that of the given labels.
  Draper and Smith 1998.
  """
  predictions, targets = _paired(outputs, labels)
  if np.any(np.ptp(targets, axis=0) == 0):
    return None
  total = np.square(targets - targets.mean(0)).sum(0)
  return float(np.mean(1 - np.square(predictions - targets).sum(0) / total))


def matthews(outputs: Outputs, labels: Labels) -> float | None:
  """Matthews correlation of predicted and true classes, R_K for several (Gorodkin 2004, eq. 8); logits [N, C].

  None where all predictions, or all labels, are one class.
  """
  counts = _counts(outputs, labels).astype(np.float64)
  true, predicted, total = counts.sum(1), counts.sum(0), counts.sum()
  scale = (total**2 - predicted @ predicted) * (total**2 - true @ true)
  return float((np.trace(counts) * total - true @ predicted) / np.sqrt(scale)) if scale > 0 else None


def pearson(outputs: Targets, labels: Targets) -> float | None:
  """Pearson correlation of predictions and labels [N, T] or [N], mean over targets; None where either is constant."""
  return _correlation(*_paired(outputs, labels))


def spearman(outputs: Targets, labels: Targets) -> float | None:
  """Pearson correlation of the ranks (Spearman 1904), equal values at the mean of theirs; as `pearson`."""
  from scipy.stats import rankdata

  return _correlation(*(rankdata(values, axis=0) for values in _paired(outputs, labels)))


def _correlation(predictions: np.ndarray, targets: np.ndarray) -> float | None:
  if any(np.any(np.ptp(values, axis=0) == 0) for values in (predictions, targets)):
    return None
  one, other = predictions - predictions.mean(0), targets - targets.mean(0)
  scale = np.sqrt(np.square(one).sum(0) * np.square(other).sum(0))
  return float(np.mean((one * other).sum(0) / scale))


# For language models outputs are [N, 2]: the log-likelihood in nats of each token that is to be predicted, and whether
# it was the likeliest one; labels [N]: how many characters it stands for.
def token_log_loss(outputs: Outputs, labels: Labels) -> float:
  """Mean negative log-likelihood in nats per token."""
  return -float(np.mean(outputs[:, 0]))


def perplexity(outputs: Outputs, labels: Labels) -> float:
  """exp of the mean negative log-likelihood per token."""
  return math.exp(min(token_log_loss(outputs, labels), 700.0))


def bits_per_character(outputs: Outputs, labels: Labels) -> float | None:
  """Negative log-likelihood in bits over the number of characters, ends of texts counted as one each."""
  characters = np.sum(labels, dtype=np.float64)
  return -float(np.sum(outputs[:, 0]) / math.log(2) / characters) if characters else None


def token_accuracy(outputs: Outputs, labels: Labels) -> float:
  """Share of tokens that were the likeliest."""
  return float(np.mean(outputs[:, 1]))


# `top_k` stands for top_1, top_2, …: a config writes the number.
METRICS: dict[str, dict[str, Callable[..., Value]]] = {
  'classification': {
    'accuracy': accuracy,
    'top_k': top_k,
    'balanced_accuracy': balanced_accuracy,
    'macro_f1': macro_f1,
    'auroc': auroc,
    'average_precision': average_precision,
    'log_loss': log_loss,
    'calibration_error': calibration_error,
    'matthews': matthews,
    'confusion_matrix': confusion_matrix,
  },
  'binary': {
    'accuracy': accuracy,
    'balanced_accuracy': balanced_accuracy,
    'macro_f1': macro_f1,
    'auroc': auroc,
    'average_precision': average_precision,
    'log_loss': log_loss,
    'calibration_error': calibration_error,
    'matthews': matthews,
    'confusion_matrix': confusion_matrix,
  },
  'regression': {
    'mean_absolute_error': mean_absolute_error,
    'mean_squared_error': mean_squared_error,
    'r2': r2,
    'pearson': pearson,
    'spearman': spearman,
  },
  'next_token': {
    'perplexity': perplexity,
    'bits_per_character': bits_per_character,
    'log_loss': token_log_loss,
    'accuracy': token_accuracy,
  },
}
DEFAULTS = {
  'classification': ['accuracy', 'balanced_accuracy', 'log_loss', 'calibration_error'],
  'binary': ['accuracy', 'balanced_accuracy', 'log_loss', 'calibration_error'],
  'regression': ['mean_squared_error', 'mean_absolute_error', 'r2'],
  'next_token': ['perplexity', 'bits_per_character', 'log_loss', 'accuracy'],
}
# What chooses where a config does not say; accuracy elsewhere.
SELECT = {'regression': 'mean_squared_error', 'next_token': 'perplexity'}
# Measured at each validation, hence only what costs next to nothing.
CHEAP = {
  'classification': ['accuracy', 'log_loss'],
  'binary': ['accuracy', 'log_loss'],
  'regression': ['mean_squared_error'],
  'next_token': ['perplexity', 'bits_per_character'],
}
LOWER_IS_BETTER = (
  'log_loss', 'calibration_error', 'mean_absolute_error', 'mean_squared_error', 'perplexity', 'bits_per_character',
)  # fmt: skip
NOT_NUMBERS = ('confusion_matrix',)


def compute(names: Iterable[str], outputs: Any, labels: Any, task: str) -> dict[str, Value]:
  """The named metrics of one whole split.

  Args:
    names: as in a config: 'accuracy', 'top_5', ….
    outputs: [N, C] logits (classification), [N], [N, 1] or [N, 2] logits (binary), or
      [N, T] predictions (regression).
    labels: class numbers [N], or [N, T] targets.
    task: a key of `METRICS`.

  Returns:
    One value per name; None where the metric has no meaning: no examples, a class absent, outputs not finite.

  Raises:
    UserError: see `check`; labels that are no class of the outputs, or shapes that do not fit.
  """
  names = list(names)
  check(names, task)
  outputs = np.asarray(outputs, np.float64)
  if not len(outputs) or np.isnan(outputs).any():
    return dict.fromkeys(names)
  with np.errstate(invalid='ignore', over='ignore'):
    return {name: _finite(_function(name, task)(outputs, labels)) for name in names}


def of_task(names: Sequence[str] | None, name: str, task: str) -> list[str]:
  """The metrics of one of several tasks, `name`: its usual ones, or of those asked for all that are for it."""
  if names is None:
    return list(DEFAULTS[task])
  own = [each.removeprefix(f'{name}/') for each in names]
  return list(dict.fromkeys(each for each in own if _is_of(each, task)))


def check_tasks(names: Iterable[str], tasks: Mapping[str, str]) -> None:
  """As `check` for several tasks, name -> type: a metric has to be one of some task, or 'task/metric' of that one."""
  for name in names:
    task, slash, metric = name.partition('/')
    if slash and task not in tasks:
      raise errors.unknown('task', task, tasks)
    if slash or not any(_is_of(name, kind) for kind in tasks.values()):
      check([metric if slash else name], tasks[task] if slash else next(iter(tasks.values())))


def _is_of(name: str, task: str) -> bool:
  return bool(_rank(name, task)) or (name != 'top_k' and name in METRICS[task])


def check(names: Iterable[str], task: str) -> None:
  """Raises `UserError`, with the nearest choices, for a name that is no metric of the task, or no task."""
  if task not in METRICS:
    raise errors.unknown('task', task, METRICS)
  for name in names:
    if not _is_of(name, task):
      choices = [choice.replace('top_k', 'top_5') for choice in METRICS[task]]
      raise errors.unknown(f'metric of a {task} task', name, choices)


def higher_is_better(name: str) -> bool:
  """Whether more of the metric, or 'task/metric', is better. Raises `UserError` for what is none, or no number."""
  name = name.rpartition('/')[2]
  known = {choice: None for task in METRICS for choice in METRICS[task]}
  if name in NOT_NUMBERS:
    raise errors.UserError(f'{name} is not a number, so nothing can be chosen or compared by it')
  if not _rank(name, 'classification') and (name == 'top_k' or name not in known):
    choices = [choice.replace('top_k', 'top_5') for choice in known if choice not in NOT_NUMBERS]
    raise errors.unknown('metric', name, choices)
  return name not in LOWER_IS_BETTER


def _rank(name: str, task: str) -> int | None:
  """The k of a name such as 'top_5', where the task has it."""
  found = re.fullmatch(r'top_([1-9][0-9]*)', str(name)) if 'top_k' in METRICS[task] else None
  return int(found[1]) if found else None


def _function(name: str, task: str) -> Callable[..., Value]:
  k = _rank(name, task)
  return functools.partial(top_k, k=k) if k else METRICS[task][name]


def _finite(value: Value) -> Value:
  return None if isinstance(value, float) and not math.isfinite(value) else value


def _classified(
  outputs: Any, labels: Any
) -> tuple[Float[np.ndarray, 'examples classes'], Int[np.ndarray, ' examples']]:
  """Logits with one column per class, and class numbers. A lone logit z of class 1 becomes (0, z)."""
  logits = np.asarray(outputs, np.float64)
  logits = logits.reshape(len(logits), -1)
  if logits.shape[1] == 1:
    logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
  given = np.asarray(labels).reshape(-1)
  if len(given) != len(logits):
    raise errors.UserError(f'{len(logits)} outputs do not fit {len(given)} labels')
  classes = given.astype(np.int64)
  wrong = (classes != given) | (classes < 0) | (classes >= logits.shape[1])
  if wrong.any():
    raise errors.UserError(f'label {given[wrong][0]} is none of the {logits.shape[1]} classes of the outputs')
  return logits, classes


def _paired(
  outputs: Any, labels: Any
) -> tuple[Float[np.ndarray, 'examples targets'], Float[np.ndarray, 'examples targets']]:
  # [N, 1] minus [N] would broadcast to [N, N] without a word.
  predictions, targets = (np.asarray(values, np.float64) for values in (outputs, labels))
  predictions, targets = (values.reshape(len(values), -1) for values in (predictions, targets))
  if predictions.shape != targets.shape:
    raise errors.UserError(f'predictions {predictions.shape} do not fit labels {targets.shape}')
  return predictions, targets


def _log_sum_exp(logits: Float[np.ndarray, 'examples classes']) -> Float[np.ndarray, ' examples']:
  largest = logits.max(1)
  return largest + np.log(np.exp(logits - largest[:, None]).sum(1))


def _counts(outputs: Any, labels: Any) -> Int[np.ndarray, 'classes classes']:
  logits, classes = _classified(outputs, labels)
  size = logits.shape[1]
  return np.bincount(classes * size + logits.argmax(1), minlength=size * size).reshape(size, size)


def _one_versus_rest(score: Callable[..., float], outputs: Any, labels: Any) -> float | None:
  logits, classes = _classified(outputs, labels)
  size = logits.shape[1]
  if np.any(np.bincount(classes, minlength=size) == 0):
    return None
  values = []
  for number in [1] if size == 2 else range(size):
    # Log-odds rank as probabilities do, but do not run into ties where a probability rounds to one.
    odds = np.nan_to_num(logits[:, number] - _log_sum_exp(np.delete(logits, number, axis=1)))
    values.append(score(classes == number, odds))
  return float(np.mean(values))
