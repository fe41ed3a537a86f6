"""Decoders of texts: GPT-2 (Radford et al. 2019) and LLaMA (Touvron et al. 2023), as language models and classifiers:
embed, block1, …, blockN, norm, head; classifiers have a pool before their head. The text towers of CLIP (Radford et al.
2021) and SigLIP (Zhai et al. 2023) are classifiers of this form, whose answers are embeddings.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array
from pydantic import Field

from transferlab.config import Positive, Share
from transferlab.errors import UserError
from transferlab.networks import layers
from transferlab.networks.network import Network, network
from transferlab.networks.recurrent import EveryPlace, Pooled
from transferlab.networks.residual import linear_rate
from transferlab.networks.transformer import (
  EMBED,
  NORMAL,
  Activation,
  Block,
  Embeddings,
  check_texts,
  layer_norm,
  turns,
)

WHERE = "network 'decoder'"
Epsilon = Annotated[float, Field(gt=0, le=1)]
Factor = Annotated[float, Field(ge=1, le=1e9)]
Base = Annotated[float, Field(gt=1, le=1e12)]


class Normed(nnx.Module):
  """Normalisation of what stands under 'x'; padding stays 0."""

  def __init__(self, layer: nnx.Module):
    self.layer = layer

  def __call__(self, value: dict[str, Any]) -> dict[str, Any]:
    return {**value, 'x': jnp.where(value['mask'][..., None], self.layer(value['x']), 0)}  # type: ignore[operator]


def decoder(
  input_shape: tuple[int, ...],
  outputs: int | dict[str, int],
  *,
  vocabulary: Positive,
  width: Positive = 768,
  depth: Positive = 12,
  heads: Positive = 12,
  groups: Positive | None = None,
  hidden: Positive | None = None,
  positions: Positive | None = 1024,
  rotary: Base | None = None,
  rotary_factor: Factor = 1.0,
  rotary_bands: Annotated[list[Factor], Field(min_length=3, max_length=3)] | None = None,
  norm: Literal['layer', 'rms'] = 'layer',
  epsilon: Epsilon = 1e-5,
  activation: Activation = 'gelu_tanh',
  gated: bool = False,
  biases: bool = True,
  causal: bool = True,
  head_bias: bool = False,
  pool: Literal['last', 'mean', 'max', 'none'] = 'last',
  tied: bool = True,
  dropout: Share = 0.0,
  attention_dropout: Share = 0.0,
  stochastic_depth: Share = 0.0,
  explicit: bool = False,
) -> Network:
  """A transformer whose places see none behind them. As they stand the options are GPT-2's; LLaMA's are positions=None,
  rotary=1e4, norm='rms', activation='silu', gated=True, biases=False, tied=False.

  Args:
    vocabulary: numbers of tokens; filled in from the data.
    width: features of each token.
    depth: blocks; heads: of attention, in each; groups: of keys and values, which heads share, None: one for each head.
    hidden: features between the two layers behind attention; None: 4 · width.
    positions: that are learned; rotary: the base of rotary ones. None: without.
    rotary_factor, rotary_bands: for texts so many times longer, and which features it is for (see `turns`).
    norm: layer normalisation, or that by the root of the mean square (Zhang and Sennrich 2019); epsilon: its.
    gated: the layers behind attention are down(act(x G) · x U) (Shazeer 2020).
    biases: of all layers but the head; head_bias: of the head.
    causal: places see none behind them; a language model's never do.
    pool: what the head of a classifier sees of a text: its last token, the mean or the maximum; 'none': a language
      model, with logits at every place.
    tied: a language model's head has the embedding for weights.
    dropout: of embeddings, of what is added at each shortcut, and of what a classifier's head sees.
    attention_dropout: of attention weights.
    stochastic_depth: share of examples in which a branch of the last block is left out; it rises up to there.
    explicit: blocks give their attention weights, too, under 'attention' [batch, heads, places, keys].

  Raises:
    UserError: no texts, longer ones than there are positions, heads or groups that do not divide, rotary positions of
      an odd number of features or whose bands do not grow; a language model for something else than one next token,
      that sees what comes, or whose head has a bias.
  """
  places = pool == 'none'
  bands = None if rotary_bands is None else (rotary_bands[0], rotary_bands[1], rotary_bands[2])
  check_texts('decoder', input_shape, width, heads, groups, positions)
  _check(width // heads, rotary, rotary_factor, rotary_bands)
  if places:
    _check_language(outputs, vocabulary, tied, causal, head_bias)

  def create(rngs: nnx.Rngs) -> dict:
    made = layer_norm if norm == 'layer' else _rms_norm
    normalisation = functools.partial(made, width, rngs, epsilon)
    embed = Embeddings(vocabulary, width, rngs, positions=positions, dropout=dropout)
    angles = None if rotary is None else turns(width // heads, rotary, rotary_factor, bands)
    looking = {'groups': groups, 'biases': biases, 'out_bias': biases, 'causal': causal, 'rotary': angles}
    stages: dict[str, Callable] = {EMBED: embed}
    for number in range(1, depth + 1):
      rate = linear_rate(stochastic_depth, number - 1, depth)
      stages[f'block{number}'] = Block(
        f'block{number}', width, heads, hidden or 4 * width, rngs, norm=normalisation,
        attention={**looking, 'dropout': attention_dropout, 'explicit': explicit},
        mlp={'activation': activation, 'biases': biases, 'gated': gated}, dropout=dropout, stochastic_depth=rate,
      )  # fmt: skip
    stages['norm'] = Normed(normalisation())
    if places:
      assert isinstance(outputs, int)
      return {**stages, 'head': EveryPlace(width, outputs, 0.0, rngs, embed.embedding if tied else None, bias=False)}
    linear = functools.partial(nnx.Linear, use_bias=head_bias, kernel_init=NORMAL)
    stages['pool'] = Pooled(pool, dropout)  # type: ignore[arg-type]
    return {**stages, 'head': layers.head(width, outputs, rngs, linear)}

  cache = functools.partial(_cache, depth, groups or heads, width // heads) if places else None
  return dataclasses.replace(network(create), dtype=jnp.int32, cache=cache, positions=positions)


def _cache(depth: int, groups: int, size: int, batch: int, length: int) -> dict[str, dict[str, Array]]:
  """Room for the keys and values of `length` tokens in every block, and how many tokens there are: none yet."""
  zeros = lambda: jnp.zeros((batch, length, groups, size))
  blocks = {f'block{number}': {'key': zeros(), 'value': zeros()} for number in range(1, depth + 1)}
  return {EMBED: {'before': jnp.zeros(batch, jnp.int32)}, **blocks}


def _rms_norm(width: int, rngs: nnx.Rngs, epsilon: float) -> nnx.RMSNorm:
  return nnx.RMSNorm(width, epsilon=epsilon, rngs=rngs)


def _check(size: int, rotary: float | None, factor: float, bands: list[float] | None) -> None:
  if rotary is None and (factor != 1 or bands is not None):
    raise UserError(f'{WHERE}: rotary_factor and rotary_bands are of rotary positions; nearest: rotary=10000.0')
  if rotary is not None and size % 2:
    raise UserError(f'{WHERE}: rotary turns pairs of features, and each head has {size}; nearest: fewer heads')
  if bands is not None and bands[0] >= bands[1]:
    raise UserError(f'{WHERE}: rotary_bands={bands} are (low, high, length), low below high; nearest: [1, 4, 8192]')


def _check_language(outputs: int | dict[str, int], vocabulary: int, tied: bool, causal: bool, head_bias: bool) -> None:
  if not isinstance(outputs, int):
    raise UserError(f"{WHERE}: pool='none' answers at every place, for one task; nearest: pool='last'")
  if not causal:
    raise UserError(f"{WHERE}: pool='none' foretells tokens that causal=False lets it see; nearest: pool='last'")
  if head_bias:
    raise UserError(f"{WHERE}: the head of a language model has no bias; nearest: head_bias=False, or pool='last'")
  if tied and outputs != vocabulary:
    what = f'tied answers with one of {vocabulary:,} tokens, and the labels are {outputs} classes'
    raise UserError(f"{WHERE}: {what}; nearest: data.task='next_token', or pool='last'")
