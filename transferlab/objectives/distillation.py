"""Distillation losses: plain functions of arrays, one value per example (optax's convention), a scalar where the
examples of a batch are coupled.

What the student gives comes first, what the teacher gives second; features are [batch, …, channels]. Gradients flow
into both: whoever calls decides what is constant. Coupled losses take a `mask` of the examples that are real; padding
then changes nothing. How a config asks for them, projections between shapes, and memory banks stand in teaching.py.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Logits = Float[Array, 'batch classes']
Places = Bool[Array, 'batch places']
Features = Float[Array, 'batch ... channels']
PerExample = Float[Array, ' batch']
Scalar = Float[Array, '']
Mask = Bool[Array, ' batch']
Number = float | Scalar

TINY = 1e-30  # up to which a squared norm counts as zero


# --------------------------------------------------------------------------------------------------- answers (logits)
def kd(student_logits: Logits, teacher_logits: Logits, temperature: Number = 4.0) -> PerExample:
  """T² KL(p ‖ q) of p = softmax(v / T) and q = softmax(z / T), teacher and student (Hinton et al. 2015, eq. 1).

  The factor T² keeps the size of the gradient when T changes (section 2). The gradient with respect to z_i is
  T (q_i − p_i), which tends to (z_i − v_i) / N for large T and logits of N classes whose mean is zero (eqs. 2 to 4,
  times T²).
  """
  log_p, log_q = jax.nn.log_softmax(teacher_logits / temperature), jax.nn.log_softmax(student_logits / temperature)
  return temperature**2 * _divergence(log_p, log_q)


def _divergence(log_p: Float[Array, 'batch events'], log_q: Float[Array, 'batch events']) -> PerExample:
  """KL(p ‖ q); an event of log-probability 0 on both sides adds nothing."""
  return (jnp.exp(log_p) * (log_p - log_q)).sum(axis=-1)


def dkd(
  student_logits: Logits,
  teacher_logits: Logits,
  labels: Int[Array, ' batch'],
  alpha: float = 1.0,
  beta: float = 8.0,
  temperature: Number = 4.0,
) -> PerExample:
  """T² (α TCKD + β NCKD), decoupled knowledge distillation (Zhao et al. 2022, eq. 7).

  TCKD is KL(b ‖ b̂) of the two events "the label" and "another class", NCKD is KL(p̂ ‖ q̂) over the other classes alone,
  renormalised. α = 1 and β = 1 − p_label, the teacher's doubt, would be `kd` (eq. 6). The paper's text has no T², its
  authors' code does, as distillation needs it.
  """
  classes = jnp.arange(student_logits.shape[-1])
  label = classes == labels[:, None]

  def parts(logits: Logits) -> tuple[Array, Array]:
    """Log-probabilities of the two events, and of the other classes among themselves (0 at the label)."""
    log = jax.nn.log_softmax(logits / temperature)
    others = jnp.where(label, -jnp.inf, log)
    events = jnp.stack([jnp.where(label, log, 0).sum(axis=-1), jax.nn.logsumexp(others, axis=-1)], axis=-1)
    return events, jnp.where(label, 0, others - events[:, 1:])

  (events_t, others_t), (events_s, others_s) = parts(teacher_logits), parts(student_logits)
  return temperature**2 * (alpha * _divergence(events_t, events_s) + beta * _divergence(others_t, others_s))


def dist(
  student_logits: Logits,
  teacher_logits: Logits,
  beta: float = 2.0,
  gamma: float = 2.0,
  temperature: Number = 1.0,
  mask: Mask | None = None,
) -> Scalar:
  """T² (β inter + γ intra), a correlation in place of a divergence (Huang et al. 2022, DIST, eqs. 6 to 10).

  Of the probabilities softmax(z / T): inter is the mean over examples of 1 − ρ between the two rows of an example,
  intra the mean over classes of 1 − ρ between the two columns of a class, ρ Pearson's correlation. Columns couple the
  examples of a batch. The paper's T is 1 (ImageNet) or 4 (CIFAR-100), without T², which is in the authors' later code.
  """
  student, teacher = jax.nn.softmax(student_logits / temperature), jax.nn.softmax(teacher_logits / temperature)
  real = _weights(student, mask)
  ones = jnp.ones(student.shape[-1], student.dtype)
  inter = (real * (1 - _correlation(student, teacher, ones))).sum() / real.sum()
  intra = (1 - _correlation(student.T, teacher.T, real)).mean()
  return temperature**2 * (beta * inter + gamma * intra)


def _correlation(
  x: Float[Array, 'rows columns'], y: Float[Array, 'rows columns'], weights: Float[Array, ' columns']
) -> Float[Array, ' rows']:
  """Pearson's correlation of the rows of x and y, over the columns that have weight 1; 0 where a row is constant."""

  def directions(rows: Array) -> Array:
    rows = weights * rows / jax.lax.stop_gradient(jnp.abs(weights * rows).max(axis=-1, keepdims=True) + TINY)
    centred = weights * (rows - rows.sum(axis=-1, keepdims=True) / weights.sum())
    # What rounding leaves of a constant has a direction, but no meaning.
    noise = jnp.square(8 * jnp.finfo(rows.dtype).eps) * (rows * rows).sum(axis=-1, keepdims=True)
    return unit(jnp.where((centred * centred).sum(axis=-1, keepdims=True) > noise, centred, 0))

  return (directions(x) * directions(y)).sum(axis=-1)


