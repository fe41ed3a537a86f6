"""The train step: one pure function of state, constants and a batch. All ways of training run this one.

`parallel.py` compiles it: over a mesh, in a scan, under `vmap` for a population, or under pmap.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from transferlab.data import augmentation, preprocessing
from transferlab.data.augmentation import Augment
from transferlab.networks import layers, sharing
from transferlab.networks.network import Network
from transferlab.objectives import SOURCE, balancers
from transferlab.objectives.objective import Objective, SourceHead
from transferlab.training import averaging, balanced, optimizer, partition, transforms
from transferlab.training.balanced import Terms
from transferlab.training.transforms import Transformation
from transferlab.training.views import known_labels, real_places, reset, view_of

State = dict[str, Any]
Constants = dict[str, Any]
Batch = dict[str, Any]

# What a key is folded with, so that no two purposes share random numbers.
DROPOUT, AUGMENTATION, TERM_START, NETWORK, BALANCING = 1, 2, 4, 5, 6  # and TERMS of views.py, 3
VIEWS = 2**32 - 1  # beyond every step, with which the same key is folded
TRANSFORMS = 2**32 - 2  # likewise


@dataclasses.dataclass(frozen=True)
class Asked:
  """A network beside the one that trains, whose outputs terms look at: the source's, or a teacher.

  Attributes:
    dtype: in which it is run.
  """

  name: str
  network: Network
  dtype: str = 'float32'

  @property
  def head(self) -> str:
    """The stage that is its head."""
    return self.network.stages[-1]


@dataclasses.dataclass(frozen=True)
class Method:
  """The static half of a phase: what determines the compiled step, apart from shapes.

  Attributes:
    trainable: paths that the optimizer may move (with `terms/…`).
    training: stages in training mode.
    moving: stages whose running statistics move.
    augment: random changes to the inputs, which lie between `low` and `high`.
    classes: of a label that is a class number, whose accuracy is logged; 0 for other labels.
    gaps: the tasks of which training labels are missing; None stands for the only one.
    start: the stage at which a step starts, where batches hold the outputs of the stage before it (feature_cache.py);
      None: the first, on inputs that are augmented and preprocessed here.
    asked: the networks whose outputs on the same inputs a term looks at.
    recorded: the names of those whose outputs batches bring along.
    examples: in training, where a term needs to know.
    transforms: what becomes of parameters before they are applied.
    average: the running average that is kept: 'exponential', 'uniform' or None.
    anchored: the values from which the phase starts are kept, to go back to part of the way.
    streams: real rows of a batch, each of which goes on where it stood in the batch before, with what recurrent stages
      remember; 0: examples that have nothing to do with one another.
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
  start: str | None = None
  asked: tuple[Asked, ...] = ()
  recorded: frozenset[str] = frozenset()
  examples: int | None = None
  transforms: tuple[Transformation, ...] = ()
  average: str | None = None
  anchored: bool = False
  gaps: frozenset[str | None] = frozenset()
  streams: int = 0

  @property
  def stages(self) -> tuple[str, ...]:
    """The stages that a step runs."""
    stages = self.network.stages
    return stages[stages.index(self.start) :] if self.start else stages


def begin(method: Method, params: Any, stats: Any, term_stats: Any, step: Array | int) -> State:
  """The state at the head of a phase: copies of what moves (so that donating them harms nobody), a new optimizer.

  Args:
    params: all parameters, the terms' under 'terms'.
  """
  trainable, _ = partition.split(params, method.trainable)
  trainable, stats, term_stats = jax.tree.map(jnp.copy, (trainable, stats, term_stats))
  state = {
    'step': jnp.asarray(step, jnp.int32),
    'trainable': trainable,
    'stats': stats,
    'optimizer': method.optimizer.core.init(trainable),
    'term_stats': term_stats,
  }
  if method.average:
    state['average'] = averaging.begin(trainable)
  if method.anchored:
    state['anchor'] = jax.tree.map(jnp.copy, {'trainable': trainable, 'stats': stats})
  if method.streams:
    assert method.network.carry is not None
    state['carry'] = method.network.carry(method.streams)
  return state


