"""Stages, heads, and the functional seam: the only door between NNX modules and the rest of the program.

A network is an ordered sequence of named stages, the last of which is the head. `network` turns stages into two
pure functions over plain nested dicts, `init` and `apply`; nothing outside this room imports `flax.nnx`.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from transferlab import config, paths
from transferlab.errors import UserError, unknown
from transferlab.networks import layers

Variables = dict[str, dict[str, Any]]
Outputs = dict[str, Any]
Create = Callable[[nnx.Rngs], Mapping[str, Callable]]

# name in a config -> the module that holds the function of that name
NETWORKS = {
  'mlp': 'transferlab.networks.mlp',
  'convnet': 'transferlab.networks.convnet',
  'resnet': 'transferlab.networks.resnet',
  'vgg': 'transferlab.networks.vgg',
  'imagenet_resnet': 'transferlab.networks.imagenet_resnet',
  'bit': 'transferlab.networks.bit',
  'mobilenet': 'transferlab.networks.mobilenet',
  'mobilenet_v2': 'transferlab.networks.mobilenet_v2',
  'convnext': 'transferlab.networks.convnext',
  'squeezenet': 'transferlab.networks.squeezenet',
  'vit': 'transferlab.networks.vit',
  'textcnn': 'transferlab.networks.textcnn',
  'lstm': 'transferlab.networks.recurrent',
  'gru': 'transferlab.networks.recurrent',
  'bert': 'transferlab.networks.bert',
  'decoder': 'transferlab.networks.decoder',
}


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
  """A network behind the seam.

  Attributes:
    stages: names in order; the last is the head.
    init: `init(key) -> variables`, variables = {'params': {stage: …}, 'stats': {stage: …}}.
    apply: see `_apply`.
    shared: `{path: owner}` for parameters that a later stage reads from an earlier one.
    dtype: of the inputs; int32 where these are numbers of tokens.
    carry: `carry(batch) -> {stage: state}` from which recurrent stages start, where a state can be carried from one
      batch to the next under the key 'carry' of the value between stages; None elsewhere.
    cache: `cache(batch, length) -> {stage: state}`, likewise, of networks that go on with texts of up to `length`
      tokens from what they keep of each token before; None elsewhere.
    positions: how many tokens of a text have a position that is learned; None: any number may come.
  """

  stages: tuple[str, ...]
  init: Callable[[jax.Array], Variables]
  apply: Callable[..., tuple[Outputs, dict[str, Any]]]
  shared: dict[str, str]
  dtype: Any = jnp.float32
  carry: Callable[[int], dict[str, Any]] | None = None
  cache: Callable[[int, int], dict[str, Any]] | None = None
  positions: int | None = None

  def example(self, rows: int, input_shape: Sequence[int]) -> jax.ShapeDtypeStruct:
    """A batch of inputs, preprocessed, as its shape and dtype."""
    return jax.ShapeDtypeStruct((rows, *input_shape), self.dtype)

  @functools.lru_cache(maxsize=64)  # noqa: B019 (networks live as long as the program)
  def shapes(self) -> Variables:
    """`init`'s result as shapes and dtypes, stages in their order; nothing is allocated."""
    shapes = jax.eval_shape(self.init, jax.random.key(0))  # comes back sorted: block10 before block2
    return {kind: {name: tree[name] for name in self.stages if name in tree} for kind, tree in shapes.items()}


@dataclasses.dataclass(frozen=True)
class _Stage:
  """What it takes to call one stage: its static graph and where its variables stand in the plain dicts."""

  graph: Any
  params: dict[str, tuple[Any, nnx.Variable]]  # our path -> (path in the stage, the variable's type and metadata)
  stats: dict[str, tuple[Any, nnx.Variable]]


def build(
  name: str,
  options: Mapping[str, Any],
  input_shape: tuple[int, ...],
  outputs: int | dict[str, int],
  shared: Mapping[str, Any] | None = None,
) -> Network:
  """The network that a config names.

  Args:
    name: a key of `NETWORKS`, or `module.path.function` of one's own with the same signature.
    options: keyword arguments of that function.
    input_shape: shape of one example.
    outputs: size of the head, or `{task: size}`.
    shared: what several tasks share, as `Sharing` of settings.py; None: all but the head.

  Raises:
    UserError: unknown network or option, an option of the wrong type, or a way to share that this network has not.
  """
  function = network_function(name)
  checked = config.check_options(function, options, f'network {name!r}')
  key = (name, json.dumps([checked, input_shape, outputs, shared], sort_keys=True))
  if key not in _BUILT and shared is not None and isinstance(outputs, Mapping):
    from transferlab.networks import sharing

    each = {task: build(name, options, input_shape, size) for task, size in outputs.items()}
    _BUILT[key] = sharing.build(each, shared, input_shape)
  elif key not in _BUILT:
    _BUILT[key] = function(input_shape, outputs, **checked)
  return _BUILT[key]


