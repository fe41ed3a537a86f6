"""The one loop: phases of chunks of steps, validation, selection, early stop, checkpoints. Talks to devices.

It trains one run, or a population of runs that differ only in arrays (weights, data, rates, seeds), which then carry
a leading axis of members. Evaluation and saving come as arguments; files and screens are theirs.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transferlab.data.sources import centred
from transferlab.errors import Diverged, Interrupted
from transferlab.training import adapt, averaging, parallel, partition
from transferlab.training.feed import Feed
from transferlab.training.methods import Stretch
from transferlab.training.state import (
  Cadence,
  Fitted,
  Member,
  Progress,
  Saver,
  Validation,
  Variables,
  finite,
  keep,
  kept,
  network_only,
  old_heads,
  stack,
)
from transferlab.training.terms import with_terms

# What a phase leaves beside the network: a checkpoint holds it.
LEFT = ('optimizer', 'average', 'anchor', 'carry', 'raw', 'tuned')


class Loop:
  """Trains one member, or several of equal structure as a population.

  Args:
    members: one or more runs; several share every static part of their phases.
    feed: the way of training: held, streamed or mapped.
    cached: the feed of a phase for which outputs are computed once, `cached(index, variables of each member)`.
    cadence: when to validate, log and save.
    validation: None where there is no validation data.
    saver: None for runs that are not saved.
    advance: told how many member-steps were done, for the progress display.
    stop: asked after every chunk whether to save and stop.
  """

  def __init__(
    self,
    members: Sequence[Member],
    feed: Feed,
    cadence: Cadence,
    *,
    cached: Callable[[int, list[Variables]], Feed] | None = None,
    validation: Validation | None = None,
    saver: Saver | None = None,
    advance: Callable[[int], None] = lambda steps: None,
    stop: Callable[[], bool] = lambda: False,
  ):
    self.members, self.population, self.inputs, self.cadence = list(members), len(members) > 1, feed, cadence
    self.feed, self.cached = feed, cached
    self.validation, self.saver, self.advance, self.stop = validation, saver, advance, stop
    self.lengths = [stretch.steps for stretch in members[0].stretches]
    self.heads = old_heads(members[0].stretches)
    self.progress = Progress(best=[None] * len(members), history=[[] for _ in members], diverged=[None] * len(members))
    self.selected: Any = None
    self.averaged: tuple[int, Variables] | None = None  # the last average, and its step
    self.clock = time.monotonic()

  # ------------------------------------------------------------------------------------------------ the run
  def run(self) -> list[Fitted]:
    """Trains to the end of the last phase.

    Raises:
      Diverged: the loss of a single run stopped being finite (in a population its member says so instead).
      Interrupted: `stop` said so; a checkpoint was written.
    """
    variables = stack([self._with_terms(member) for member in self.members], self.population)
    variables, state, left = self._restored(variables)
    stretches = self.members[0].stretches
    with contextlib.closing(self.inputs):
      for index in range(self.progress.phase + self.progress.ended, len(stretches)):
        variables, left = self._phase(index, stretches[index], variables, state, left)
        state = None
    return self._fitted(variables, left)

  def _with_terms(self, member: Member) -> Variables:
    first, methods = member.stretches[0], [stretch.method for stretch in member.stretches]
    asked = {one.name: one for method in methods for one in method.asked}
    given = {name: own['variables'] for name, own in member.asked.items()}
    return with_terms(
      first.method.network,
      [method.objective for method in methods],
      member.variables,
      first.example,
      member.seed,
      list(asked.values()),
      given,
      member.order.examples,
    )

  def _restored(self, variables: Variables) -> tuple[Variables, Any, Any]:
    """(variables, state in the middle of a phase or None, what a phase that ended left or None)."""
    found = self.saver.restore() if self.saver else None
    if found is None:
      self.progress.reschedule(self.lengths)
      return variables, None, None
    self.progress, load = found
    stretch = self.members[0].stretches[self.progress.phase]
    state = jax.eval_shape(functools.partial(self._begin, stretch), variables)
    if self.progress.ended:
      state |= {name: {kind: state[kind] for kind in ('trainable', 'stats')} for name in self._ends(stretch)}
    like = self._tree(state, variables)
    if any(self.progress.best):
      like['selected'] = network_only(variables, self.heads)
    tree = jax.tree.map(jnp.array, load(like))
    self.selected = tree.pop('selected', None)
    self.progress.reschedule(self.lengths)
    variables = {name: tree[name] for name in ('params', 'stats', 'term_stats')}
    if self.progress.ended:
      return variables, None, tree
    tree |= {'trainable': partition.split(tree.pop('params'), stretch.method.trainable)[0], **tree.pop('raw', {})}
    tree.pop('tuned', None)
    variables['stats'] = tree['stats']
    return variables, tree, None

  @staticmethod
  def _ends(stretch: Stretch) -> list[str]:
    """What the end of a phase keeps beside its result: where training stood, and the far end of an interpolation."""
    method = stretch.method
    return [*(['raw'] if method.average or method.anchored else []), *(['tuned'] if method.anchored else [])]

  # ----------------------------------------------------------------------------------------------- one phase
  def _phase(self, index: int, stretch: Stretch, variables: Variables, state: Any, left: Any) -> tuple[Variables, Any]:
    if state is None:
      self.progress.phase, self.progress.ended, self.progress.stalled = index, False, None
      variables = self._recomputed(stretch, stretch.adapt, variables)
      self.progress.digests = [partition.digests(tree['params']) for tree in self._each(variables)]
      state = self._begin(stretch, variables)
      if stretch.phase.keep_optimizer and left is not None:
        state['optimizer'] = kept(left['optimizer'], state['optimizer'], stretch.name)
    frozen = partition.split(variables['params'], stretch.method.trainable)[1]
    with self._feeding(index, stretch, variables):
      constants, state = self.feed.place(self._constants(index, frozen)), self.feed.place(state)
      while self.progress.step < self.progress.ends[index]:
        state = self._chunk(index, stretch, state, constants, frozen)
      final = self.feed.single(state)
    if stretch.steps:
      self._prove(index, stretch, self._variables(final, frozen))
    elif self.validation and stretch.phase.interpolate is None:  # of no steps: the network as it begins
      self._validate(stretch, self._variables(final, frozen))
    variables = self._result(stretch, final, frozen)
    if 'raw' in self._ends(stretch):
      final['raw'] = {'trainable': final['trainable'], 'stats': final['stats']}
    if 'tuned' in self._ends(stretch):
      trained = partition.split(variables['params'], stretch.method.trainable)[0]
      final['tuned'] = {'trainable': trained, 'stats': variables['stats']}
      variables = self._interpolated(stretch, final, variables)
    self.progress.ended = True
    self._save(stretch, final, variables)
    self._maybe_stop()
    return variables, final

  @contextlib.contextmanager
  def _feeding(self, index: int, stretch: Stretch, variables: Variables) -> Iterator[None]:
    """Inside, `self.feed` gives what the phase starts from: inputs, or outputs that are computed once."""
    if not stretch.kept or self.progress.step >= self.progress.ends[index]:
      yield
      return
    assert self.cached is not None
    with contextlib.closing(self.cached(index, list(self._each(variables)))) as self.feed:
      yield
    self.feed = self.inputs

  def _recomputed(self, stretch: Stretch, stages: Collection[str], variables: Variables) -> Variables:
    """The variables with the running statistics of these stages computed anew on the training inputs."""
    if not stages:
      return variables
    network, crop = stretch.method.network, stretch.method.augment.crop
    adapted = [
      adapt.adapt(network, tree, member.record, centred(member.arrays['x'], crop), stages)
      for member, tree in zip(self.members, self._each(variables))
    ]
    return stack(adapted, self.population)

  def _result(self, stretch: Stretch, state: Any, frozen: Any) -> Variables:
    """What the phase has come to: its parameters, or their running average."""
    variables = self._variables(state, frozen)
    if 'average' not in state:
      return variables
    if self.averaged is None or self.averaged[0] != self.progress.step:
      # Until the first is taken (an early stop may come before) there is no average.
      taken = state['average']['count'] > 0
      params = keep(taken, state['trainable'], state['average']['params'])
      averaged = {**variables, 'params': partition.join(params, frozen)}
      self.averaged = self.progress.step, self._recomputed(stretch, stretch.method.moving, averaged)
    return self.averaged[1]

  def _interpolated(self, stretch: Stretch, final: Any, end: Variables) -> Variables:
    """The point between the start of the phase and its end that validation data choose, for each member."""
    start = self._at(stretch, end, final['anchor'])
    shares = stretch.phase.interpolate or []
    points = [self._between(stretch, start, end, share) for share in shares]
    values = np.zeros((len(shares), len(self.members)))
    if self.validation is not None and len(shares) > 1:
      measured = [self.validation.measure(network_only(point), stretch) for point in points]
      values = np.array([[self._worth(own[self.validation.select]) for own in each] for each in measured])
    best = values.argmax(axis=0)
    chosen = points[0]
    for number, point in enumerate(points[1:], 1):
      chosen = keep(best == number if self.population else best[0] == number, chosen, point)
    self.progress.points = [{'phase': stretch.name, 'shares': shares, 'chosen': shares[number]} for number in best]
    if self.validation is not None:
      self._validate(stretch, chosen)
    return chosen

  @staticmethod
  def _at(stretch: Stretch, variables: Variables, end: Any) -> Variables:
    """The variables with what trains, and the statistics, as they are at an end of the phase."""
    fixed = partition.split(variables['params'], stretch.method.trainable)[1]
    return {**variables, 'params': partition.join(end['trainable'], fixed), 'stats': end['stats']}

  def _worth(self, value: float | None) -> float:
    """A value of the metric that chooses, so that larger is better; what has none is worst."""
    return self._gain(value, 0.0) if value is not None and math.isfinite(value) else -math.inf

  def _between(self, stretch: Stretch, start: Variables, end: Variables, share: float) -> Variables:
    point = averaging.interpolate(start, end, share)
    return point if share in (0, 1) else self._recomputed(stretch, stretch.method.moving, point)

  def _chunk(self, index: int, stretch: Stretch, state: Any, constants: Any, frozen: Any) -> Any:
    start = self.progress.start(index)
    done = self.progress.step - start
    count = self.cadence.next(done, self.progress.ends[index] - start) - done
    state, metrics = self.feed.train(stretch.method, state, constants, self.progress.step, count)
    self.progress.step += count
    self._check(metrics, count, stretch)
    self.advance(count * len(self.members))
    done += count
    over = self.progress.step >= self.progress.ends[index]
    # Where a phase goes back part of the way, that point is judged in place of its end.
    judged = over and stretch.phase.interpolate is None
    if self.validation and (judged or (done % self.cadence.evaluate == 0 and not over)):
      self._validate(stretch, self._result(stretch, self.feed.single(state), frozen), stretch.phase.interpolate is None)
      over = over or self._stops_early(index, stretch)
    if not over and (done % self.cadence.checkpoint == 0 or self.stop()):
      single = self.feed.single(state)
      self._save(stretch, single, self._variables(single, frozen))
      self._maybe_stop()
    return state

  def _maybe_stop(self) -> None:
    if self.stop():
      raise Interrupted(f'interrupted at step {self.progress.step}; the same command continues')

  def _check(self, metrics: Mapping[str, np.ndarray], count: int, stretch: Stretch) -> None:
    """Logs the means over the chunk, and notices the first step whose loss is not finite."""
    for number in range(len(self.members)):
      own = {name: values[number] if self.population else values for name, values in metrics.items()}
      bad = np.flatnonzero(~np.isfinite(own['loss']))
      if self.progress.diverged[number] is None and len(bad):
        self.progress.diverged[number] = self.progress.step - count + int(bad[0]) + 1
      if self.progress.diverged[number] is None:
        self._log(number, stretch, 'train', {name: float(np.mean(v, dtype=np.float64)) for name, v in own.items()})
    if not self.population and self.progress.diverged[0] is not None:
      raise Diverged(f'the loss is not finite at step {self.progress.diverged[0]}, in phase {stretch.name!r}')

  def _log(self, member: int, stretch: Stretch, split: str, values: Mapping[str, Any]) -> None:
    step, history = self.progress.step, self.progress.history[member]
    if not history or history[-1]['step'] != step:
      history.append({'step': step})
    history[-1][split] = dict(values)
    if self.saver:
      waited = self.feed.waited if split == 'train' else None
      self.saver.line(step, stretch.name, split, values, time.monotonic() - self.clock, waited)

  def _validate(self, stretch: Stretch, variables: Variables, competes: bool = True) -> None:
    """Judges the state, and keeps it where it competes and is the best so far."""
    assert self.validation is not None
    now = network_only(variables, self.heads)
    better = np.zeros(len(self.members), bool)
    for number, values in enumerate(self.validation.measure(now, stretch)):
      self._log(number, stretch, 'validation', values)
      value, best = values[self.validation.select], self.progress.best[number]
      if competes and value is not None and math.isfinite(value) and self.progress.diverged[number] is None:
        better[number] = best is None or self._gain(value, best['value']) > 0
      if better[number]:
        self.progress.best[number] = {'value': value, 'step': self.progress.step, 'phase': stretch.name}
    if better.any():
      which = better if self.population else better[0]
      self.selected = keep(which, now if self.selected is None else self.selected, now)

  def _stops_early(self, index: int, stretch: Stretch) -> bool:
    rule = stretch.phase.early_stop
    if rule is None or self.validation is None:
      return False
    value = self.progress.history[0][-1]['validation'][self.validation.select]
    best, bad = (self.progress.stalled or {'best': None, 'bad': 0}).values()
    improved = value is not None and (best is None or self._gain(value, best) > rule.min_delta)
    self.progress.stalled = {'best': value, 'bad': 0} if improved else {'best': best, 'bad': bad + 1}
    if self.progress.stalled['bad'] < rule.patience:
      return False
    cut = self.progress.ends[index] - self.progress.step
    self.progress.ends[index:] = [end - cut for end in self.progress.ends[index:]]
    self.progress.early.append(index)
    return True

  def _gain(self, value: float, than: float) -> float:
    assert self.validation is not None
    return value - than if self.validation.higher else than - value

  def _prove(self, index: int, stretch: Stretch, variables: Variables) -> None:
    for number, tree in enumerate(self._each(variables)):
      if self.progress.diverged[number] is None:
        rates = self.members[number].stretches[index].rates
        after = partition.digests(tree['params'])
        found = partition.prove(
          self.progress.digests[number], after, stretch.method.trainable, rates, stretch.phase.train
        )
        self.progress.warnings += [f'phase {stretch.name!r}: {line}' for line in found]

  # --------------------------------------------------------------------------------------------------- trees
  def _begin(self, stretch: Stretch, variables: Variables) -> Any:
    return parallel.beginning(stretch.method, self.population)(variables, np.int32(self.progress.step))

  def _constants(self, index: int, frozen: Any) -> Any:
    start = self.progress.start(index)
    members = [member.stretches[index].constants(member, start) for member in self.members]
    return {**stack(members, self.population), 'frozen': frozen}

  @staticmethod
  def _variables(state: Any, frozen: Any) -> Variables:
    params = partition.join(state['trainable'], frozen)
    return {'params': params, 'stats': state['stats'], 'term_stats': state['term_stats']}

  @staticmethod
  def _tree(state: Any, variables: Variables) -> dict[str, Any]:
    """What a checkpoint holds: parameters joined, so that its structure does not depend on what is frozen."""
    return {**variables, **{name: state[name] for name in LEFT if name in state}, 'step': state['step']}

  def _save(self, stretch: Stretch, state: Any, variables: Variables) -> None:
    """Writes a checkpoint, unless parameters stopped being finite; the step's own loss does not tell of that."""
    for number, own in enumerate(self._each(variables)):
      if self.progress.diverged[number] is None and not finite(own['params']):
        self.progress.diverged[number] = self.progress.step
    if not self.population and self.progress.diverged[0] is not None:
      raise Diverged(f'the parameters are not finite at step {self.progress.step}, in phase {stretch.name!r}')
    if self.saver is None:
      return
    tree = self._tree(state, variables)
    self.saver.save(self.progress, tree if self.selected is None else {**tree, 'selected': self.selected})

  def _each(self, tree: Any) -> Iterator[Any]:
    """The tree of every member."""
    if not self.population:
      yield tree
      return
    host = jax.device_get(tree)
    for number in range(len(self.members)):
      yield jax.tree.map(lambda leaf, n=number: leaf[n], host)

  def _fitted(self, variables: Variables, left: Any) -> list[Fitted]:
    progress, step = self.progress, np.int32(self.progress.step)
    trees = list(self._each({**variables, **{name: left[name] for name in LEFT if name in left}}))
    bests = [None] * len(trees) if self.selected is None else list(self._each(self.selected))
    made = []
    for number, tree in enumerate(trees):
      best, history, diverged = progress.best[number], progress.history[number], progress.diverged[number]
      own = dataclasses.replace(
        progress, best=[best], history=[history], diverged=[diverged], digests=progress.digests[number : number + 1]
      )
      own.points = progress.points[number : number + 1]
      selected = bests[number] if best else None
      whole = {**tree, 'step': step, **({'selected': selected} if selected is not None else {})}
      last = network_only(tree, self.heads)
      made.append(Fitted(last, selected, best, history, progress.step, diverged, progress.warnings, own, whole))
      if 'tuned' in tree:
        stretch = self.members[number].stretches[-1]
        ends = [network_only(self._at(stretch, tree, tree[end]), self.heads) for end in ('anchor', 'tuned')]
        made[-1].line = ends[0], ends[1]
    return made
