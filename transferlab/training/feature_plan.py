"""What is computed once and kept: outputs of the frozen stages of the network, and of the networks that terms ask.

A phase that trains only what lies behind a stage needs the stages before it once per example and view, where they
are deterministic; the source's network and teachers are deterministic always. Here it is decided what is kept and
where; feature_cache.py computes it, feature_store.py finds it again. Traces networks; runs nothing.
"""

import dataclasses
import functools
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from transferlab import paths
from transferlab.data import augmentation
from transferlab.data.augmentation import Augment
from transferlab.errors import UserError
from transferlab.networks.network import Network
from transferlab.objectives import SOURCE
from transferlab.training.methods import Stretch, stage_leaves
from transferlab.training.settings import FeatureCache
from transferlab.training.step import Asked, Method
from transferlab.training.terms import stages_read

Where = Literal['device', 'memory', 'disk']


@dataclasses.dataclass(frozen=True)
class Kept:
  """Outputs that are computed once for every example and view.

  Attributes:
    views: how many views of every example there are.
    examples: in training.
    value: shapes and dtypes of the outputs for one example.
    where: the outputs stay.
  """

  views: int
  examples: int
  value: Any
  where: Where

  @property
  def each(self) -> int:
    """Bytes of one example's outputs."""
    return _bytes(self.value)

  @property
  def size(self) -> int:
    """Bytes of all outputs."""
    return self.examples * self.views * self.each

  def _amount(self) -> str:
    shapes = ', '.join('×'.join(map(str, leaf.shape)) for leaf in jax.tree.leaves(self.value))
    seen = f'{self.views} views of ' if self.views > 1 else ''
    place = {'device': 'on the device', 'memory': 'in memory', 'disk': 'on disk'}[self.where]
    return f'once, for {seen}{self.examples:,} examples: {shapes}, {_mib(self.size)} {place}'


@dataclasses.dataclass(frozen=True)
class Prefix(Kept):
  """The stages that a phase need not run again.

  Attributes:
    start: the stage at which training goes on.
    last: the stage before it, whose outputs are kept.
  """

  start: str
  last: str

  @property
  def what(self) -> str:
    """Whose outputs they are."""
    return f'stages up to {self.last!r}'

  def __str__(self) -> str:
    return f'runs up to {self.last} {self._amount()}'


@dataclasses.dataclass(frozen=True)
class Recording(Kept):
  """What another network gives, of which terms look at some stages.

  Attributes:
    asked: the network.
    stages: those of it that are kept.
    times: how often it would have been asked for every view, were nothing kept.
  """

  asked: Asked
  stages: tuple[str, ...]
  times: float

  @property
  def what(self) -> str:
    """Whose outputs they are."""
    return "the source's network" if self.asked.name == SOURCE else f'teacher {self.asked.name!r}'

  def __str__(self) -> str:
    return f'asks {self.what} {self._amount()}, in place of {self.times:.3g} times'


def _bytes(value: Any) -> int:
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(value))


def _mib(size: int) -> str:
  return f'{size / 2**20:,.3g} MiB' if size < 2**30 else f'{size / 2**30:,.3g} GiB'


# ------------------------------------------------------------------------------------------------- whether it is exact
def cut(method: Method, inputs: tuple[int, ...]) -> tuple[int, str]:
  """The number of leading stages that do the same in every step, and why no more of the frozen ones do ('' if all)."""
  network = method.network
  leaves = stage_leaves(network, list(paths.flatten(network.shapes()['params'])))
  moves = [any(path in method.trainable for path in leaves[stage]) for stage in network.stages]
  frozen = moves.index(True) if True in moves else len(moves) - 1
  for number, stage in enumerate(network.stages[:frozen]):
    if stage in method.moving:
      return number, f'the running statistics of {stage!r} move'
    if stage in method.training and draws(network, stage, inputs):
      return number, f'{stage!r} draws random numbers (dropout)'
  return frozen, ''