def train_step(
  method: Method, state: State, constants: Constants, batch: Batch, axis: str | None = None
) -> tuple[State, dict[str, Array]]:
  """One optimizer step.

  Args:
    state: see `begin`; may change values, never structure, shape or dtype.
    constants: 'frozen' (tree with holes), 'source' (tree or None), 'fisher' (likewise), 'asked' ('variables' and
      'preprocessing' of the networks in `method.asked`, by name), 'preprocessing' {'shift', 'scale'}, 'key' (the
      run's), 'hyper' (optimizer.hyperparameters), 'weights' {term: weight}.
    batch: 'x' [batch, …] as held, 'label' [batch, …] or {task: …}, 'place' [batch] in the global batch, 'row' [batch]
      among the training examples, 'mask' [batch] or None where all are real; and 'recorded' outputs by name and stage.
    axis: name of the mapped axis under pmap; sums then go over its devices.

  Returns:
    The new state, and scalars: 'loss', each term's, what terms measure, 'accuracy', 'rate_factor'.
  """
  if batch['mask'] is None:  # a constant, which the compiler removes
    batch = {**batch, 'mask': jnp.ones_like(batch['place'], bool)}
  key = jax.random.fold_in(constants['key'], state['step'])
  keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch['place'])
  batch = {**batch, **_augmented(method, batch, constants['key'], layers.fold_in(keys, AUGMENTATION))}
  terms = functools.partial(_terms, method, state, constants, batch, keys, axis)
  balancing = jax.random.fold_in(key, BALANCING)
  with layers.over_axis(axis):
    value, (metrics, moved, term_stats), gradients = balanced.gradients(
      method.network, method.objective, terms, state['trainable'], balancing
    )
  if axis:
    value, metrics, gradients = lax.psum((value, metrics, gradients), axis)
  trainable, slots, factor = optimizer.update(
    method.optimizer, gradients, state['optimizer'], state['trainable'], constants['hyper'], state['step']
  )
  new = {
    **state,
    **moved,
    'step': state['step'] + 1,
    'trainable': trainable,
    'optimizer': slots,
    'term_stats': {**state['term_stats'], **term_stats},
  }
  if method.average:
    averages, done = constants['hyper']['average'], new['step'] - constants['hyper']['start']
    new['average'] = averaging.update(method.average, state['average'], trainable, averages, done)
  return new, {**metrics, 'loss': value, 'rate_factor': factor}


def _terms(
  method: Method,
  state: State,
  constants: Constants,
  batch: Batch,
  keys: Array,
  axis: str | None,
  trainable: Any,
  offset: Any = None,
) -> Terms:
  """This device's share of the terms and metrics, the moved statistics, and the terms' state."""
  total = functools.partial(lax.psum, axis_name=axis) if axis else lambda values: values
  devices = lax.psum(1, axis) if axis else 1
  params = dict(partition.join(trainable, constants['frozen']))
  own = {'params': params.pop('terms', {}), 'stats': state['term_stats']}
  applied = _transformed(method, params, constants, state['step'])
  inputs = batch['x'] if method.start else preprocessing.apply(batch['x'], **constants['preprocessing'])
  given = {'x': inputs, 'carry': reset(state['carry'], batch['fresh'])} if method.streams else inputs
  outputs, stats, representation = _forward(method, applied, state['stats'], given, batch['mask'], keys, offset)
  progress = (state['step'] - constants['hyper']['start']) / constants['hyper']['steps']
  further = {
    'fisher': constants['fisher'],
    'inputs': inputs,
    'stats': state['stats'],
    'again': functools.partial(_again, method, inputs, batch['mask']),
    **_asked(method, constants['asked'], batch, outputs),
  }
  seen = method.network, outputs, batch, params, constants['source'], keys, progress, total
  view = functools.partial(view_of, *seen, gaps=method.gaps, further=further)
  values, measured, term_stats = method.objective(view, own)
  if method.classes and not isinstance(batch['label'], Mapping):
    looked = view(None, None)
    right = accuracy(looked.output, looked.labels)
    measured['accuracy'] = right if looked.known is None else (right, looked.known.astype(right.dtype))
  if (real := real_places(inputs)) is not None:
    measured['padding'] = 1 - real.mean(axis=1)
  means = _means({**measured, **values}, batch['mask'], total, devices)
  weighted = {
    name: _weight(method.objective, name, progress) * constants['weights'][name] * means[name] for name in values
  }
  mine = {'params': own['params'].get(balancers.NAME, {}), 'stats': own['stats'].get(balancers.NAME, {})}
  present = None if method.objective.balancer is None else _present(method, batch)
  moved = {'stats': stats}
  if method.streams:
    # Of the real rows alone, so that a checkpoint does not depend on the number of devices.
    moved['carry'] = jax.tree.map(lambda leaf: leaf[: method.streams], outputs[method.network.stages[-2]]['carry'])
  return Terms(weighted, means, moved, term_stats, mine, present, representation)


