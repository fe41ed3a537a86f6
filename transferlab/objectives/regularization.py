"""Terms that keep parameters near their start, and features near their class."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transferlab.config import Fraction, Rate
from transferlab.errors import UserError
from transferlab.objectives.objective import Term, View, nothing


def l2_sp(params: dict, source: dict, *, alpha: Rate = 1.0, beta: Rate = 0.0) -> Float[Array, '']:
  """α/2 ‖w_S − w_S⁰‖² + β/2 ‖w_S̄‖² (Li, Grandvalet and Davoine 2018, eq. 3).

  w_S are the parameters that a transplant gave a value w_S⁰, w_S̄ the others (a new head). It is a sum over
  parameters, not a mean, as in the paper.

  Args:
    params: the network's parameters.
    source: a tree of the same structure: the values the transplant gave, None where it gave none.
  """

  def penalty(leaf: Array, start: Array | None) -> Array:
    if start is None:
      return 0.5 * beta * jnp.square(leaf).sum()
    return 0.5 * alpha * jnp.square(leaf - start).sum()

  penalties = jax.tree.map(lambda start, leaf: penalty(leaf, start), source, params, is_leaf=lambda leaf: leaf is None)
  return sum(jax.tree.leaves(penalties), jnp.zeros(()))


def activation(*, stage: str) -> Term:
  """Mean square of a stage's features over the places of a text (Merity et al. 2018, section 4.6: AR, α L₂(h_t)).

  Args:
    stage: of a network on texts, as the last recurrent one. Its dropout, which the paper applies first, belongs to the
      next stage here.
  """
  return _of_places(stage, lambda x, mask: (x, mask))


def temporal_activation(*, stage: str) -> Term:
  """Mean square of the change of a stage's features between neighbouring places (ibid.: TAR, β L₂(h_t − h_{t+1}))."""
  return _of_places(stage, lambda x, mask: (x[:, 1:] - x[:, :-1], mask[:, 1:] & mask[:, :-1]))


def _of_places(stage: str, change: Callable[[Array, Array], tuple[Array, Array]]) -> Term:
  def init(view: View, key: Array) -> dict:
    value = view.outputs[stage]
    if not isinstance(value, Mapping) or 'mask' not in value:
      raise UserError(f'config.objective: stage {stage!r} has no places of a text')
    return nothing(view, key)

  def apply(view: View, own: dict) -> tuple[Any, dict, dict]:
    value = view.outputs[stage]
    x, mask = change(value['x'], value['mask'])
    count = mask.sum(axis=1).astype(x.dtype)
    squares = jnp.where(mask, jnp.square(x).mean(axis=-1), 0).sum(axis=1)
    return (squares / jnp.maximum(count, 1), count), {}, {}

  return Term(init, apply, stages=(stage,))


def center_loss(*, stage: str, rate: Fraction = 0.5) -> Term:
  """½ ‖x − c_y‖² to a moving centre of each class (Wen et al. 2016, eq. 2).

  The centres are state of the term: they start at zero and move by eq. 4,
  Δc_j = Σ_i δ(y_i = j)(c_j − x_i) / (1 + Σ_i δ(y_i = j)), times `rate`, over the real examples of the global batch.

  Args:
    stage: the stage whose features are pulled together.
    rate: α of the paper.
  """

  def init(view: View, key: Array) -> dict:
    del key
    features = view.features(stage)
    return {'params': {}, 'stats': {'centres': jnp.zeros((view.output.shape[-1], features.shape[-1]), features.dtype)}}

  def apply(view: View, own: dict) -> tuple[Array, dict, dict]:
    features, centres = view.features(stage), own['stats']['centres']
    member = jax.nn.one_hot(view.labels, centres.shape[0], dtype=features.dtype) * view.mask[:, None]
    away = features - centres[view.labels]
    fixed = jax.lax.stop_gradient(away)
    towards = view.total(member.T @ -fixed) / (1 + view.total(member.sum(axis=0)))[:, None]
    return 0.5 * jnp.square(away).sum(axis=1), {}, {'centres': centres - rate * towards}

  return Term(init, apply, stages=(stage,), needs=('labels',))