# One object for one description: compiled functions are found again by the network they belong to.
_BUILT: dict[tuple[str, str], Network] = {}


@functools.lru_cache(maxsize=64)
def configured(network: Network, dtype: str = 'float32', rematerialise: str | None = None) -> Network:
  """The network, computed in another dtype, or with less memory.

  Args:
    dtype: in which stages compute; parameters, statistics and outputs stay as they are, and so do gradients.
    rematerialise: stages (a pattern) of which only inputs and outputs are kept for the backward pass, which computes
      what is between them again (Chen et al. 2016).

  Raises:
    UserError: a pattern that matches no stage, or a network that does not go through `network`.
  """
  apply: Callable = network.apply
  if rematerialise is not None:
    pattern = paths.compiled(rematerialise)
    stages = frozenset(stage for stage in network.stages if pattern.fullmatch(stage))
    if not stages:
      raise unknown('config.network.rematerialise', rematerialise, network.stages)
    if getattr(apply, 'func', None) is not _apply:
      raise UserError('config.network.rematerialise: not for networks that several tasks share in this way')
    apply = functools.partial(apply, rematerialised=stages)
  if dtype != 'float32':
    apply = functools.partial(_in_dtype, apply, jnp.dtype(dtype))
  return dataclasses.replace(network, apply=apply)


def _in_dtype(apply: Callable, dtype: Any, variables: Any, inputs: Any, **how: Any) -> tuple[Outputs, dict[str, Any]]:
  def cast(to: Any) -> Callable:
    return lambda leaf: leaf.astype(to) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

  params, inputs = jax.tree.map(cast(dtype), (variables['params'], inputs))
  outputs, stats = apply({**variables, 'params': params}, inputs, **how)
  return jax.tree.map(cast(jnp.float32), outputs), stats


def network_function(name: str) -> Callable[..., Network]:
  """The function behind a network's name in a config."""
  return config.named('network', name, NETWORKS)


def network(create: Create) -> Network:
  """Stages as two pure functions.

  Args:
    create: `create(rngs) -> {stage: module}` in the order of depth. A stage is called with the value of the stage
      before it: an array, or a flat dict with key 'x'. A plain function serves where there are no parameters.
      A variable that occurs in several stages belongs to the first of them.

  Raises:
    UserError: a stage holds variables other than parameters and running statistics.
  """
  names: list[str] = []
  functions: dict[str, Callable] = {}

  def modules(key: jax.Array) -> dict[str, nnx.Module]:
    stages: dict[str, Any] = {name: layers.owned(stage) for name, stage in create(_keys(key)).items()}
    names[:] = stages
    functions.update({name: stage for name, stage in stages.items() if not isinstance(stage, nnx.Module)})
    return {name: stage for name, stage in stages.items() if isinstance(stage, nnx.Module)}

  abstract = nnx.eval_shape(modules, jax.random.key(0))
  shared, table = _table(abstract, names)

  def init(key: jax.Array) -> Variables:
    created = modules(key)
    variables: Variables = {'params': {}, 'stats': {}}
    for name in created:
      params, stats = nnx.state(created[name], nnx.Param, nnx.BatchStat)
      for kind, state, entries in (('params', params, table[name].params), ('stats', stats, table[name].stats)):
        values = {path: variable[...] for path, variable in nnx.to_flat_state(state)}
        own = {ours: values[theirs] for ours, (theirs, _) in entries.items() if ours not in shared}
        variables[kind].update(paths.unflatten(own))
    return variables

  apply = functools.partial(_apply, tuple(names), table, functions, shared)
  return Network(tuple(names), init, apply, shared)


class _Stream(nnx.RngStream):
  """The keys of `nnx.RngStream`, counted on the host.

  Of a count that is traced nnx asks the sharding at every key; the error that jax makes up for it, and nnx drops, shows
  the whole trace so far, and takes up to two thirds of the time in which a network is built.
  """

  drawn = 0

  def __call__(self) -> jax.Array:
    key = jax.random.fold_in(self.key[...], self.drawn)
    self.drawn += 1
    return key


def _keys(key: jax.Array) -> nnx.Rngs:
  """What `nnx.Rngs(key)` gives."""
  rngs = nnx.Rngs(key)
  rngs.default = _Stream(key, tag='default')  # type: ignore[attr-defined]
  return rngs


