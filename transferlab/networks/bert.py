"""Encoders of texts: BERT (Devlin et al. 2019), DistilBERT (Sanh et al. 2019) and RoBERTa (Liu et al. 2019), as
classifiers: embed, block1, …, blockN, pool, head.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from pydantic import Field

from transferlab.config import Positive, Share
from transferlab.networks import layers, sequences
from transferlab.networks.network import Network, network
from transferlab.networks.residual import linear_rate
from transferlab.networks.transformer import EMBED, NORMAL, Activation, Block, Embeddings, check_texts, layer_norm

Pool = Literal['class', 'mean', 'max', 'last']
Pooler = Literal['tanh', 'relu', 'none']
Epsilon = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=0, le=2**20)]
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {'tanh': jnp.tanh, 'relu': nnx.relu}


class Pooled(nnx.Module):
  """One vector for each example: its first real place ('class', where [CLS] stands), or as `sequences.pooled`; through
  a dense layer with an activation, where there is one, and dropout.
  """

  def __init__(self, width: int, pool: Pool, pooler: Pooler, dropout: float, rngs: nnx.Rngs):
    self.pool, self.pooler, self.dropout = pool, pooler, layers.Dropout(dropout)
    self.dense = None if pooler == 'none' else nnx.Linear(width, width, kernel_init=NORMAL, rngs=rngs)

  def __call__(self, value: sequences.Sequence_) -> Float[Array, 'batch width']:
    x, mask = value['x'], value['mask']
    if self.pool == 'class':
      pooled = sequences.pooled(x[:, ::-1], mask[:, ::-1], 'last')
    else:
      pooled = sequences.pooled(x, mask, self.pool)
    return self.dropout(pooled if self.dense is None else ACTIVATIONS[self.pooler](self.dense(pooled)))


def bert(
  input_shape: tuple[int, ...],
  outputs: int | dict[str, int],
  *,
  vocabulary: Positive,
  width: Positive = 768,
  depth: Positive = 12,
  heads: Positive = 12,
  hidden: Positive | None = None,
  positions: Positive = 512,
  first: Count = 0,
  kinds: Count = 2,
  epsilon: Epsilon = 1e-12,
  activation: Activation = 'gelu',
  pool: Pool = 'class',
  pooler: Pooler = 'tanh',
  dropout: Share = 0.1,
  attention_dropout: Share = 0.1,
  stochastic_depth: Share = 0.0,
  explicit: bool = False,
) -> Network:
  """An encoder of texts whose places see one another in both directions, as a classifier.

  Args:
    vocabulary: numbers of tokens; filled in from the data.
    width: features of each token.
    depth: blocks; heads: of attention, in each; hidden: features between the two layers behind it, None: 4 · width.
    positions: rows of the table of positions; first: the row of a text's first token (0 in BERT, 2 in RoBERTa).
    kinds: of texts (2 in BERT, 1 in RoBERTa, 0 in DistilBERT); all are of the first.
    epsilon: of layer normalisation, which stands behind each shortcut.
    pool: what the head sees of a text: its first token, the mean, the maximum or the last token; pooler: the activation
      of a dense layer behind it (tanh in BERT and RoBERTa, relu in DistilBERT), or 'none' of it.
    dropout: of embeddings, of what is added at each shortcut, and of what the head sees.
    attention_dropout: of attention weights.
    stochastic_depth: share of examples in which a branch of the last block is left out; it rises up to there.
    explicit: blocks give their attention weights, too, under 'attention' [batch, heads, places, places].

  Raises:
    UserError: no texts, longer ones than there are positions, or heads that do not divide the width.
  """
  check_texts('bert', input_shape, width, heads, None, max(positions - first, 0))
  norm = lambda rngs: functools.partial(layer_norm, width, rngs, epsilon)
  looking = {'dropout': attention_dropout, 'explicit': explicit}

  def create(rngs: nnx.Rngs) -> dict:
    made = Embeddings(
      vocabulary, width, rngs, positions=positions, first=first, kinds=kinds, norm=norm(rngs), dropout=dropout
    )
    stages: dict[str, Callable] = {EMBED: made}
    for number in range(1, depth + 1):
      rate = linear_rate(stochastic_depth, number - 1, depth)
      stages[f'block{number}'] = Block(
        f'block{number}', width, heads, hidden or 4 * width, rngs, norm=norm(rngs), behind=True, attention=looking,
        mlp={'activation': activation}, dropout=dropout, stochastic_depth=rate,
      )  # fmt: skip
    stages['pool'] = Pooled(width, pool, pooler, dropout, rngs)
    linear = functools.partial(nnx.Linear, kernel_init=NORMAL)
    return {**stages, 'head': layers.head(width, outputs, rngs, linear)}

  return dataclasses.replace(network(create), dtype=jnp.int32, positions=positions - first)