def standardize(logits: Logits, eps: float = 1e-7) -> Logits:
  """(z − mean) / (σ + ε) over the classes of each example (Sun et al. 2024, Logit Standardization, algorithm 1).

  A transform of the logits of both sides before `kd`, `dkd` or another, which divides by T (algorithm 2). σ divides by
  the number of classes, as algorithm 1 has it; the authors' code divides by one less. ε is the code's.
  """
  centred = logits - logits.mean(axis=-1, keepdims=True)
  return centred / (_root((centred * centred).mean(axis=-1, keepdims=True)) + eps)


# ------------------------------------------------------------------------------------------------- features
def hint(student: Features, teacher: Features, real: Places | None = None) -> PerExample:
  """½ ‖s − t‖² over places and channels (Romero et al. 2015, FitNets, eq. 3); s is a regressor's of the student.

  Args:
    real: places of texts that are no padding.
  """
  return _summed(0.5 * jnp.square(student - teacher), real)


def _summed(values: Features, real: Places | None) -> PerExample:
  """The sum over channels and real places."""
  values = values if real is None else jnp.where(real[..., None], values, 0)
  return values.reshape(len(values), -1).sum(axis=-1)


def attention_transfer(student: Features, teacher: Features, power: float = 2.0, squared: bool = False) -> PerExample:
  """½ ‖Q_S / ‖Q_S‖ − Q_T / ‖Q_T‖‖ of the attention maps Q = Σ_channels |A|^p (Zagoruyko and Komodakis 2017, eq. 2).

  Both have the same places; their channels may differ.

  Args:
    power: p.
    squared: the mean over places of the squared difference instead, without ½: what the authors' code computes.
  """

  def attention(features: Features) -> Float[Array, 'batch places']:
    return unit((jnp.abs(features) ** power).sum(axis=-1).reshape(len(features), -1))

  difference = jnp.square(attention(student) - attention(teacher))
  return difference.mean(axis=-1) if squared else 0.5 * _root(difference.sum(axis=-1))


def nst(student: Features, teacher: Features) -> PerExample:
  """MMD² between the channels of both with the kernel (xᵀy)² (Huang and Wang 2017, Like What You Like, section 4).

  mean k(t, t') + mean k(s, s') − 2 mean k(t, s): a channel's map over all places, divided by its norm, is one sample;
  the kernel is the paper's polynomial one with d = 2 and c = 0. Both have the same places; their channels may differ.
  The paper halves it.
  """

  def samples(features: Features) -> Float[Array, 'batch channels places']:
    return unit(features.reshape(len(features), -1, features.shape[-1]).swapaxes(1, 2))

  def kernel(x: Array, y: Array) -> PerExample:
    return jnp.square(jnp.einsum('bip,bjp->bij', x, y)).mean(axis=(1, 2))

  s, t = samples(student), samples(teacher)
  return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)


def variational(
  mean: Features, teacher: Features, variance: Float[Array, ' channels'], real: Places | None = None
) -> PerExample:
  """Σ ½ log σ_c² + (t − μ(s))² / (2 σ_c²) over places and channels: −log q(t | s) (Ahn et al. 2019, VID, section 2).

  The bound is I(t; s) ≥ H(t) + E log q(t | s) for a Gaussian q with a variance for each channel; its constant is left
  out. The authors' code takes the mean over places and channels.

  Args:
    mean: μ(s), what the student's regressor gives.
    variance: σ_c², one for each channel.
    real: places of texts that are no padding.
  """
  return _summed(0.5 * (jnp.log(variance) + jnp.square(teacher - mean) / variance), real)


# ------------------------------------------------------------------------------- relations between examples (coupled)
def similarity_preserving(student: Features, teacher: Features, mask: Mask | None = None) -> Scalar:
  """‖G_S − G_T‖²_F / b² of the examples' Gram matrices with rows of length 1 (Tung and Mori 2019, eqs. 2 to 4)."""
  real = _weights(student, mask)

  def similarity(features: Features) -> Float[Array, 'batch batch']:
    rows = real[:, None] * features.reshape(len(features), -1)
    return unit(rows @ rows.T)

  return jnp.square(similarity(student) - similarity(teacher)).sum() / jnp.square(real.sum())


