"""Transformations of parameters before they are applied: one named hook between the trees of parameters and `apply`.

They act in training steps only, on what the optimizer may move; evaluation, terms and checkpoints see the parameters
as they are. Each is a pure function of one leaf; its key comes from the run's key, the step, and the leaf's path.
"""

import dataclasses
import inspect
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transferlab import config, paths
from transferlab.config import Share
from transferlab.errors import UserError, unknown
from transferlab.training.phases import Transform

# name in a config -> the module that holds the function of that name
TRANSFORMS = {'mixout': 'transferlab.training.transforms', 'weight_drop': 'transferlab.training.transforms'}
ARGUMENTS = ('weights', 'source', 'key')


@dataclasses.dataclass(frozen=True, eq=False)
class Transformation:
  """A transformation made concrete for one phase.

  Attributes:
    function: `function(**arguments) -> weights`, arguments by name out of `ARGUMENTS`.
    arguments: those it takes; with 'source' it skips leaves that the transplant did not give.
    selected: the paths it acts on.
  """

  name: str
  function: Callable[..., Array]
  arguments: tuple[str, ...]
  selected: tuple[str, ...]


def mixout(
  weights: Float[Array, ' ...'], source: Float[Array, ' ...'], key: Array, *, p: Share
) -> Float[Array, ' ...']:
  """(M w⁰ + (1 − M) w − p w⁰) / (1 − p), M ~ Bernoulli(p) for each weight (Lee, Cho and Kang 2020, eqs. 5 and 6).

  Each weight is replaced by the source's with probability p, and the rest moved away from it so that the mean stays w.
  It is written as w⁰ + (1 − M) (w − w⁰) / (1 − p), the same in exact arithmetic, which gives w⁰ itself where w = w⁰.

  Args:
    weights, source: w and w⁰.
    key: draws M.
    p: probability of the source's weight.
  """
  kept = jax.random.bernoulli(key, 1 - p, weights.shape)
  return source + jnp.where(kept, (weights - source) / (1 - p), 0)


def weight_drop(weights: Float[Array, ' ...'], key: Array, *, p: Share) -> Float[Array, ' ...']:
  """M w / (1 − p), M ~ Bernoulli(1 − p) for each weight (DropConnect, Wan et al. 2013), one M for all of a batch.

  On the recurrent weights of an LSTM, pattern 'lstm.*/forward/recurrent': AWD-LSTM (Merity et al. 2018, section 2).

  Args:
    weights: w.
    key: draws M.
    p: probability of a zero.
  """
  return jnp.where(jax.random.bernoulli(key, 1 - p, weights.shape), weights / (1 - p), 0)


def build(specs: Sequence[Transform], trainable: Collection[str], stages: Sequence[str], leaves: Sequence[str],
          where: str) -> tuple[Transformation, ...]:  # fmt: skip
  """The transformations that a phase names, in order.

  Args:
    trainable: the paths that the optimizer may move.
    stages, leaves: all of the network, for error messages.

  Raises:
    UserError: no such transformation, an option it does not take, or a pattern that selects nothing that trains.
  """
  made = []
  network = [path for path in leaves if not path.startswith(paths.TERMS)]
  for number, spec in enumerate(specs):
    place = f'{where}.transform.{number}'
    function = transform_function(spec.name)
    options = config.check_options(function, spec.model_extra or {}, f'{place}: {spec.name}')
    parameters = inspect.signature(function).parameters.values()
    arguments = tuple(p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY)
    if strange := next((name for name in arguments if name not in ARGUMENTS), None):
      raise unknown(f'transform {spec.name!r}: argument', strange, ARGUMENTS)
    selected = paths.select(spec.pattern, network, what=f'{place}.pattern', stages=stages)
    moving = tuple(path for path in selected if path in trainable)
    if not moving:
      raise UserError(f'{place}.pattern: nothing that {spec.pattern!r} selects trains in this phase')
    made.append(Transformation(spec.name, _with(function, options), arguments, moving))
  return tuple(made)


def _with(function: Callable[..., Array], options: Mapping[str, Any]) -> Callable[..., Array]:
  return lambda **arguments: function(**arguments, **options)


def transform_function(name: str) -> Callable[..., Array]:
  """The function behind a name: a key of `TRANSFORMS`, or `module.path.function` of one's own."""
  return config.named('transform', name, TRANSFORMS)


def apply(made: Sequence[Transformation], params: Mapping[str, Any], source: Any, key: Array) -> dict[str, Any]:
  """The parameters as the network is to see them in one training step.

  Args:
    source: what the transplant gave, None where it gave nothing; None without a transplant.
    key: of the step; every leaf's is folded from it with a number of its path, whatever else is transformed.
  """
  flat, given = paths.flatten(params), paths.flatten(source or {})
  for number, transformation in enumerate(made):
    mine = jax.random.fold_in(key, number)
    for path in transformation.selected:
      if 'source' in transformation.arguments and given.get(path) is None:
        continue
      values = {
        'weights': flat[path],
        'source': given.get(path),
        'key': jax.random.fold_in(mine, zlib.crc32(path.encode())),
      }
      flat[path] = transformation.function(**{name: values[name] for name in transformation.arguments})
  return paths.unflatten(flat)
