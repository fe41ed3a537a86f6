"""Gradient balancing: from one gradient for each task, one update of the parameters that they share.

Plain functions of a matrix [tasks, n], a row for each task, in its own precision; state goes in and comes out. Most
give weights, to be applied with `combine`; those that change single gradients or coordinates give the combined update,
which takes the place of the gradient. Weights that follow from losses alone stand in loss_weights.py.

Everything is solved for directions, through the cosines between gradients, and scaled back at the end: tasks whose
gradients differ by many orders of magnitude do not spoil each other's digits. Cosines carry rounding errors; what they
cannot tell from zero counts as zero. Where a method is not defined:

  - A task whose gradient is zero is dropped: it gets no weight, and the others get what they would get without it.
    Means (of `cagrad`, the default of `aligned_mtl`) are over the tasks that are left. No task left: zeros.
  - Gradients that are parallel, or linearly dependent in another way, are no conflict: all methods are defined there.
  - Pareto stationary: some average of the gradients (weights ≥ 0) is zero, no step helps all tasks (`stationary`).
    `nash` and `imtl_g` give zeros. `mgda` gives the weights of that average, which `combine` turns into zero. `cagrad`
    gives zero if its optimal average g_w is zero, as it is for c ≥ 1. `aligned_mtl`, `pcgrad`, `gradvac`, `graddrop`,
    and `cagrad` with c < 1, trade tasks off against each other; their update need not vanish there.
  - One task: weight 1 (`nash`: 1 / ‖g‖; `cagrad`: (1 + c) g, the paper's d).

No gradients that are finite give nan or inf; those that are not give a combined update that is not.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

Gradients = Float[Array, 'tasks n']
Weights = Float[Array, ' tasks']
Matrix = Float[Array, 'tasks tasks']
Update = Float[Array, ' n']
Order = Int[Array, 'tasks tasks']
Scalar = Float[Array, '']
Number = float | Scalar


def _product(a: Array, b: Array) -> Array:
  """a @ b with all digits: accelerators take fewer unless asked."""
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _rounding(matrix: Array) -> float:
  """Up to which a squared length counts as zero, for vectors of length 1, one for each row."""
  return 8 * len(matrix) * float(jnp.finfo(matrix.dtype).eps)


# --------------------------------------------------------------------------------------- lengths, directions, update
def norms(gradients: Gradients) -> Weights:
  """‖g_i‖, without overflow or underflow of squares."""
  largest = jnp.abs(gradients).max(axis=-1, initial=0)
  scaled = gradients / jnp.where(largest > 0, largest, 1)[:, None]
  return largest * jnp.sqrt((scaled * scaled).sum(axis=-1))


def directions(gradients: Gradients) -> Gradients:
  """g_i / ‖g_i‖; zero for a gradient that is zero."""
  largest = jnp.abs(gradients).max(axis=-1, initial=0)
  scaled = gradients / jnp.where(largest > 0, largest, 1)[:, None]
  return scaled / jnp.where(largest > 0, jnp.sqrt((scaled * scaled).sum(axis=-1)), 1)[:, None]


def cosines(gradients: Gradients) -> Matrix:
  """cos(g_i, g_j) at [i, j]; zero for a gradient that is zero, with itself too."""
  units = directions(gradients)
  return jnp.clip(_product(units, units.T), -1, 1)


def combine(weights: Weights, gradients: Gradients) -> Update:
  """Σ w_i g_i, exactly zero where only rounding errors are left of parts that cancel."""
  combined = _product(weights, gradients)
  noise = _rounding(gradients) * _product(jnp.abs(weights), norms(gradients))
  return jnp.where(norms(combined[None])[0] <= noise, 0, combined)


def stationary(gradients: Gradients, combined: Update | None = None) -> Bool[Array, '']:
  """Whether the gradients are Pareto stationary: an average of them, with weights ≥ 0, is zero up to rounding.

  Rounding is that of cosines: an average of the unit gradients counts as zero up to a length of √(8 tasks ε), which is
  0.002 for three tasks in float32. True if all gradients are zero.

  Args:
    combined: the update made of them. If given: also true if it is zero, whatever the gradients are.
  """
  angles = cosines(gradients)
  flag = _vanishes(_cone(angles, jnp.diagonal(angles)), angles)
  return flag if combined is None else flag | ~jnp.any(combined != 0)


def _vanishes(weights: Weights, angles: Matrix) -> Bool[Array, '']:
  """Whether unit gradients with these cosines cancel, so weighted."""
  square = _product(weights, _product(angles, weights))
  return square <= _rounding(angles) * jnp.square(jnp.abs(weights).sum())


def _inverse(lengths: Weights) -> Weights:
  """min ‖g‖ / ‖g_i‖, at most 1; zero for a gradient that is zero."""
  present = lengths > 0
  return jnp.where(present, jnp.where(present, lengths, jnp.inf).min() / jnp.where(present, lengths, 1), 0)


# ------------------------------------------------------------------------------------------------- hull of gradients
def mgda(gradients: Gradients, normalize: Literal['none', 'l2'] = 'none') -> Weights:
  """Weights of the shortest vector in the convex hull of the gradients (Désidéri 2012; Sener and Koltun 2018, eq. 3).

  They are ≥ 0 with sum 1, by an active-set method that ends at the solution, where Sener and Koltun (algorithm 2)
  approach it by Frank and Wolfe's. The update p = Σ w_i g_i fulfils g_i · p ≥ ‖p‖² for all tasks, with equality where
  w_i > 0.

  Args:
    normalize: 'l2': for the hull of the gradients divided by their lengths. The weights are still for the gradients as
      they are, so that the update has the direction of that hull's shortest vector. (Sener and Koltun's code applies
      the hull's weights to them, for which this is not so.)

  Raises:
    ValueError: for another `normalize`.
  """
  if normalize not in ('none', 'l2'):
    raise ValueError(f"normalize is {normalize!r}; it can be 'none' or 'l2'")
  angles, inverse = cosines(gradients), _inverse(norms(gradients))
  unscaled = _cone(angles, jnp.diagonal(angles))
  chosen = unscaled
  if normalize == 'none':
    # Zero is in the hull of the gradients if it is in that of their directions, which shows it in more digits.
    chosen = jnp.where(_vanishes(unscaled, angles), unscaled, _cone(angles, inverse))
  weights = chosen * inverse
  return weights / jnp.where(weights.sum() > 0, weights.sum(), 1)


def _cone(angles: Matrix, target: Weights) -> Weights:
  """The z ≥ 0 that minimises ½ zᵀ C z − tᵀ z, C the cosines: Lawson and Hanson 1974, chapter 23.

  Then y = Σ z_i u_i is the shortest vector with u_i · y ≥ t_i for all unit gradients u_i. It divided by ‖y‖² is, for
  t_i = 1 / ‖g_i‖, the shortest vector in the hull of the gradients.

  A task enters the set of those with z_i > 0 as long as its slack t_i − u_i · y is positive, and leaves it where the
  solution for the set is not. In place of C stands `_definite`.
  """
  tasks, eps, matrix = len(angles), jnp.finfo(angles.dtype).eps, _definite(angles)
  identity = jnp.eye(tasks, dtype=angles.dtype)
  limit = 10 * tasks  # about as many as there are tasks is usual

  def iterate(state: tuple[Array, Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array, Array]:
    z, inside, barred, _, step = state
    block = jnp.where(inside[:, None] & inside, matrix, identity)
    goal = jnp.linalg.solve(block, jnp.where(inside, target, 0))
    stuck = inside & (goal <= 0)
    shares = jnp.where(stuck, z / jnp.where(z > goal, z - goal, 1), 1)
    leaving = stuck & (shares <= shares.min())
    moved = jnp.where(stuck.any(), z + shares.min() * (goal - z), goal)
    z_new = jnp.where(inside & ~leaving, moved, 0)
    # What leaves as soon as it has entered only did so by rounding errors, and would forever.
    barred = barred | (leaving & (z <= 0))
    slack = target - _product(matrix, z_new)
    noise = 4 * eps * (jnp.abs(target) + _product(jnp.abs(matrix), z_new))
    open_ = ~inside & ~barred & (slack > noise) & ~stuck.any()
    entering = open_ & (jnp.arange(tasks) == jnp.where(open_, slack, -jnp.inf).argmax())
    return z_new, inside & ~leaving | entering, barred, ~stuck.any() & ~open_.any(), step + 1

  none = jnp.zeros(tasks, bool)
  start = (jnp.zeros_like(target), none, none, jnp.array(False), jnp.array(0))
  return jax.lax.while_loop(lambda state: ~state[3] & (state[4] < limit), iterate, start)[0]


def _definite(angles: Matrix) -> Matrix:
  """Cosines plus rounding errors on the diagonal: `_cone` has one solution, if gradients are parallel or cancel too."""
  return angles + 2 * len(angles) * jnp.finfo(angles.dtype).eps * jnp.eye(len(angles), dtype=angles.dtype)


def cagrad(gradients: Gradients, c: Number) -> Update:
  """The d that maximises min_i g_i · d within ‖d − g_0‖ ≤ c ‖g_0‖ (Liu et al. 2021, CAGrad, algorithm 1).

  d = g_0 + √φ g_w / ‖g_w‖ with the mean gradient g_0, φ = c² ‖g_0‖² and the w of the simplex that minimises
  g_w · g_0 + √φ ‖g_w‖. It is not rescaled; the authors' code divides it by 1 + c² (or 1 + c) by default.

  The solution is found for its value μ = min_i g_i · d: `_cone` gives the shortest d − g_0 that reaches a μ. Its length
  is convex in μ, so that Newton's method, from a μ that is too large, comes down to the one with length √φ.
  """
  units, lengths, angles = directions(gradients), norms(gradients), cosines(gradients)
  inverse, scale = _inverse(lengths), jnp.where(lengths.max() > 0, lengths.max(), 1)
  shares = jnp.where(lengths > 0, 1, 0) / jnp.maximum((lengths > 0).sum(), 1)
  mean = combine((shares * (lengths / scale)).astype(units.dtype), units)
  along = _product(units, mean)
  radius = c * norms(mean[None])[0]
  eps = jnp.finfo(units.dtype).eps

  def reach(mu: Scalar) -> tuple[Weights, Scalar]:
    z = _cone(angles, mu * inverse - along)
    return z, jnp.sqrt(jnp.maximum(_product(z, _product(_definite(angles), z)), 0))

  def newton(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
    mu, z, length, step = state
    mu = mu - (length - radius) * length / _product(inverse, z)
    return mu, *reach(mu), step + 1

  def far(state: tuple[Array, Array, Array, Array]) -> Bool[Array, '']:
    return (state[2] > radius * (1 + 4 * eps)) & (_product(inverse, state[1]) > 0) & (state[3] < 50)

  ceiling = jnp.where(lengths > 0, (along + radius) / jnp.where(lengths > 0, inverse, 1), jnp.inf).min()
  # Where the gradients are stationary, μ ≤ 0. If it is 0, the zero update is as good as any.
  hopeless = stationary(gradients)
  ceiling = jnp.where(hopeless | ~jnp.isfinite(ceiling), 0, ceiling)
  z, length = reach(ceiling)
  zero = hopeless & (length <= radius * (1 + _rounding(angles)))
  _, z, _, _ = jax.lax.while_loop(far, newton, (ceiling, z, length, jnp.array(0)))
  towards = directions(_product(z, units)[None])[0]
  return jnp.where(zero, 0, scale * (mean + radius * towards))


# ----------------------------------------------------------------------------------------------------------- surgery
def draw_order(key: Key[Array, ''], tasks: int) -> Order:
  """A random order of all tasks for each task, for `pcgrad` and `gradvac`."""
  return jax.vmap(lambda row: jax.random.permutation(row, tasks))(jax.random.split(key, tasks))


def pcgrad(gradients: Gradients, order: Order) -> Update:
  """Σ_i g_i', where g_i' has lost what conflicts with other tasks (Yu et al. 2020, PCGrad, algorithm 1).

  Starting with g_i, for j in turn: if g_i' · g_j < 0, g_i' becomes g_i' − (g_i' · g_j / ‖g_j‖²) g_j. The sum is the
  paper's; some codes take the mean.

  Args:
    order: row i has the order in which task i meets the others, a permutation of all tasks in which i itself is passed
      over. The paper draws it for each task and step: `draw_order`.
  """
  angles = cosines(gradients)

  def project(task: Array, row: Int[Array, ' tasks']) -> Weights:
    def meet(parts: Weights, other: Array) -> tuple[Weights, None]:
      conflict = jnp.minimum(_product(angles[other], parts), 0)
      return parts.at[other].add(jnp.where(other == task, 0, -conflict)), None

    return jax.lax.scan(meet, jax.nn.one_hot(task, len(angles), dtype=angles.dtype), row)[0]

  parts = jax.vmap(project)(jnp.arange(len(angles)), order)  # of unit gradients, for a g_i of length 1
  return combine(_product(norms(gradients), parts), directions(gradients))


def gradvac(gradients: Gradients, targets: Matrix, order: Order, beta: Number) -> tuple[Update, Matrix]:
  """Σ_i g_i', where g_i' is at least as similar to other gradients as usual (Wang et al. 2021, GradVac, eqs. 2 and 3).

  Starting with g_i, for j in turn, with φ the cosine of g_i' and g_j, and φ̂_ij its target: if φ < φ̂_ij, so much of
  g_j is added to g_i' that their cosine is φ̂_ij (eq. 2), and in any case φ̂_ij becomes (1 − β) φ̂_ij + β φ (eq. 3).
  Targets of zero that stay so (β = 0) make it `pcgrad`. Where one of both is zero there is no cosine, and nothing
  changes. A target that rounding cannot tell from 1, which no sum reaches, changes no gradient.

  Args:
    targets: φ̂, in [-1, 1]; zeros at the start. The diagonal has no meaning, and does not change.
    order: as for `pcgrad`.
    beta: β, the share of the new cosine.

  Returns:
    the update, and the targets for the next step.
  """
  angles, noise = cosines(gradients), _rounding(gradients)

  def vaccinate(task: Array, row: Int[Array, ' tasks'], goals: Weights) -> tuple[Weights, Weights]:
    def meet(state: tuple[Weights, Weights], other: Array) -> tuple[tuple[Weights, Weights], None]:
      parts, goals = state
      square, goal = _product(parts, _product(angles, parts)), goals[other]
      defined = (other != task) & (angles[other, other] > 0) & ~_vanishes(parts, angles)
      length = jnp.sqrt(jnp.where(defined, square, 1))
      cosine = jnp.clip(_product(angles[other], parts) / length, -1, 1)
      reachable = goal * goal < 1 - noise
      sine, goal_sine = jnp.sqrt(1 - cosine * cosine), jnp.sqrt(jnp.where(reachable, 1 - goal * goal, 1))
      added = length * (goal * sine - cosine * goal_sine) / goal_sine
      parts = parts.at[other].add(jnp.where(defined & reachable & (cosine < goal), added, 0))
      return (parts, goals.at[other].set(jnp.where(defined, (1 - beta) * goal + beta * cosine, goal))), None

    return jax.lax.scan(meet, (jax.nn.one_hot(task, len(angles), dtype=angles.dtype), goals), row)[0]

  parts, targets = jax.vmap(vaccinate)(jnp.arange(len(angles)), order, targets)
  return combine(_product(norms(gradients), parts), directions(gradients)), targets


def graddrop(
  gradients: Float[Array, 'tasks ...'],
  key: Key[Array, ''],
  leak: float | Scalar | Weights = 0.0,
  activations: Float[Array, 'batch ...'] | None = None,
) -> Float[Array, '...']:
  """Σ_i (ℓ_i + (1 − ℓ_i) M_i) g_i: each coordinate keeps one sign (Chen et al. 2020, GradDrop, eqs. 1 and 2).

  With P = ½ (1 + Σ g_i / Σ |g_i|), the positive sign purity of a coordinate, and U drawn uniformly from [0, 1): M_i is
  1 where g_i is positive if P > U, where it is negative if not.

  Args:
    gradients: with respect to the parameters that tasks share; or, as in the paper, to a layer's activations.
    leak: ℓ in [0, 1], how much passes without being masked; one for all tasks, or one for each.
    activations: of the layer, gradients then have its shape after the axis of tasks. Signs and purities are those of
      Σ sign(a) g_i over the first axis, the batch; one mask serves all its examples. None: those of the gradients.
  """
  signal = gradients if activations is None else (jnp.sign(activations) * gradients).sum(axis=1)
  size = jnp.abs(signal).sum(axis=0)
  purity = 0.5 * (1 + signal.sum(axis=0) / jnp.where(size > 0, size, 1))
  positive = purity > jax.random.uniform(key, purity.shape, purity.dtype)
  kept = jnp.where(positive, signal > 0, signal < 0)
  kept = kept if activations is None else kept[:, None]
  leaks = jnp.reshape(jnp.asarray(leak, gradients.dtype), (-1,) + (1,) * (gradients.ndim - 1))
  return (jnp.where(kept, 1, leaks) * gradients).sum(axis=0)


# ------------------------------------------------------------------------------------------------- equal improvement
def imtl_g(gradients: Gradients) -> Weights:
  """Weights with sum 1 whose update has equal projections on all u_i = g_i / ‖g_i‖ (Liu et al. 2021, IMTL-G).

  The paper's closed form g_1 Uᵀ (D Uᵀ)⁻¹ is, for gradients that are independent, w_i ∝ z_i / ‖g_i‖ with C z = 1, C the
  cosines. For dependent ones z is the shortest vector with the least squared error: projections are equal where that
  is possible other than as zeros (duplicates), or else as equal as they can be. Weights may be negative, and with them
  the projections: the paper's form does not exclude it. Zeros where the gradients are Pareto stationary, since equal
  projections are zero then, and where the weights' sum is zero.
  """
  angles = cosines(gradients)
  values, vectors = jnp.linalg.eigh(angles)
  kept = values > _rounding(angles)
  z = _product(vectors, jnp.where(kept, _product(jnp.diagonal(angles), vectors) / jnp.where(kept, values, 1), 0))
  weights = z * _inverse(norms(gradients))
  total = weights.sum()
  defined = ~stationary(gradients) & (jnp.abs(total) > _rounding(angles) * jnp.abs(weights).sum())
  return jnp.where(defined, weights / jnp.where(defined, total, 1), 0)


def nash(gradients: Gradients) -> Weights:
  """The a > 0 with G Gᵀ a = 1 / a: Nash's bargaining solution (Navon et al. 2022, Nash-MTL, claim 3.1).

  It minimises ½ aᵀ G Gᵀ a − Σ log a_i, which is strictly convex and self-concordant: Newton's method, its steps divided
  by 1 + λ while the decrement λ is large, is certain to converge to it. The paper approaches it by a sequence of convex
  programs. The update has length √tasks, whatever the gradients' lengths are; the authors' code clips it. Zeros where
  the gradients are Pareto stationary: there is no solution.
  """
  angles, lengths = cosines(gradients), norms(gradients)
  present, hopeless = lengths > 0, stationary(gradients)
  identity = jnp.eye(len(angles), dtype=angles.dtype)
  angles = jnp.where(hopeless, identity, jnp.where(present[:, None] & present, angles, identity))

  def newton(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    # In units of a itself, where the Hessian is at least the identity.
    a, settled, step = state
    curvature = a[:, None] * angles * a
    error = 1 - curvature.sum(axis=1)
    move = jnp.linalg.solve(curvature + identity, error)
    decrement = jnp.sqrt(jnp.maximum(_product(error, move), 0))
    near = decrement < 0.25
    return a * (1 + move / jnp.where(near, 1, 1 + decrement)), settled + near, step + 1

  # From λ < ¼ on, six steps square the error down to below what float64 holds.
  start = (jnp.sqrt(len(angles) / angles.sum()) * jnp.ones_like(lengths), jnp.array(0), jnp.array(0))
  a, _, _ = jax.lax.while_loop(lambda state: (state[1] < 6) & (state[2] < 500), newton, start)
  return jnp.where(present & ~hopeless, a / jnp.where(present, lengths, 1), 0)


def aligned_mtl(gradients: Gradients, preferences: Weights | None = None) -> Weights:
  """B p for the B that makes the gradients' principal components equally long (Senushkin et al. 2023, algorithm 1).

  With the singular values σ of the matrix of gradients, G Gᵀ = V Σ² Vᵀ: B = σ_min V Σ⁻¹ Vᵀ, over the σ that are not
  zero (Aligned-MTL with scale 'min'). B G is, up to its scale, the matrix closest to G whose σ are all equal.

  Singular values below 8 tasks ε σ_max count as zero: gradients shorter than that have no weight. They come from the
  lengths and the cosines, with the digits that a decomposition of the gradients would give, not half of them.

  Args:
    preferences: p, the tasks' shares in the loss that is to be minimised. None: the mean loss. (The authors' code has
      ones, the sum.)
  """
  angles, lengths = cosines(gradients), norms(gradients)
  if preferences is None:
    preferences = jnp.where(lengths > 0, 1, 0).astype(angles.dtype) / jnp.maximum((lengths > 0).sum(), 1)
  values, vectors = jnp.linalg.eigh(angles)
  roots = jnp.sqrt(jnp.where(values > _rounding(angles), values, 0))
  scaled = lengths / jnp.where(lengths.max() > 0, lengths.max(), 1)
  components, sigma, _ = jnp.linalg.svd(scaled[:, None] * vectors * roots)
  kept = sigma > _rounding(angles) * sigma.max()
  ratio = jnp.where(kept, jnp.where(kept, sigma, jnp.inf).min() / jnp.where(kept, sigma, 1), 0)
  weights = _product(components, ratio * _product(preferences, components))
  return jnp.where(lengths > 0, weights, 0)
