"""The train step: one pure function of state, constants and a batch. All ways of training run this one.

`parallel.py` compiles it: over a mesh, in a scan, under `vmap` for a population, or under pmap.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from transferlab.data import augmentation, preprocessing
from transferlab.data.augmentation import Augment
from transferlab.networks import layers
from transferlab.networks.network import Network
from transferlab.objectives.objective import Objective, View
from transferlab.training import optimizer, partition

State = dict[str, Any]
Constants = dict[str, Any]
Batch = dict[str, Any]

# What a key is folded with, so that no two purposes share random numbers.
DROPOUT, AUGMENTATION, TERMS, TERM_START, NETWORK = 1, 2, 3, 4, 5


@dataclasses.dataclass(frozen=True)
class Method:
  """The static half of a phase: what determines the compiled step, apart from shapes.

  Attributes:
    trainable: paths that the optimizer may move (with `terms/…`).
    training: stages in training mode.
    moving: stages whose running statistics move.
    augment: random changes to the inputs, which lie between `low` and `high`.
    classes: of a label that is a class number, whose accuracy is logged; 0 for other labels.
  """

  network: Network
  objective: Objective
  optimizer: optimizer.Optimizer
  trainable: frozenset[str]
  training: frozenset[str]
  moving: frozenset[str]
  augment: Augment
  low: float
  high: float
  classes: int


def begin(method: Method, params: Any, stats: Any, term_stats: Any, step: Array | int) -> State:
  """The state at the head of a phase: copies of what moves (so that donating them harms nobody), a new optimizer.

  Args:
    params: all parameters, the terms' under 'terms'.
  """
  trainable, _ = partition.split(params, method.trainable)
  trainable, stats, term_stats = jax.tree.map(jnp.copy, (trainable, stats, term_stats))
  return {
    'step': jnp.asarray(step, jnp.int32),
    'trainable': trainable,
    'stats': stats,
    'optimizer': method.optimizer.core.init(trainable),
    'term_stats': term_stats,
  }


def train_step(
  method: Method, state: State, constants: Constants, batch: Batch, axis: str | None = None
) -> tuple[State, dict[str, Array]]:
  """One optimizer step.

  Args:
    state: see `begin`; may change values, never structure, shape or dtype.
    constants: 'frozen' (tree with holes), 'source' (tree or None), 'preprocessing' {'shift', 'scale'}, 'key' (the
      run's), 'hyper' (optimizer.hyperparameters), 'weights' {term: weight}.
    batch: 'x' [batch, …] as held, 'label' [batch, …] or {task: …}, 'place' [batch] in the global batch, 'mask' [batch]
      or None where all are real.
    axis: name of the mapped axis under pmap; sums then go over its devices.

  Returns:
    The new state, and scalars: 'loss', each term's, what terms measure, 'accuracy', 'rate_factor'.
  """
  if batch['mask'] is None:  # a constant, which the compiler removes
    batch = {**batch, 'mask': jnp.ones_like(batch['place'], bool)}
  key = jax.random.fold_in(constants['key'], state['step'])
  keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch['place'])
  batch = {**batch, **_augmented(method, batch, layers.fold_in(keys, AUGMENTATION))}
  loss = functools.partial(_loss, method, state, constants, batch, keys, axis)
  with layers.over_axis(axis):
    (value, (metrics, stats, term_stats)), gradients = jax.value_and_grad(loss, has_aux=True)(state['trainable'])
  if axis:
    value, metrics, gradients = lax.psum((value, metrics, gradients), axis)
  trainable, slots, factor = optimizer.update(
    method.optimizer, gradients, state['optimizer'], state['trainable'], constants['hyper'], state['step']
  )
  new = {
    'step': state['step'] + 1,
    'trainable': trainable,
    'stats': stats,
    'optimizer': slots,
    'term_stats': {**state['term_stats'], **term_stats},
  }
  return new, {**metrics, 'loss': value, 'rate_factor': factor}


def _loss(
  method: Method, state: State, constants: Constants, batch: Batch, keys: Array, axis: str | None, trainable: Any
) -> tuple[Array, tuple[dict[str, Array], Any, Any]]:
  """This device's share of the loss; and of the metrics, the moved statistics, and the terms' state."""
  total = functools.partial(lax.psum, axis_name=axis) if axis else lambda values: values
  devices = lax.psum(1, axis) if axis else 1
  params = dict(partition.join(trainable, constants['frozen']))
  own = {'params': params.pop('terms', {}), 'stats': state['term_stats']}
  outputs, stats = method.network.apply(
    {'params': params, 'stats': state['stats']},
    {'x': preprocessing.apply(batch['x'], **constants['preprocessing']), 'example_mask': batch['mask']},
    train=method.training,
    statistics=method.moving,
    key=layers.fold_in(keys, DROPOUT),
  )
  progress = (state['step'] - constants['hyper']['start']) / constants['hyper']['steps']
  view = functools.partial(_view, method.network, outputs, batch, params, constants['source'], keys, progress, total)
  values, measured, term_stats = method.objective(view, own)
  if method.classes and not isinstance(batch['label'], Mapping):
    measured['accuracy'] = accuracy(outputs[method.network.stages[-1]], batch['label'])
  means = _means({**measured, **values}, batch['mask'], total, devices)
  loss = sum(constants['weights'][name] * means[name] for name in values)
  return jnp.asarray(loss), (means, stats, term_stats)


def _augmented(method: Method, batch: Batch, keys: Array) -> Batch:
  """'x' and 'label' after augmentation."""
  x, labels = batch['x'], batch['label']
  if method.augment == Augment():
    return {'x': x, 'label': labels}
  x = augmentation.apply(x, keys, method.augment, method.low, method.high)
  if augmentation.couples(method.augment):
    labels = labels if method.classes else labels.astype(jnp.float32)
    x, labels = augmentation.mix(x, labels, keys, batch['mask'], method.augment, method.classes)
  return {'x': x, 'label': labels}


def _view(
  network: Network,
  outputs: Any,
  batch: Batch,
  params: Any,
  source: Any,
  keys: Array,
  progress: Array,
  total: Callable[[Array], Array],
  task: str | None,
) -> View:
  output, labels = outputs[network.stages[-1]], batch['label']
  return View(
    outputs=outputs,
    output=output[task] if isinstance(output, Mapping) and task else output,
    labels=labels[task] if isinstance(labels, Mapping) and task else labels,
    params=params,
    source=source,
    mask=batch['mask'],
    key=layers.fold_in(keys, TERMS),
    progress=progress,
    total=total,
  )


def _means(
  values: Mapping[str, Any], mask: Array, total: Callable[[Array], Array], devices: Array | int
) -> dict[str, Array]:
  """This device's share of each mean over the real examples of the global batch; the shares add up to it.

  Args:
    values: [batch], (values [batch], weights [batch]) or a scalar, by name.
  """
  pairs = {name: value if isinstance(value, tuple) else (value, jnp.ones_like(value)) for name, value in values.items()}
  plain = [name for name, (value, _) in pairs.items() if value.ndim]
  # One sum over all of them: on a CPU many small sums cost a small step visibly more than one larger.
  rows = [row for name in plain for row in (pairs[name][0] * pairs[name][1], pairs[name][1])]
  means = {name: value / devices for name, (value, _) in pairs.items() if not value.ndim}
  if not rows:
    return means
  sums = jnp.where(mask, jnp.stack(rows), 0).sum(axis=1)
  return means | dict(zip(plain, sums[::2] / total(sums[1::2])))


def accuracy(logits: Array, labels: Array) -> Array:
  """[batch] of 1 where the largest logit stands at the label (the largest target, where targets are soft)."""
  labels = labels.argmax(-1) if labels.ndim == logits.ndim else labels
  return (logits.argmax(-1) == labels).astype(jnp.float32)


def with_terms(
  network: Network, objectives: Sequence[Objective], variables: Mapping[str, Any], arrays: Mapping[str, Any], seed: int
) -> dict[str, Any]:
  """The variables with the parameters and state that terms start from: 'params', 'stats' and 'term_stats'.

  All terms of all phases are there from the start, so the structure is the same throughout a run.

  Args:
    arrays: 'x' and 'label' of the training split; shapes decide, not values.
  """
  key = jax.random.fold_in(jax.random.key(seed), TERM_START)
  own: dict[str, dict] = {'params': {}, 'stats': {}}
  for objective in dict.fromkeys(objectives):
    if objective.plain:
      continue
    labels = jax.tree.map(lambda leaf: jnp.zeros((2, *leaf.shape[1:]), leaf.dtype), arrays['label'])
    outputs, _ = network.apply(variables, jnp.zeros((2, *arrays['x'].shape[1:])))
    batch = {'label': labels, 'mask': jnp.ones(2, bool)}
    keys = jax.random.split(key, 2)
    view = functools.partial(
      _view, network, outputs, batch, variables['params'], None, keys, jnp.zeros(()), lambda v: v
    )
    created = objective.init(view, key)
    own = {kind: {**created[kind], **own[kind]} for kind in own}
  params = {**variables['params'], **({'terms': own['params']} if own['params'] else {})}
  return {'params': params, 'stats': variables['stats'], 'term_stats': own['stats']}