@functools.lru_cache(maxsize=256)
def draws(network: Network, stage: str, inputs: tuple[int, ...]) -> bool:
  """Whether a stage does anything else in training mode, running statistics apart."""
  shapes, number = network.shapes(), network.stages.index(stage)
  value: Any = network.example(2, inputs)
  if number:
    value = jax.eval_shape(lambda v, x: network.apply(v, x, stop=stage)[0], shapes, value)[network.stages[number - 1]]
  key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
  following = network.stages[number + 1] if number + 1 < len(network.stages) else None

  def program(train: bool) -> str:
    run = lambda v, x, k: network.apply(v, x, train=train, statistics=(), key=k, start=stage, stop=following)
    return str(jax.make_jaxpr(run)(shapes, value, key))

  return program(True) != program(False)


def find(
  stretch: Stretch, settings: FeatureCache, examples: int, batch_size: int, compile: str
) -> tuple[Prefix | None, str]:
  """The prefix of a phase that is computed once; and where there is frozen work that is not, why.

  Raises:
    UserError: `use` is 'always', and there is frozen work that cannot be.
  """
  method, network, inputs = stretch.method, stretch.method.network, tuple(stretch.example['x'].shape[1:])
  if settings.use == 'never':
    return None, ''
  count, reason = cut(method, inputs)
  if _idle(network, count) and not reason:
    return None, ''  # nothing is frozen, or nothing that takes work
  if not reason or not _idle(network, count):
    read = stages_read(method, network.shapes(), stretch.example)[0]
    needed = [number for number, stage in enumerate(network.stages[:count]) if stage in read]
    # The last stage of the prefix may be read: its output is what is kept.
    if needed and needed[0] + 1 < count:
      count, reason = needed[0] + 1, f'the objective reads {network.stages[needed[0]]!r}'
  refusal = (reason if _idle(network, count) else '') or _refusal(stretch, compile)
  refusal = refusal or _too_short(stretch, settings, examples, batch_size)
  if not refusal:
    views = _views(method)
    last, start = network.stages[count - 1], network.stages[count]
    value = _value(network, start, inputs)
    where, refusal = _place(settings, examples * views * _bytes(value))
    if value is None:
      refusal = f'{last!r} gives something that has no axis of examples'
    if not refusal:
      return Prefix(views, examples, value, where, start, last), reason and f'no further than {last!r}: {reason}'
  if settings.use == 'always':
    raise UserError(f"config.feature_cache.use: 'always', but phase {stretch.name!r} cannot: {refusal}")
  return None, refusal


def _idle(network: Network, count: int) -> bool:
  """Whether the first `count` stages have no parameters."""
  return not any(stage in network.shapes()['params'] for stage in network.stages[:count])


def _too_short(stretch: Stretch, settings: FeatureCache, examples: int, batch_size: int) -> str:
  """Why computing all outputs would cost more than it saves."""
  short = stretch.steps * batch_size < examples * (stretch.method.augment.views or 1)
  return 'the phase sees fewer examples than there are' if settings.use == 'auto' and short else ''


def _views(method: Method) -> int:
  """How many views of each example there are, where their number is bounded."""
  return method.augment.views if method.augment != Augment() and method.augment.views else 1


def _refusal(stretch: Stretch, compile: str) -> str:
  """Why inputs are needed in every step."""
  if 'inputs' in stretch.method.objective.needs:
    return 'the objective runs another network on the inputs'
  if running := [one.name for one in stretch.method.asked if one.name not in stretch.method.recorded]:
    return f'the objective runs the network of {", ".join(running)} on the inputs'
  if stretch.method.streams:
    return 'every batch of a text goes on where the one before it ended'
  if compile == 'pmap':
    return "parallel.compile='pmap' takes its inputs batch by batch"
  return _unbounded(stretch.method.augment)


def _unbounded(augment: Augment) -> str:
  """Why the inputs are others in every epoch."""
  if augmentation.couples(augment):
    return 'mixup and cutmix mix inputs anew in every step'
  if augment != Augment() and augment.views is None:
    return 'augmentation draws a new view in every epoch (data.augment.views=K makes it K views)'
  return ''


def _value(network: Network, start: str, inputs: Sequence[int]) -> Any:
  """Shapes of the value before `start`, for one example; None where a part of it has no axis of examples."""
  last = network.stages[network.stages.index(start) - 1]
  run = lambda v, x: network.apply(v, x, stop=start)[0][last]
  sizes = 2, 3
  found = [jax.eval_shape(run, network.shapes(), network.example(size, inputs)) for size in sizes]
  for size, value in zip(sizes, found):
    if any(leaf.shape[:1] != (size,) for leaf in jax.tree.leaves(value)):
      return None
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), found[0])