def _forward(
  method: Method, params: Any, stats: Any, inputs: Any, mask: Array, keys: Array, offset: Any
) -> tuple[dict[str, Any], Any, Any]:
  """(outputs of the stages, the moved statistics, what the last shared stage gives where it is asked for)."""
  run = functools.partial(
    method.network.apply,
    {'params': params, 'stats': stats},
    train=method.training,
    statistics=method.moving,
    key=layers.fold_in(keys, DROPOUT),
  )
  outputs, moved, representation = _run(method, run, inputs, mask, offset)
  if method.start:
    stages = method.network.stages
    outputs = {stages[stages.index(method.start) - 1]: inputs, **outputs}
    moved = {**stats, **moved}
  return outputs, moved, representation


def _present(method: Method, batch: Batch) -> Array:
  """[tasks], 1 for those of which some term has something to look at in this batch."""
  objective, found = method.objective, []
  for task in objective.kinds:
    terms = [term for name, term in objective.terms.items() if objective.tasks[name] == task]
    bound = task in method.gaps and all('labels' in term.needs for term in terms)
    there = (known_labels(batch['label'][task]) & batch['mask']).any() if bound and terms else bool(terms)
    found.append(jnp.asarray(there, jnp.float32))
  return jnp.stack(found)


def _run(method: Method, run: Callable[..., Any], inputs: Any, mask: Array, offset: Any) -> tuple[dict, dict, Any]:
  """Outputs and statistics of the stages, and what the last shared one gives where `offset` is added to it."""
  masked = lambda value: {**(value if isinstance(value, Mapping) else {'x': value}), 'example_mask': mask}
  if offset is None:
    return *run(masked(inputs), start=method.start), None
  stages, shared = method.network.stages, sharing.last_shared(method.network)
  following = stages[stages.index(shared) + 1]
  outputs, stats = run(masked(inputs), start=method.start, stop=following)
  given = outputs[shared]
  moved = given if isinstance(offset, float) else jax.tree.map(jnp.add, given, offset)
  further, moved_stats = run(masked(moved), start=following)
  return {**outputs, **further}, {**stats, **moved_stats}, given


def _weight(objective: Objective, name: str, progress: Array) -> Array | float:
  """The factor of a term's weight at this point of the phase."""
  schedule = objective.schedules.get(name)
  return 1.0 if schedule is None else optimizer.schedule_factor(schedule, progress, optimizer.schedule_values(schedule))


def _again(method: Method, inputs: Any, mask: Array, params: Any, stats: Any) -> dict[str, Any]:
  """The outputs of the network with other weights on the same inputs, in evaluation mode."""
  given = {**(inputs if isinstance(inputs, Mapping) else {'x': inputs}), 'example_mask': mask}
  return method.network.apply({'params': params, 'stats': stats}, given, start=method.start)[0]


def view_keys(key: Array, ids: Array, view: Array) -> Array:
  """[batch] keys that draw the augmentation of numbered views: the same whenever an example is seen in that view.

  Args:
    key: the run's.
    ids: [batch], of the examples.
    view: [batch] or one number for all.
  """
  each = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.fold_in(key, VIEWS), ids)
  return jax.vmap(jax.random.fold_in)(each, jnp.broadcast_to(view, ids.shape))