def relational(
  student: Features,
  teacher: Features,
  distance_weight: float = 25.0,
  angle_weight: float = 50.0,
  mask: Mask | None = None,
) -> Scalar:
  """Relational knowledge distillation (Park et al. 2019): λ_D L_D + λ_A L_A, distances and angles between examples.

  L_D (eqs. 5 to 8) compares the distances of pairs, divided by their mean, L_A (eqs. 9 and 10) the cosines of the
  angles of triplets, both by Huber's loss with δ = 1. The paper adds over pairs and triplets of distinct examples; here
  they are averaged, so that the weights (25 and 50 in the literature on classification) do not depend on the size of
  the batch. The authors' code averages over all entries, those of an example with itself included.
  """
  real, (s, t) = _weights(student, mask), (v.reshape(len(v), -1) for v in (student, teacher))
  other = (1 - jnp.eye(len(s), dtype=s.dtype)) * real[:, None] * real
  loss = jnp.zeros((), s.dtype)
  if distance_weight:
    distances = [_distances(v) for v in (s, t)]
    s_D, t_D = (d * other.sum() / jnp.maximum((d * other).sum(), TINY) for d in distances)
    loss += distance_weight * (other * _huber(s_D - t_D)).sum() / jnp.maximum(other.sum(), 1)
  if angle_weight:
    # For the corner j, the two others i and k: distinct from j, and from each other.
    corners = other[:, :, None] * other[:, None, :] * (1 - jnp.eye(len(s), dtype=s.dtype))
    loss += angle_weight * (corners * _huber(_angles(s) - _angles(t))).sum() / jnp.maximum(corners.sum(), 1)
  return loss


def _distances(x: Float[Array, 'batch features']) -> Float[Array, 'batch batch']:
  return _root(jnp.square(x[:, None] - x).sum(axis=-1))


def _angles(x: Float[Array, 'batch features']) -> Float[Array, 'batch batch batch']:
  """At [j, i, k] the cosine of the angle at x_j between x_i and x_k."""
  arms = unit(x[None] - x[:, None])
  return jnp.einsum('jid,jkd->jik', arms, arms)


def _huber(difference: Array) -> Array:
  size = jnp.abs(difference)
  return jnp.where(size <= 1, 0.5 * jnp.square(difference), size - 0.5)


def pkt(student: Features, teacher: Features, mask: Mask | None = None, eps: float = 1e-7) -> Scalar:
  """KL(p ‖ q) of the examples' probabilities of being neighbours (Passalis and Tefas 2018), averaged over examples.

  p_{j|i} = K(t_i, t_j) / Σ_{k ≠ i} K(t_i, t_k) with K = (cosine + 1) / 2, q likewise for the student (section 3). The
  paper adds over the examples i. The authors' code counts every example among its own neighbours, and takes the mean
  over all pairs.
  """
  real = _weights(student, mask)
  other = (1 - jnp.eye(len(student), dtype=real.dtype)) * real

  def neighbours(features: Features) -> Float[Array, 'batch batch']:
    directions = unit(features.reshape(len(features), -1))
    kernel = other * (directions @ directions.T + 1) / 2
    return kernel / (kernel.sum(axis=-1, keepdims=True) + eps)

  p, q = neighbours(teacher), neighbours(student)
  return (real[:, None] * p * jnp.log((p + eps) / (q + eps))).sum() / real.sum()


def contrastive(
  positive: PerExample,
  negatives: Float[Array, 'batch negatives'],
  examples: Number,
  log_normalizer: Number = 0.0,
  drawn: Bool[Array, 'batch negatives'] | None = None,
) -> PerExample:
  """−log h(positive) − Σ log (1 − h(negative)) (Tian et al. 2020, eqs. 10 and 19).

  Contrastive representation distillation: the critic is h = e^s / (e^s + N / M), for a score s = g_T · g_S / τ of two
  embeddings of unit length.

  Args:
    positive: scores of an example with itself, teacher against student.
    negatives: scores with N other examples.
    examples: M, how many there are in all.
    log_normalizer: log Z, taken from every score. There is none in the paper; the authors' code estimates it.
    drawn: which of the negatives count; None: all.
  """
  drawn = jnp.ones(negatives.shape, bool) if drawn is None else drawn
  threshold = jnp.log(drawn.sum(axis=-1, keepdims=True) / examples) + log_normalizer
  rejected = jnp.where(drawn, jax.nn.softplus(negatives - threshold), 0).sum(axis=-1)
  return jax.nn.softplus(threshold[:, 0] - positive) + rejected


# ----------------------------------------------------------------------------------------------------------- helpers
def _root(squares: Array) -> Array:
  """√x, whose gradient is 0 where x is 0 and not infinite."""
  positive = squares > TINY
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)


def unit(x: Float[Array, '... numbers']) -> Float[Array, '... numbers']:
  """x / ‖x‖ over the last axis; 0, and its gradient too, where x is 0."""
  squares = (x * x).sum(axis=-1, keepdims=True)
  positive = squares > TINY
  return jnp.where(positive, x * jax.lax.rsqrt(jnp.where(positive, squares, 1)), 0)


def _weights(x: Array, mask: Mask | None) -> PerExample:
  """1 for every example that is real."""
  return jnp.ones(len(x), x.dtype) if mask is None else mask.astype(x.dtype)