def _place(settings: FeatureCache, size: int) -> tuple[Where, str]:
  """Where outputs of so many bytes stay, or why they do not."""
  physical = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  memory = physical / 4 if settings.memory is None else settings.memory * 2**30
  if settings.where != 'auto':
    return settings.where, ''
  if size <= settings.device * 2**30:
    return 'device', ''
  if size <= memory:
    return 'memory', ''
  place = Path(settings.folder or '.').expanduser()
  free = shutil.disk_usage(place if place.is_dir() else '.').free
  if size <= min(settings.disk * 2**30, free / 2):
    return 'disk', ''
  return 'disk', f'the outputs take {_mib(size)}, more than feature_cache.disk (or half of what is free) allows'


def cached(
  stretches: Sequence[Stretch], settings: FeatureCache, examples: int, batch_size: int, compile: str
) -> tuple[list[Stretch], list[str]]:
  """The phases, starting behind what is computed once; and a sentence for each phase that has frozen work.

  Args:
    examples: in training.
    batch_size: of a step.
    compile: how steps are compiled.

  Raises:
    UserError: see `find`.
  """
  made, said = [], []
  for stretch in stretches:
    recordings, sentences = recorded(stretch, settings, examples, batch_size)
    said += sentences
    stretch = _starting(stretch, None, recordings)
    prefix, reason = find(stretch, settings, examples, batch_size, compile)
    made.append(_starting(stretch, prefix, recordings))
    if prefix is not None:
      said.append(f'phase {stretch.name!r} {prefix}' + (f'; {reason}' if reason else ''))
    elif reason and stretch.steps:
      said.append(f'phase {stretch.name!r} runs its frozen stages in every step: {reason}')
  return made, said


def _starting(stretch: Stretch, prefix: Prefix | None, recordings: tuple[Recording, ...]) -> Stretch:
  """The phase, starting behind the prefix, with what is recorded of other networks in its batches."""
  names = frozenset(recording.asked.name for recording in recordings)
  if prefix is None and not names:
    return stretch
  start = None if prefix is None else prefix.start
  key = stretch.method, start, names
  if key not in _STARTING:
    _STARTING[key] = dataclasses.replace(stretch.method, start=start, recorded=names)
  return dataclasses.replace(stretch, method=_STARTING[key], prefix=prefix, recordings=recordings)


# One object for one method, so that runs which share a prefix share a compilation.
_STARTING: dict[Any, Method] = {}


def recorded(
  stretch: Stretch, settings: FeatureCache, examples: int, batch_size: int
) -> tuple[tuple[Recording, ...], list[str]]:
  """What of other networks is kept for a phase, and a sentence for each that a term asks.

  Raises:
    UserError: `use` is 'always', and it cannot be.
  """
  method = stretch.method
  if not method.asked or settings.use == 'never':
    return (), []
  refusal = _unbounded(method.augment) or _too_short(stretch, settings, examples, batch_size)
  _, read = stages_read(method, method.network.shapes(), stretch.example)
  found, said = [], []
  for asked in method.asked:
    stages = tuple(stage for stage in asked.network.stages if stage in read[asked.name])
    value, views = _given(asked, stages, stretch.example['x'].shape[1:]), _views(method)
    where, full = _place(settings, examples * views * _bytes(value))
    times = stretch.steps * batch_size / (examples * views)
    recording = Recording(views, examples, value, where, asked, stages, times)
    if not (refusal or full):
      found.append(recording)
      said.append(f'phase {stretch.name!r} {recording}')
    elif settings.use == 'always':
      raise UserError(f"config.feature_cache.use: 'always', but phase {stretch.name!r} cannot: {refusal or full}")
    else:
      said.append(f'phase {stretch.name!r} asks {recording.what} in every step: {refusal or full}')
  return tuple(found), said


def _given(asked: Asked, stages: Sequence[str], inputs: Sequence[int]) -> dict[str, Any]:
  """Shapes of what a network gives at some stages, for one example, in float32."""
  outputs, _ = jax.eval_shape(asked.network.apply, asked.network.shapes(), asked.network.example(2, inputs))
  return {
    stage: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], jnp.float32), outputs[stage])
    for stage in stages
  }
