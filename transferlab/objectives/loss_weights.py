"""Weighing the losses of several tasks by the losses themselves, or by how long their gradients are.

Plain functions of one loss for each task; what changes over time goes in and comes out, so that a caller keeps it.
Losses are meant to be positive; all functions are defined at zero too. What needs the gradients themselves stands in
balancing.py.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

Losses = Float[Array, ' tasks']
Weights = Float[Array, ' tasks']
Scalar = Float[Array, '']
Number = float | Scalar


def random_weights(key: Key[Array, ''], tasks: int) -> Weights:
  """The softmax of standard normal numbers: sum 1, drawn anew for each step (Lin et al. 2022, RLW, section 3)."""
  return jax.nn.softmax(jax.random.normal(key, (tasks,)))


def uncertainty(losses: Losses, log_variances: Weights, regression: Bool[Array, ' tasks'] | None = None) -> Scalar:
  """Σ e^(−s_i) L_i + s_i / 2, the losses weighed by a variance that is trained (Kendall et al. 2018, eqs. 7 and 10).

  s = log σ² for each task, what the paper trains in place of σ; log σ is s / 2. A regression's squared error is the
  −log-likelihood of a normal distribution if halved: ½ e^(−s) L (eqs. 5 and 7). A classification's cross-entropy, of
  logits divided by σ², is about e^(−s) L (eq. 10). Many codes halve all, or use s in place of s / 2.

  Args:
    regression: which losses are squared errors, without a factor ½. None: none.
  """
  factors = 1.0 if regression is None else jnp.where(regression, 0.5, 1)
  return (factors * jnp.exp(-log_variances) * losses + log_variances / 2).sum()


def dynamic_weight_average(previous: Losses, before: Losses, temperature: Number = 2.0) -> Weights:
  """tasks × softmax(r / T): losses that fall slower weigh more (Liu et al. 2019, DWA, eq. 7).

  r_i = previous_i / before_i, of a loss averaged over the last epoch and over the one before it; 1 where `before` is
  zero. Without two epochs weights are 1, as they are for equal arguments.
  """
  ratios = jnp.where(before > 0, previous / jnp.where(before > 0, before, 1), 1) / temperature
  # A quotient that overflows would make the softmax nan.
  return len(ratios) * jax.nn.softmax(jnp.minimum(ratios, jnp.finfo(ratios.dtype).max))


def geometric_mean(losses: Losses) -> Scalar:
  """(Π L_i)^(1 / tasks): the gradient, of each L_i in relation to its size, is equal (Chennupati et al. 2019, GLS).

  A loss below the smallest normal number counts as that number, and has no gradient.
  """
  smallest = jnp.finfo(losses.dtype).tiny
  return jnp.exp(jnp.log(jnp.where(losses > smallest, losses, smallest)).mean())


def gradnorm(norms: Weights, losses: Losses, initial_losses: Losses, weights: Weights, alpha: Number) -> Scalar:
  """Σ |w_i ‖∇L_i‖ − Ḡ r_i^α|, to be descended by the weights (Chen et al. 2018, GradNorm, eq. 2).

  Ḡ is the mean of w_i ‖∇L_i‖, r_i the loss L_i / L_i(0) divided by its mean over tasks (section 3.1). The targets
  Ḡ r_i^α are constant: the gradient with respect to w_i is ± ‖∇L_i‖. After each step: `renormalize`.

  Args:
    norms: ‖∇L_i‖ of the losses without their weights, in the paper with respect to the last layer that tasks share.
    losses: L_i; zero is defined.
    initial_losses: L_i(0), at the first step; a task where it is zero counts as if it had not changed.
    alpha: how strongly tasks that train slower are favoured.
  """
  ratios = jnp.where(initial_losses > 0, losses / jnp.where(initial_losses > 0, initial_losses, 1), 1)
  rates = jnp.where(ratios.mean() > 0, ratios / jnp.where(ratios.mean() > 0, ratios.mean(), 1), 1)
  targets = jax.lax.stop_gradient((weights * norms).mean() * rates**alpha)
  return jnp.abs(weights * jax.lax.stop_gradient(norms) - targets).sum()


def renormalize(weights: Weights) -> Weights:
  """`gradnorm`'s weights after a step of theirs, with the sum tasks (Chen et al. 2018, algorithm 1).

  What a step has made negative becomes zero first, of which the paper says nothing; if nothing is left, all are 1.
  """
  positive = jnp.maximum(weights, 0)
  total = positive.sum()
  return jnp.where(total > 0, len(weights) * positive / jnp.where(total > 0, total, 1), 1)


def famo_weights(logits: Weights, losses: Losses, eps: float = 1e-8) -> Weights:
  """c z_i / L_i with z = softmax(logits) and c = 1 / Σ z_i / L_i (Liu et al. 2023, FAMO, algorithm 1).

  They sum to 1. With them as constants, Σ weight_i L_i has the gradient of c Σ z_i log L_i.

  Args:
    logits: zeros at the start.
    eps: added to the losses, as in the authors' code.
  """
  parts = jax.nn.softmax(jax.nn.log_softmax(logits) - jnp.log(losses + eps))
  return jax.lax.stop_gradient(parts)


def famo_gradient(logits: Weights, before: Losses, after: Losses, gamma: Number, eps: float = 1e-8) -> Weights:
  """Jᵀ (log before − log after) + γ logits, to be descended by the logits (Liu et al. 2023, FAMO, algorithm 1).

  J is the Jacobian of softmax(logits): tasks whose losses fell less than the average, in the logarithm, gain weight.

  Args:
    before: the losses of a batch that the last step was made of.
    after: those of the same batch after the step.
    gamma: how strongly logits decay. The authors' code hands it to Adam as its weight decay, which is the same sum.
    eps: as for `famo_weights`.
  """
  z = jax.nn.softmax(logits)
  fall = jnp.log(before + eps) - jnp.log(after + eps)
  return z * (fall - (z * fall).sum()) + gamma * logits
