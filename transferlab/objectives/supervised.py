"""Losses against labels and targets: plain functions of arrays, one value per example (optax's convention).

A loss with class weights returns (values, weights): the loop divides by the sum of the weights, so a padded or
reweighted batch is averaged rightly. Nothing here knows of masks or devices.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from transferlab.config import Fraction, Rate
from transferlab.errors import UserError
from transferlab.objectives.objective import Term, View, linear, linear_init

Logits = Float[Array, 'batch classes']
PerExample = Float[Array, 'batch']


def cross_entropy(
  logits: Logits,
  labels: Int[Array, ' batch'] | Float[Array, 'batch classes'],
  *,
  smoothing: Fraction | None = None,
  class_weights: list[Rate] | None = None,
) -> PerExample | tuple[PerExample, PerExample]:
  """Softmax cross-entropy in nats, against class numbers or soft targets.

  Args:
    smoothing: ε of Szegedy et al. 2016, section 7: targets become (1 − ε) y + ε / classes.
    class_weights: one weight per class. The loss is Σ w_y ℓ / Σ w_y, as torch.nn.CrossEntropyLoss averages;
      with soft targets an example weighs Σ_c w_c y_c.

  Raises:
    UserError: as many class weights as classes are needed.
  """
  classes = logits.shape[-1]
  if labels.ndim < logits.ndim and smoothing is None and class_weights is None:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  targets = labels if labels.ndim == logits.ndim else jnp.eye(classes, dtype=logits.dtype)[labels]
  smooth = targets if smoothing is None else optax.smooth_labels(targets, smoothing)
  values = optax.safe_softmax_cross_entropy(logits, smooth)
  if class_weights is None:
    return values
  if len(class_weights) != classes:
    raise UserError(f'cross_entropy.class_weights: {len(class_weights)} weights for {classes} classes')
  return values, targets @ jnp.asarray(class_weights, logits.dtype)


def next_token(
  logits: Float[Array, 'batch places tokens'], labels: Int[Array, 'batch places'], *, smoothing: Fraction | None = None
) -> tuple[PerExample, PerExample]:
  """Softmax cross-entropy in nats of each next token, averaged over the tokens of the batch; −1 is no token.

  Args:
    smoothing: as of `cross_entropy`.

  Returns:
    The mean of each example's tokens, and their number, by which the loop weighs the examples.
  """
  real = labels >= 0
  count = real.sum(axis=1).astype(logits.dtype)
  known = jnp.where(real, labels, 0)
  if smoothing is None:
    values = optax.softmax_cross_entropy_with_integer_labels(logits, known)
  else:
    targets = optax.smooth_labels(jax.nn.one_hot(known, logits.shape[-1], dtype=logits.dtype), smoothing)
    values = optax.softmax_cross_entropy(logits, targets)
  return jnp.where(real, values, 0).sum(axis=1) / jnp.maximum(count, 1), count


def squared_error(
  predictions: Float[Array, ' batch *outputs'], targets: Float[Array, ' batch *outputs'] | Int[Array, ' batch']
) -> PerExample:
  """(prediction − target)², averaged over the outputs of an example; class numbers are targets of 0 and 1."""
  if jnp.issubdtype(targets.dtype, jnp.integer) and predictions.ndim > targets.ndim:
    targets = jnp.eye(predictions.shape[-1], dtype=predictions.dtype)[targets]
  return jnp.square(predictions - targets).reshape(predictions.shape[0], -1).mean(axis=1)


def binary_cross_entropy(logits: Float[Array, ' batch *one'], labels: Int[Array, ' batch *one']) -> PerExample:
  """Sigmoid cross-entropy in nats of one logit per example against 0 or 1."""
  flat = logits.reshape(logits.shape[0], -1)
  return optax.sigmoid_binary_cross_entropy(flat, labels.reshape(flat.shape).astype(flat.dtype)).mean(axis=1)


def hinge(logits: Float[Array, ' batch *classes'], labels: Int[Array, ' batch']) -> PerExample:
  """Hinge loss: max(0, 1 − y f) with y = ±1 for one logit; for several, Crammer and Singer's (2001) margin
  max(0, 1 + max_{c ≠ y} f_c − f_y).
  """
  if logits.ndim == 1 or logits.shape[-1] == 1:
    return optax.hinge_loss(logits.reshape(-1), 2.0 * labels.reshape(-1) - 1.0)
  return optax.losses.multiclass_hinge_loss(logits, labels)


def deep_supervision(*, stage: str) -> Term:
  """Cross-entropy of a linear classifier of the term's own on an intermediate stage (Lee et al. 2015, eq. 3).

  The classifier reads the stage's features, averaged over places where they have any. It trains with the
  network, is checkpointed under `terms/`, and is never exported.

  Args:
    stage: the stage whose output is supervised.
  """

  def init(view: View, key: Array) -> dict:
    features = view.features(stage)
    return {'params': linear_init(key, features.shape[-1], view.output.shape[-1]), 'stats': {}}

  def apply(view: View, own: dict) -> tuple[Any, dict, dict]:
    logits = linear(own['params'], view.features(stage))
    accuracy = (logits.argmax(-1) == view.labels).astype(logits.dtype)
    return cross_entropy(logits, view.labels), {'accuracy': accuracy}, {}

  return Term(init, apply, stages=(stage,), needs=('labels',))