def _table(abstract: Mapping[str, nnx.Module], names: list[str]) -> tuple[dict[str, str], dict[str, _Stage]]:
  owners: dict[int, str] = {}
  shared: dict[str, str] = {}
  table: dict[str, _Stage] = {}
  for name in names:
    if name not in abstract:
      continue
    graph, params, stats, rest = nnx.split(abstract[name], nnx.Param, nnx.BatchStat, ...)  # type: ignore[misc]
    if left := [path for path, _ in nnx.to_flat_state(rest)]:
      raise UserError(
        f'stage {name!r} holds {"/".join(map(str, left[0]))}, which is neither nnx.Param nor nnx.BatchStat; '
        'random numbers come from the scope (networks/layers.py), other state from the value between stages'
      )
    ours = {
      kind: {_join(name, path): (path, variable) for path, variable in nnx.to_flat_state(state)}
      for kind, state in (('params', params), ('stats', stats))
    }
    for path, (_, variable) in ours['params'].items():
      owner = owners.setdefault(id(variable), path)
      if owner != path:
        shared[path] = owner
    table[name] = _Stage(graph, ours['params'], ours['stats'])
  return shared, table


def _join(stage: str, path: tuple) -> str:
  return '/'.join([stage, *map(str, path)])


def _apply(
  stages: tuple[str, ...],
  table: Mapping[str, _Stage],
  functions: Mapping[str, Callable],
  shared: Mapping[str, str],
  variables: Mapping[str, Any],
  inputs: Any,
  *,
  train: bool | Collection[str] = False,
  statistics: Collection[str] | None = None,
  key: jax.Array | None = None,
  start: str | None = None,
  stop: str | None = None,
  rematerialised: Collection[str] = (),
) -> tuple[Outputs, dict[str, Any]]:
  """Runs stages `start` (inclusive) to `stop` (exclusive).

  Args:
    variables: `{'params': {stage: …}, 'stats': {stage: …}}`; only the stages that run are read, and the owners
      of the shared leaves that they read.
    inputs: [batch, …], or a flat dict with key 'x'. Key 'example_mask' [batch] says which examples are real.
    train: True, False, or the stages in training mode (dropout).
    statistics: the stages whose BatchNorm uses, and moves by, the statistics of the batch; None: as `train`.
    key: one key, or [batch] keys, one per example. A stage's key is `fold_in(key, index of the stage)`, so that a
      slice draws what the whole would have drawn.

  Returns:
    The value after every stage that ran, by name; and the statistics of those stages, moved where they move.
  """
  first = stages.index(start) if start else 0
  last = stages.index(stop) if stop else len(stages)
  training = _as_set(train, stages)
  moving = training if statistics is None else _as_set(statistics, stages)
  value, mask = inputs, None
  if isinstance(inputs, Mapping):
    value = {name: item for name, item in inputs.items() if name != 'example_mask'}
    mask = inputs.get('example_mask')
    value = value['x'] if set(value) == {'x'} else value
  params, old = paths.flatten(variables['params']), paths.flatten(variables['stats'])
  outputs: Outputs = {}
  stats: dict[str, Any] = {}
  for index in range(first, last):
    name = stages[index]
    stage_key = None if key is None else layers.fold_in(key, index)
    with layers.scope(layers.Scope(name in training, name in moving, stage_key, mask)):
      if name in functions:
        value = functions[name](value)
      else:
        call = functools.partial(_call, table[name], shared=shared)
        value, new = (jax.checkpoint(call) if name in rematerialised else call)(params, old, value=value)
        stats.update(new)
    outputs[name] = value
  return outputs, paths.unflatten(stats)


def _call(stage: _Stage, params: Mapping, stats: Mapping, *, shared: Mapping, value: Any) -> tuple[Any, dict[str, Any]]:
  def state(entries: Mapping[str, tuple[Any, nnx.Variable]], values: Mapping) -> nnx.State:
    return nnx.from_flat_state(
      [(theirs, variable.replace(values[shared.get(ours, ours)])) for ours, (theirs, variable) in entries.items()]
    )

  module = nnx.merge(stage.graph, state(stage.params, params), state(stage.stats, stats))
  value = module(value)
  moved = dict(nnx.to_flat_state(nnx.state(module, nnx.BatchStat)))
  return value, {ours: moved[theirs][...] for ours, (theirs, _) in stage.stats.items()}


def _as_set(choice: bool | Collection[str], stages: tuple[str, ...]) -> set[str]:
  if isinstance(choice, bool):
    return set(stages) if choice else set()
  return set(choice)


def flat_features(x: jax.Array) -> jax.Array:
  """[batch, …] -> [batch, features]."""
  return jnp.reshape(x, (x.shape[0], -1))
