"""What terms start from, and what they look at: both found by tracing them, before there are any examples."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from transferlab.errors import UserError
from transferlab.networks.network import Network
from transferlab.objectives import SOURCE
from transferlab.objectives.objective import Objective
from transferlab.training.step import TERM_START, Asked, Method, before_head, source_head
from transferlab.training.views import ByStage, view_of


def with_terms(
  network: Network,
  objectives: Sequence[Objective],
  variables: Mapping[str, Any],
  arrays: Mapping[str, Any],
  seed: int,
  asked: Sequence[Asked] = (),
  given: Mapping[str, Any] = {},
  examples: int | None = None,
) -> dict[str, Any]:
  """The variables with the parameters and state that terms start from: 'params', 'stats' and 'term_stats'.

  All terms of all phases are there from the start, so the structure is the same throughout a run.

  Args:
    arrays: 'x' and 'label' of the training split; shapes decide, not values.
    asked: the networks beside this one that terms look at.
    given: variables of the source's network, by its name, where a term starts from its head.
    examples: in training.
  """
  key = jax.random.fold_in(jax.random.key(seed), TERM_START)
  own: dict[str, dict] = {'params': {}, 'stats': {}}
  for objective in dict.fromkeys(objectives):
    if objective.plain:
      continue
    labels = jax.tree.map(lambda leaf: jnp.zeros((2, *leaf.shape[1:]), leaf.dtype), arrays['label'])
    x = jnp.zeros((2, *arrays['x'].shape[1:]), network.dtype)
    outputs, _ = network.apply(variables, x)
    batch = {'label': labels, 'mask': jnp.ones(2, bool)}
    further = _further(network, objective, asked, given, outputs, x, examples) | {'stats': variables['stats']}
    keys = jax.random.split(key, 2)
    view = functools.partial(
      view_of, network, outputs, batch, variables['params'], None, keys, jnp.zeros(()), lambda v: v, further=further
    )
    created = objective.init(view, key)
    own = {kind: {**created[kind], **own[kind]} for kind in own}
  params = {**variables['params'], **({'terms': own['params']} if own['params'] else {})}
  return {'params': params, 'stats': variables['stats'], 'term_stats': own['stats']}


def _further(
  network: Network,
  objective: Objective,
  asked: Sequence[Asked],
  given: Mapping[str, Any],
  outputs: Mapping[str, Any],
  x: Array,
  examples: int | None,
) -> dict[str, Any]:
  """What a view holds beside the network's own, before there are examples: zeros for what other networks would give."""
  of = {one.name: one for one in asked if one.name in objective.asked}
  theirs = {name: _blank(one.network, x) for name, one in of.items()}
  heads = {name: one.head for name, one in of.items()}
  further: dict[str, Any] = {'asked': theirs, 'heads': heads, 'inputs': x}
  if 'examples' in objective.needs:
    further |= {'rows': jnp.zeros(len(x), jnp.int32), 'examples': examples}
  if 'source_head' in objective.needs:
    value = before_head(network, outputs, x)
    further['source_head'] = source_head(of[SOURCE].network, given[SOURCE], value, theirs[SOURCE])
  return further


def _blank(network: Network, x: Array) -> dict[str, Any]:
  """Zeros in the shapes of what a network gives on x, by stage."""
  outputs, _ = jax.eval_shape(network.apply, network.shapes(), jax.ShapeDtypeStruct(x.shape, x.dtype))
  return {
    stage: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), value) for stage, value in outputs.items()
  }


class _Noted(ByStage):
  """Outputs by stage that remember which were looked at."""

  def __init__(self, outputs: Mapping[str, Any]):
    super().__init__(outputs)
    self.read = set[str]()

  def __getitem__(self, stage: str) -> Any:
    value = self.outputs[stage]
    self.read.add(stage)
    return value


def stages_read(
  method: Method, shapes: Mapping[str, Any], example: Mapping[str, Any]
) -> tuple[set[str], dict[str, set[str]]]:
  """The stages whose outputs an objective's terms look at: of the network, its head apart; and of each that is asked.

  Args:
    shapes: the network's variables as shapes.
    example: 'x' and 'label' of a batch of two, as shapes.

  Raises:
    UserError: what another network gives does not fit.
  """
  mine: list[_Noted] = []
  theirs: dict[str, _Noted] = {}

  def trace(variables: Any, batch: Any, given: Any) -> Any:
    network, objective, x = method.network, method.objective, batch['x']
    full = with_terms(network, [objective], variables, batch, 0, method.asked, given, method.examples)
    outputs, _ = network.apply(variables, x)
    further = _further(network, objective, method.asked, given, outputs, x, method.examples)
    mine.append(_Noted(outputs))
    theirs.update({name: _Noted(own) for name, own in further['asked'].items()})
    further |= {'asked': theirs, 'fisher': variables['params'], 'stats': variables['stats']}
    further['again'] = lambda params, stats: network.apply({'params': params, 'stats': stats}, x)[0]
    seen = {'label': batch['label'], 'mask': jnp.ones(2, bool)}
    keys = jax.random.split(jax.random.key(0), 2)
    params = {stage: own for stage, own in full['params'].items() if stage != 'terms'}
    view = functools.partial(
      view_of, network, mine[0], seen, params, variables['params'], keys, jnp.zeros(()), lambda v: v, further=further
    )
    return objective(view, {'params': full['params'].get('terms', {}), 'stats': full['term_stats']})

  with fitting(method):
    jax.eval_shape(trace, shapes, dict(example), {one.name: one.network.shapes() for one in method.asked})
  read = {name: noted.read for name, noted in theirs.items()}
  if 'source_head' in method.objective.needs:
    read[SOURCE].add(next(one.head for one in method.asked if one.name == SOURCE))
  return mine[0].read - {method.network.stages[-1]}, read


@contextlib.contextmanager
def fitting(method: Method) -> Iterator[None]:
  """Inside, a term that cannot be computed is a mistake of the config's where it asks another network."""
  try:
    yield
  except (TypeError, ValueError) as error:
    if not method.asked:
      raise
    names = ["the source's network" if one.name == SOURCE else f'teacher {one.name!r}' for one in method.asked]
    first = str(error).splitlines()[0]
    raise UserError(
      f"config.objective: a term asks {' and '.join(names)}, which does not fit the target's: {first}"
    ) from None