def _transformed(method: Method, params: Any, constants: Constants, step: Array) -> Any:
  """The parameters as this step applies them. One key for the step, not for each example: the same on any devices."""
  if not method.transforms:
    return params
  key = jax.random.fold_in(jax.random.fold_in(constants['key'], TRANSFORMS), step)
  return transforms.apply(method.transforms, params, constants['source'], key)


def _asked(method: Method, constants: Mapping[str, Any], batch: Batch, outputs: Mapping[str, Any]) -> dict[str, Any]:
  """What other networks make of the batch, for a view; nothing where no term asks.

  Args:
    constants: 'variables' and 'preprocessing' of each.
    outputs: of the network that trains.
  """
  further: dict[str, Any] = {}
  if method.examples is not None:
    further = {'rows': batch['row'], 'examples': method.examples}
  if not method.asked:
    return further
  theirs = {}
  for one in method.asked:
    own = constants[one.name]
    theirs[one.name] = (
      batch['recorded'][one.name] if one.name in method.recorded else answers(one, own, batch['x'], batch['mask'])
    )
  if 'source_head' in method.objective.needs:
    (source,) = (one for one in method.asked if one.name == SOURCE)
    own, alone = constants[SOURCE], len(method.network.stages) == 1
    x = preprocessing.apply(batch['x'], **own['preprocessing']) if alone else batch['x']
    value = before_head(method.network, outputs, x)
    further['source_head'] = source_head(source.network, own['variables'], value, theirs[SOURCE])
  return {**further, 'asked': theirs, 'heads': {one.name: one.head for one in method.asked}}


def answers(asked: Asked, constants: Mapping[str, Any], x: Array, mask: Array | None = None) -> dict[str, Any]:
  """The outputs of another network by stage, in evaluation mode and float32; nothing is differentiated.

  Args:
    constants: its 'variables' and 'preprocessing'.
    x: inputs as held, augmented.
  """
  variables, dtype = constants['variables'], jnp.dtype(asked.dtype)
  inputs = preprocessing.apply(x, **constants['preprocessing'])
  variables, inputs = jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.dtype != jnp.int32 else leaf,
                                   (variables, inputs))  # fmt: skip
  outputs, _ = asked.network.apply(variables, inputs if mask is None else {'x': inputs, 'example_mask': mask})
  return lax.stop_gradient(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), outputs))


def before_head(network: Network, outputs: Mapping[str, Any], x: Array) -> Any:
  """What the head takes: the output of the stage before it, or the inputs `x` where there is none."""
  return outputs[network.stages[-2]] if len(network.stages) > 1 else x


def source_head(source: Network, variables: Mapping[str, Any], value: Any, theirs: Mapping[str, Any]) -> SourceHead:
  """The source's head on `value`, what another network gives before its own; `theirs` are the source's outputs."""
  head = source.stages[-1]

  def apply(params: Any) -> Array:
    whole = {'params': {**variables['params'], head: params}, 'stats': variables['stats']}
    return source.apply(whole, value, start=head)[0][head]

  return SourceHead(variables['params'][head], theirs[head], apply)


def _augmented(method: Method, batch: Batch, run_key: Array, keys: Array) -> Batch:
  """'x' and 'label' after augmentation."""
  x, labels, views = batch['x'], batch['label'], method.augment.views
  if method.augment == Augment() or method.start:
    return {'x': x, 'label': labels}
  own = keys if views is None else view_keys(run_key, batch['id'], batch['view'] % views)
  x = augmentation.apply(x, own, method.augment, method.low, method.high)
  if augmentation.couples(method.augment):
    labels = labels if method.classes else labels.astype(jnp.float32)
    x, labels = augmentation.mix(x, labels, keys, batch['mask'], method.augment, method.classes)
  return {'x': x, 'label': labels}


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
  weights = total(sums[1::2])  # 0 where no label of the batch is known
  return means | dict(zip(plain, sums[::2] / jnp.where(weights > 0, weights, 1)))


def accuracy(logits: Array, labels: Array) -> Array:
  """[batch] of 1 where the largest logit stands at the label (the largest target, where targets are soft)."""
  labels = labels.argmax(-1) if labels.ndim == logits.ndim else labels
  return (logits.argmax(-1) == labels).astype(jnp.float32)
