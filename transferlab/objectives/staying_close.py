"""Terms that keep a network close to its source: its features, its spectrum, its important weights, its answers.

Pure functions of arrays, and the terms made of them. What matters to the source (Fisher information, attention of
channels) is computed in importance.py; L2-SP stands in regularization.py, mixout in training/transforms.py.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import pydantic
from jaxtyping import Array, Bool, Float

from transferlab.config import Positive, Rate
from transferlab.errors import UserError, unknown
from transferlab.objectives.importance import Expectation, FisherChoice
from transferlab.objectives.objective import Term, View, array, nothing

Temperature = Annotated[float, pydantic.Field(gt=0, le=1e6)]


# ----------------------------------------------------------------------------------------------------------- DELTA
def feature_distance(
  features: Float[Array, 'batch ... channels'],
  reference: Float[Array, 'batch ... channels'],
  attention: Float[Array, ' channels'],
) -> Float[Array, ' batch']:
  """Σ_j W_j ‖FM_j(w) − FM_j(w⁰)‖² over the channels j of one stage, summed over places."""
  squared = jnp.square(features - reference)
  return squared.sum(axis=tuple(range(1, squared.ndim - 1))) @ attention


def delta(
  outputs: Mapping[str, Any],
  source_outputs: Mapping[str, Any],
  params: dict,
  source: dict,
  *,
  stages: Annotated[list[str], pydantic.Field(min_length=1)],
  attention: dict[str, list[float]] = {},  # noqa: B006 (never changed)
  beta: Rate = 0.0,
) -> Float[Array, ' batch']:
  """Σ_stages Σ_j W_j ‖FM_j(w) − FM_j(w⁰)‖² + β ‖w̄‖² (Li et al. 2019, DELTA, section 3: Ω' and Ω'').

  FM_j are feature maps of the network and of its source on the same input, w̄ the parameters that the transplant did
  not give. The paper's α is the term's weight.

  Args:
    outputs, source_outputs: values by stage, of both networks.
    params, source: the network's parameters, and what the transplant gave (None where it gave nothing).
    stages: the stages whose outputs are compared.
    attention: the channels' weights W by stage (`importance.channel_attention`); W_j = 1 / channels where none are
      given, which is their value where every channel matters alike.

  Raises:
    UserError: attention of a stage that is not compared, or a weight too many or too few; a stage that the source does
      not have, or whose outputs have another shape there.
  """
  if strange := next((stage for stage in attention if stage not in stages), None):
    raise unknown('delta: attention of stage', strange, stages)
  total = beta * _squared_new(params, source)
  for stage in stages:
    mine, theirs = (array(values, stage, 'delta: stage') for values in (outputs, source_outputs))
    if mine.shape != theirs.shape:
      raise UserError(
        f'delta: stage {stage!r} has outputs {list(mine.shape[1:])}, in the source {list(theirs.shape[1:])}'
      )
    total = total + feature_distance(mine, theirs, _weights(stage, attention, mine))
  return total


def _weights(stage: str, attention: Mapping[str, list[float]], features: Array) -> Float[Array, ' channels']:
  """The attention of a stage's channels, the same for each where none is given."""
  channels = features.shape[-1]
  weights = attention.get(stage) or [1 / channels] * channels
  if len(weights) != channels:
    raise UserError(f'delta: attention of stage {stage!r} has {len(weights)} weights for {channels} channels')
  return jnp.asarray(weights, features.dtype)


def _squared_new(params: dict, source: dict) -> Float[Array, '']:
  """‖w̄‖² of the parameters that the transplant did not give."""
  squares = jax.tree.map(
    lambda start, leaf: jnp.square(leaf).sum() if start is None else None,
    source,
    params,
    is_leaf=lambda leaf: leaf is None,
  )
  return sum(jax.tree.leaves(squares), jnp.zeros(()))


# ------------------------------------------------------------------------------------------ batch spectral shrinkage
def spectral_shrinkage(
  features: Float[Array, 'batch features'], mask: Bool[Array, ' batch'], *, k: int
) -> Float[Array, '']:
  """Σ_{i=1..k} σ_{−i}²: the k smallest singular values of the real examples' features, squared.

  (Chen et al. 2019, eqs. 3 and 4.) Rows of padding are zeroed. They add singular values that are zero, which are
  passed over: of n real examples with d features there are min(n, d). All of them count where k is more.
  """
  values = jnp.linalg.svd(jnp.where(mask[:, None], features, 0), compute_uv=False)  # the largest first
  real = jnp.minimum(mask.sum(), features.shape[1])
  place = jnp.arange(len(values))
  return jnp.where((place < real) & (place >= real - k), jnp.square(values), 0).sum()


def batch_spectral_shrinkage(*, stage: str, k: Positive = 1) -> Term:
  """Σ_{i=1..k} σ_{−i}² of the batch's features (Chen et al. 2019, eq. 4): suppresses what transfers badly.

  The paper's η is the term's weight; it takes k = 1 and η = 0.001. It couples the examples of a batch.

  Args:
    stage: the stage whose outputs are the features, averaged over places; the paper takes the one before the head.
    k: how many singular values, the smallest first.
  """

  def apply(view: View, own: dict) -> tuple[Array, dict, dict]:
    del own
    return spectral_shrinkage(view.features(stage), view.mask, k=k), {}, {}

  return Term(nothing, apply, stages=(stage,), couples=True)


# ------------------------------------------------------------------------------------- elastic weight consolidation
def quadratic_penalty(params: dict, source: dict, fisher: dict) -> Float[Array, '']:
  """Σ_i ½ F_i (θ_i − θ*_i)² over the parameters that the transplant gave (Kirkpatrick et al. 2017, eq. 3, λ = 1).

  Args:
    params: the network's parameters θ.
    source, fisher: trees of the same structure with θ* and F, None where the transplant gave nothing.
  """
  penalties = jax.tree.map(
    lambda start, leaf, weight: None if start is None else 0.5 * (weight * jnp.square(leaf - start)).sum(),
    source,
    params,
    fisher,
    is_leaf=lambda leaf: leaf is None,
  )
  return sum(jax.tree.leaves(penalties), jnp.zeros(()))


def ewc(*, labels: Expectation = 'exact', examples: Positive | None = None) -> Term:
  """Σ_i ½ F_i (θ_i − θ*_i)², elastic weight consolidation (Kirkpatrick et al. 2017, eq. 3); λ is the term's weight.

  F is the diagonal of the Fisher information at the source's weights, on the source's training data
  (`importance.fisher`).

  Args:
    labels: over which labels: 'exact' or 'sampled' from what the source predicts; 'empirical': those of its data.
    examples: how many of the source's training examples, drawn by the run's seed; None: all.
  """

  def apply(view: View, own: dict) -> tuple[Array, dict, dict]:
    del own
    return quadratic_penalty(view.params, view.source, view.fisher), {}, {}

  return Term(nothing, apply, needs=('source', 'fisher'), fisher=FisherChoice(labels, examples))


# ------------------------------------------------------------------------------------- learning without forgetting
def softened_cross_entropy(
  logits: Float[Array, 'batch classes'], recorded: Float[Array, 'batch classes'], *, temperature: float
) -> Float[Array, ' batch']:
  """−Σ_i y'_i log ŷ'_i (Li and Hoiem 2016, eq. 2) of probabilities softened as y^(1/T) / Σ_j y_j^(1/T) (eq. 3).

  Args:
    logits: of ŷ, what is learnt; one column stands for the two classes of a sigmoid.
    recorded: of y, what is to be kept.
    temperature: T.
  """
  if logits.shape[-1] == 1:
    logits, recorded = (jnp.concatenate([jnp.zeros_like(z), z], axis=-1) for z in (logits, recorded))
  kept = jax.nn.softmax(recorded / temperature)  # y^(1/T) / Σ y^(1/T) for y = softmax(z) is softmax(z / T)
  return -(kept * jax.nn.log_softmax(logits / temperature)).sum(axis=-1)


def learning_without_forgetting(*, temperature: Temperature = 2.0) -> Term:
  """−Σ y' log ŷ' between what the source answers and an old head on the new features (Li and Hoiem 2016, eqs. 1 to 3).

  Eq. 1 is the loss on the new labels, a term of its own; the paper's λ_o is the weight of this one. There is no factor
  T² in the paper, and none here. The source's answers on the new data, which the paper records before training, are
  computed on the way, so that they are those of the images as augmentation changed them. The old head starts as the
  source's and is trained jointly: its parameters are the term's own, `terms/learning_without_forgetting/…`.

  Args:
    temperature: T of eq. 3.
  """

  def init(view: View, key: Array) -> dict:
    del key
    assert view.source_head is not None
    return {'params': view.source_head.params, 'stats': {}}

  def apply(view: View, own: dict) -> tuple[Array, dict, dict]:
    assert view.source_head is not None
    logits = view.source_head.apply(own['params'])
    return softened_cross_entropy(logits, view.source_head.logits, temperature=temperature), {}, {}

  return Term(init, apply, needs=('source_outputs', 'source_head'))
