"""What the loop takes, remembers and gives back: members, progress, cadence; and small functions on their trees.

Plain data; the loop (loop.py) is the behaviour.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from transferlab.data.loader import Order
from transferlab.errors import UserError
from transferlab.training.methods import Stretch

Variables = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Member:
  """One run, as the loop sees it.

  Attributes:
    stretches: its phases.
    variables: where it starts, after the transplant.
    start_point: the transplanted values (None where there are none), for terms that pull towards them.
    arrays: the training split: 'x', 'label', 'id'.
    order: which example stands where.
    record: preprocessing as arrays 'shift' and 'scale'.
    seed: of the run.
    asked: 'variables' and 'preprocessing' (as `record`) of the networks that terms ask, by name.
    fisher: Fisher information of the values of `start_point`, None where there are none; for terms that need it.
  """

  stretches: list[Stretch]
  variables: Variables
  start_point: Any
  arrays: dict[str, Any]
  order: Order
  record: dict[str, Any]
  seed: int
  asked: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
  fisher: Any = None


@dataclasses.dataclass
class Progress:
  """What a run has to remember beside its arrays. JSON-able.

  Attributes:
    ends: the global step at which each phase ends; an early stop writes its end here.
    early: phases that stopped early.
    best, digests, history, diverged: an entry per member.
    points: for each member, what it was to go back to between the ends of its last phase (averaging.interpolate).
  """

  step: int = 0
  phase: int = 0
  ended: bool = False
  ends: list[int] = dataclasses.field(default_factory=list)
  early: list[int] = dataclasses.field(default_factory=list)
  stalled: dict[str, Any] | None = None
  best: list[dict[str, Any] | None] = dataclasses.field(default_factory=list)
  digests: list[dict[str, str]] = dataclasses.field(default_factory=list)
  history: list[list[dict[str, Any]]] = dataclasses.field(default_factory=list)
  diverged: list[int | None] = dataclasses.field(default_factory=list)
  warnings: list[str] = dataclasses.field(default_factory=list)
  points: list[dict[str, Any] | None] = dataclasses.field(default_factory=list)

  def start(self, phase: int) -> int:
    """The global step at which a phase starts."""
    return self.ends[phase - 1] if phase else 0

  def reschedule(self, lengths: Sequence[int]) -> None:
    """The ends of this phase and the later ones from their lengths, unless this one is over for good.

    A phase that ended is taken up again where its length has grown since (--extend).
    """
    planned = self.start(self.phase) + lengths[self.phase]
    if self.ended and (self.phase in self.early or planned <= self.step):
      planned = self.step
    self.ended = self.ended and planned == self.step
    self.ends = [*self.ends[: self.phase], planned]
    for length in lengths[self.phase + 1 :]:
      self.ends.append(self.ends[-1] + length)


class Saver(Protocol):
  """What the loop wants of a place to save to."""

  def restore(self) -> tuple[Progress, Callable[[Any], Any]] | None:
    """The progress of the newest checkpoint, and `load(like)` for its tree; None for a new run."""

  def save(self, progress: Progress, tree: Mapping[str, Any]) -> None:
    """Writes a checkpoint."""

  def line(
    self, step: int, phase: str, split: str, values: Mapping[str, Any], seconds: float, waited: float | None
  ) -> None:
    """Logs measurements; `waited` is the feed's."""


@dataclasses.dataclass(frozen=True)
class Cadence:
  """When things happen, in steps from the start of a phase."""

  evaluate: int = 100
  log: int = 50
  checkpoint: int = 500

  def next(self, done: int, total: int) -> int:
    """The next step of the phase at which something happens."""
    return min(total, *((done // every + 1) * every for every in (self.evaluate, self.log, self.checkpoint)))


@dataclasses.dataclass(frozen=True)
class Validation:
  """How a state is judged: `measure(variables, stretch) -> [{metric: value} for each member]`, and which chooses."""

  measure: Callable[[Any, Stretch], list[dict[str, Any]]]
  select: str
  higher: bool


@dataclasses.dataclass
class Fitted:
  """What the loop gives back for one member: variables of the last and of the best step, and what it saw.

  `progress` and `tree` are what a checkpoint at the end of the run holds. `line`: the variables at the two ends of a
  last phase that interpolates.
  """

  last: Variables
  selected: Variables | None
  best: dict[str, Any] | None
  history: list[dict[str, Any]]
  steps: int
  diverged: int | None
  warnings: list[str]
  progress: Progress
  tree: dict[str, Any]
  line: tuple[Variables, Variables] | None = None


def stack(trees: Sequence[Any], population: bool) -> Any:
  """The trees of all members with a leading axis; the only one as it is where there is no population."""
  return jax.tree.map(_stacked, *trees) if population else trees[0]


def _stacked(*leaves: Any) -> Any:
  """On the host: compiling a concatenation for every shape would take longer than the copies."""
  if jnp.issubdtype(leaves[0].dtype, jax.dtypes.prng_key):
    return jnp.stack(leaves)
  return np.stack([np.asarray(leaf) for leaf in leaves])


def network_only(variables: Variables, terms: Collection[str] = ()) -> Variables:
  """Parameters and statistics of the network, without what belongs to terms but for the parameters of those named."""
  params = {k: v for k, v in variables['params'].items() if k != 'terms'}
  own = {k: v for k, v in variables['params'].get('terms', {}).items() if k in terms}
  return {'params': {**params, **({'terms': own} if own else {})}, 'stats': variables['stats']}


def old_heads(stretches: Sequence[Stretch]) -> list[str]:
  """Names of the terms whose parameters are a head of the source's, which belong to what is selected."""
  terms = [item for stretch in stretches for item in stretch.method.objective.terms.items()]
  return list(dict.fromkeys(name for name, term in terms if 'source_head' in term.needs))


def kept(slots: Any, fresh: Any, phase: str) -> Any:
  """The optimizer state of the phase before. Raises `UserError` where it does not fit."""
  shape = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
  if shape(slots) != shape(fresh):
    raise UserError(
      f'phase {phase!r}: keep_optimizer needs the optimizer and the trainable parameters of the phase before'
    )
  return slots


@jax.jit
def keep(better: Any, old: Any, new: Any) -> Any:
  """`new` where it is better, member by member."""
  better = jnp.asarray(better)
  return jax.tree.map(
    lambda b, n: jnp.where(better.reshape(better.shape + (1,) * (n.ndim - better.ndim)), n, b), old, new
  )


@jax.jit
def _all_finite(tree: Any) -> Any:
  return functools.reduce(
    jnp.logical_and, (jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)), jnp.array(True)
  )


def finite(tree: Any) -> bool:
  """Whether every number of the tree is finite."""
  return bool(_all_finite(tree))
