"""Texts from a language model: greedy, at a temperature, from the k likeliest tokens, or from the nucleus. Pure."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import pydantic
from jax import lax
from jaxtyping import Array, Float, Int

from transferlab.config import Positive, Schema, Seed
from transferlab.errors import UserError
from transferlab.networks.network import Network


class Sampling(Schema):
  """How a text goes on."""

  length: Positive = pydantic.Field(200, description='tokens to add')
  temperature: float = pydantic.Field(
    1.0, ge=0, le=1e3, description='logits are divided by it; 0: the likeliest token, always'
  )
  top_k: Positive | None = pydantic.Field(None, description='only the k likeliest tokens (Fan et al. 2018)')
  top_p: float | None = pydantic.Field(
    None, gt=0, le=1, description='only the fewest tokens that have this probability together (Holtzman et al. 2020)'
  )
  seed: Seed = pydantic.Field(0, description='draws the tokens')


def restricted(
  logits: Float[Array, '*batch tokens'], temperature: float, top_k: int | None = None, top_p: float | None = None
) -> Float[Array, '*batch tokens']:
  """Logits at a temperature > 0, minus infinity for tokens outside the k likeliest and outside the nucleus.

  The nucleus is taken of what temperature and k leave. The likeliest token is always left; of equally likely ones that
  with the smaller number counts as the likelier.
  """
  logits = (logits - logits.max(axis=-1, keepdims=True)) / max(temperature, 1e-30)  # finite at the smallest
  order = jnp.argsort(-logits, axis=-1, stable=True)
  place = jnp.argsort(order, axis=-1)  # of each token among the likeliest
  if top_k is not None:
    logits = jnp.where(place < top_k, logits, -jnp.inf)
  if top_p is not None:
    likeliest = jnp.take_along_axis(jax.nn.softmax(logits), order, axis=-1)
    before = jnp.cumsum(likeliest, axis=-1) - likeliest
    logits = jnp.where(jnp.take_along_axis(before, place, axis=-1) < top_p, logits, -jnp.inf)
  return logits


def sample(
  network: Network, variables: Mapping[str, Any], prompt: Int[Array, ' tokens'], how: Sampling
) -> Int[Array, ' length']:
  """The tokens that follow a prompt of at least one token, from what the network keeps of all before.

  Raises:
    UserError: the network has learned positions for fewer tokens, or is none that goes on with a text.
  """
  if network.cache is None and network.carry is None:
    raise UserError("this network does not go on with a text; nearest: lstm, gru, decoder, with pool='none'")
  _check_length(network.positions, len(prompt), how.length)
  return _sampler(network, how.model_copy(update={'seed': 0}).model_dump_json())(
    variables, jnp.asarray(prompt, jnp.int32)[None], jax.random.key(how.seed)
  )


def _check_length(positions: int | None, prompt: int, length: int) -> None:
  if positions is None or prompt + length <= positions:
    return
  what = f'the prompt has {prompt:,} tokens, {length:,} are to follow, and the network has {positions:,} positions'
  way = f'length={positions - prompt}' if prompt < positions else f'a prompt of {max(positions - length, 1)} tokens'
  raise UserError(f'sampling: {what}; nearest: {way}')


@functools.lru_cache(maxsize=16)
def _sampler(network: Network, how: str) -> Any:
  settings = Sampling.model_validate_json(how)

  def read(variables: Any, tokens: Array, carry: Any) -> tuple[Array, Any]:
    """(logits behind the last token, what is remembered)."""
    outputs, _ = network.apply(variables, {'x': tokens, 'carry': carry})
    return outputs[network.stages[-1]][0, -1], outputs[network.stages[-2]]['carry']

  def chosen(logits: Array, key: Array) -> Array:
    if settings.temperature == 0:
      return logits.argmax().astype(jnp.int32)
    left = restricted(logits, settings.temperature, settings.top_k, settings.top_p)
    return jax.random.categorical(key, left).astype(jnp.int32)

  def run(variables: Any, prompt: Array, key: Array) -> Array:
    def step(state: tuple[Array, Any], key: Array) -> tuple[tuple[Array, Any], Array]:
      token = chosen(state[0], key)
      return read(variables, token[None, None], state[1]), token

    if network.cache is not None:
      begin = network.cache(1, prompt.shape[1] + settings.length)
    else:
      assert network.carry is not None
      begin = network.carry(1)
    start = read(variables, prompt, begin)
    return lax.scan(step, start, jax.random.split(key, settings.length))[1]

  return jax.jit(run)
