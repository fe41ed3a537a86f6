"""What matters to a trained network: the Fisher information of its weights, the attention its channels deserve.

Both are computed once, from the network and its training data, before a target is trained. Pure but for the loop over
the data; the terms that use them stand in staying_close.py.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from transferlab.data import preprocessing
from transferlab.data.loader import evaluation_batches
from transferlab.errors import unknown
from transferlab.networks.network import Network

Expectation = Literal['exact', 'sampled', 'empirical']
Task = Literal['classification', 'binary', 'regression']
NUMBERS = 2**25  # numbers in the gradients of the examples that are held at once


@dataclasses.dataclass(frozen=True)
class FisherChoice:
  """Over which labels Fisher information is taken, and on how many training examples (None: all)."""

  labels: Expectation = 'exact'
  examples: int | None = None


# ------------------------------------------------------------------------------------------------ Fisher information
def scores(
  output: Float[Array, ' outputs'], label: Array, key: Array, task: Task, labels: Expectation
) -> Float[Array, 'labels outputs']:
  """√p(y) ∂/∂z −log p(y | z) for every label y that counts, a row each, so that Σ rows ⊗ rows is their information.

  p is softmax(z) for classification, sigmoid(z) for binary, a Gaussian of mean z and variance 1 for regression.

  Args:
    output: z of one example.
    label: its own, used for 'empirical' only.
    key: what 'sampled' labels are drawn with.
  """
  if task == 'regression':
    if labels == 'exact':
      return jnp.eye(len(output), dtype=output.dtype)  # E[(z − y)(z − y)ᵀ] = 1
    error = jax.random.normal(key, output.shape, output.dtype) if labels == 'sampled' else output - label
    return error[None].astype(output.dtype)
  if task == 'binary':
    p = jax.nn.sigmoid(output)
    if labels == 'exact':
      return jnp.sqrt(p * (1 - p))[None]  # p (1 − p)² + (1 − p) p²
    drawn = jax.random.bernoulli(key, p) if labels == 'sampled' else label
    return (p - drawn)[None].astype(output.dtype)
  p, one = jax.nn.softmax(output), jnp.eye(len(output), dtype=output.dtype)
  if labels == 'exact':
    return jnp.sqrt(p)[:, None] * (p - one)
  return (p - one[jax.random.categorical(key, output) if labels == 'sampled' else label])[None]


@functools.lru_cache(maxsize=16)
def _information(network: Network, task: Task, labels: Expectation) -> Any:
  """Compiled: the squared gradients of a chunk of examples, summed over the real ones."""

  def of_example(params: Any, stats: Any, x: Array, label: Array, key: Array) -> Any:
    def output(params: Any) -> Array:
      outputs, _ = network.apply({'params': params, 'stats': stats}, x[None])
      return outputs[network.stages[-1]][0].reshape(-1)

    value, pull = jax.vjp(output, params)
    add = lambda sums, row: (jax.tree.map(lambda s, g: s + jnp.square(g), sums, pull(row)[0]), None)
    rows = scores(value, label, key, task, labels)
    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), rows)[0]

  def of_chunk(variables: Any, record: Any, x: Array, label: Array, places: Array, mask: Array, seed: Array) -> Any:
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), places)
    inputs = preprocessing.apply(x, record['shift'], record['scale'])
    each = jax.vmap(of_example, in_axes=(None, None, 0, 0, 0))(
      variables['params'], variables['stats'], inputs, label, keys
    )
    return jax.tree.map(lambda leaf: jnp.tensordot(mask.astype(leaf.dtype), leaf, 1), each)

  return jax.jit(of_chunk)


def fisher(
  network: Network,
  variables: Mapping[str, Any],
  record: Mapping[str, Any],
  x: Any,
  label: np.ndarray,
  *,
  task: Task,
  labels: Expectation = 'exact',
  seed: int = 0,
  chunk: int | None = None,
) -> dict[str, Any]:
  """The diagonal of the Fisher information, F_i = E_x E_y (∂ log p(y | x, θ) / ∂θ_i)²: a tree like the parameters.

  The F of Kirkpatrick et al. 2017, eq. 3. It is the mean over the examples, the network in evaluation mode. 'exact' and
  'sampled' take y as the network itself predicts it, which is Fisher information; 'empirical' takes the labels given,
  which is not, unless the network predicts them well (Kunstner, Balles and Hennig 2019).

  Args:
    variables: of the network, at the weights θ*.
    record: arrays 'shift' and 'scale' of the preprocessing.
    x: [examples, …], not yet preprocessed.
    label: [examples] class numbers, or [examples, targets] for regression.
    labels: 'exact' sums over all labels (a backward pass for each class), 'sampled' draws one for each example.
    seed: of what is sampled.
    chunk: examples whose gradients are held at once, each as large as the parameters; None: as many as `NUMBERS` allow.
  """
  size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(network.shapes()['params']))
  compiled, rows = _information(network, task, labels), min(chunk or max(1, min(64, NUMBERS // size)), len(x))
  total: Any = None
  for part, mask in evaluation_batches(len(x), rows):
    pad = lambda values, real=part.stop - part.start: np.pad(values, [(0, rows - real)] + [(0, 0)] * (values.ndim - 1))
    places = np.arange(part.start, part.start + rows)
    given = (pad(np.asarray(x[part])), pad(np.asarray(label[part])), places, mask)
    added = compiled({k: variables[k] for k in ('params', 'stats')}, dict(record), *given, np.uint32(seed))
    total = added if total is None else jax.tree.map(jnp.add, total, added)
  return jax.tree.map(lambda leaf: leaf / len(x), total)


# ------------------------------------------------------------------------------------------- attention of channels
@functools.lru_cache(maxsize=16)
def _increases(network: Network, stage: str) -> Any:
  """Compiled: (Σ over real examples of the loss without each channel minus the loss with all of them)."""
  following = network.stages[network.stages.index(stage) + 1]

  def losses(variables: Any, value: Any, label: Array) -> Array:
    outputs, _ = network.apply(variables, value, start=following)
    logits = outputs[network.stages[-1]]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=-1)[:, 0]

  def increases(variables: Any, record: Any, x: Array, label: Array, mask: Array) -> Array:
    outputs, _ = network.apply(variables, preprocessing.apply(x, record['shift'], record['scale']), stop=following)
    value = outputs[stage]
    features = value['x'] if isinstance(value, Mapping) else value
    whole = losses(variables, value, label)

    def without(channel: Array) -> Array:
      left = jnp.where(jnp.arange(features.shape[-1]) == channel, 0, features)
      removed = {**value, 'x': left} if isinstance(value, Mapping) else left
      return jnp.where(mask, losses(variables, removed, label) - whole, 0).sum()

    return jax.lax.map(without, jnp.arange(features.shape[-1]))

  return jax.jit(increases)


def channel_attention(
  network: Network,
  variables: Mapping[str, Any],
  record: Mapping[str, Any],
  x: Any,
  label: np.ndarray,
  stages: Sequence[str],
  *,
  chunk: int = 256,
) -> dict[str, list[float]]:
  """W_j = softmax_j(L(w⁰ without channel j) − L(w⁰)) for the channels of some stages: what `delta` takes as attention.

  (Li et al. 2019, DELTA, section 3: the weights of the behavioural regulariser.) L is the mean cross-entropy of the
  source's features under a head for the target's labels, which the paper trains first with all else frozen
  (train='head'). Without channel j: the stage's outputs of this channel are zero.

  Args:
    variables: of the network, with that head.
    record: arrays 'shift' and 'scale' of the preprocessing.
    x, label: training examples [examples, …], not yet preprocessed, and their class numbers.

  Returns:
    Weights that sum to one, by stage: plain numbers, for a config.

  Raises:
    UserError: no such stage, or the head, which nothing follows.
  """
  found = {}
  for stage in stages:
    if stage not in network.stages[:-1]:
      raise unknown('stage', stage, network.stages[:-1])
    total, rows = np.zeros(()), min(chunk, len(x))
    for part, mask in evaluation_batches(len(x), rows):
      missing = rows - (part.stop - part.start)
      pad = lambda values, missing=missing: np.pad(values, [(0, missing)] + [(0, 0)] * (values.ndim - 1))
      given = pad(np.asarray(x[part])), pad(np.asarray(label[part])), mask
      total = total + np.asarray(_increases(network, stage)(dict(variables), dict(record), *given), np.float64)
    powers = np.exp(total / len(x) - np.max(total / len(x)))
    found[stage] = (powers / powers.sum()).tolist()
  return found
