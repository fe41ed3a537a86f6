"""One run: data -> network -> transplant -> phases -> evaluation -> results.json. Reads and writes a run's folder.

Order at start: resume, else source, else from scratch. A run that is finished is read, not repeated.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transferlab import config, folder, paths, teachers
from transferlab.errors import Diverged, Interrupted, UserError
from transferlab.identity import FORMAT
from transferlab.preparation import Prepared, prepare, start
from transferlab.pretrained import Weights
from transferlab.screen import Screen
from transferlab.settings import Run
from transferlab.training.phases import names as phase_names

Stop = Callable[[], bool]


def run(
  settings: Run,
  workdir: Path,
  *,
  screen: Screen | None = None,
  stop: Stop = lambda: False,
  extend: bool = False,
  test: bool = True,
  sources: Path | None = None,
) -> dict[str, Any]:
  """Trains and evaluates one run in its folder, and returns what results.json holds.

  Args:
    workdir: the run's folder.
    sources: where sources and teachers stand that are pretrained on the way; None: `sources/` beside the folder.
    stop: asked now and then whether to save and stop.
    extend: the folder may hold the same run with a shorter last phase, or fewer phases.
    test: evaluate on everything; False keeps to training and validation data, for a run that is one of several to
      choose from.

  Raises:
    UserError: a mistake in the config, or a folder that belongs to another run.
    Diverged: the loss stopped being finite.
    Interrupted: `stop` said so; the same call continues.
  """
  screen = screen or Screen(quiet=True)
  if settings.choose:
    from transferlab import choice

    return choice.choose_run(settings, workdir, screen=screen, stop=stop, extend=extend)
  prepared = prepare(settings)
  with folder.locked(workdir):
    path = workdir / 'results.json'
    done = folder.read_record(path, 'tested', 'last', 'selected') if path.exists() else None
    longer = extend and (done is None or _longer(prepared, workdir))
    folder.claim(workdir, config.resolved(prepared.run), prepared.identity, extend=longer)
    if done is not None and (done['tested'] or not test) and not longer:
      screen.say(f'{workdir} is finished')
      return done
    folder.write_json(workdir / 'environment.json', folder.environment())
    place = sources or workdir.parent / 'sources'
    results = {**_train(prepared, workdir, place, screen, stop, test), 'tested': test}
    folder.write_json(path, results)
  return results


def _longer(prepared: Prepared, workdir: Path) -> bool:
  """Whether a finished run is shorter than what the config now asks for."""
  from transferlab import checkpoints

  progress = checkpoints.progress(checkpoints.find(str(workdir)))
  return sum(stretch.steps for stretch in prepared.stretches) > progress['step']


def _train(prepared: Prepared, workdir: Path, sources: Path, screen: Screen, stop: Stop, test: bool) -> dict[str, Any]:
  from transferlab import results
  from transferlab.training.loop import Loop

  begun = time.monotonic()
  if prepared.run.baseline is not None:
    return _fit_baseline(prepared, workdir, sources, screen, stop, test)
  weights = source_weights(prepared, sources, screen, stop)
  taught = teacher_weights(prepared, sources, screen, stop)
  if stop():
    raise Interrupted('interrupted before training')
  member = start(prepared, weights, taught)
  describe(prepared, workdir)
  for line in prepared.caching:
    screen.say(line)
  saver = RunFolder(prepared, workdir)
  screen.expect(sum(stretch.steps for stretch in prepared.stretches))
  screen.doing(workdir.name)
  try:
    loop = Loop(
      [member],
      feed_of([prepared], [member]),
      cadence_of(prepared.run),
      cached=cached_feed([prepared], [member], workdir.parent, screen.say),
      validation=results.validation([prepared]),
      saver=saver,
      advance=screen.advance,
      stop=stop,
    )
    fitted = loop.run()[0]
  finally:
    saver.close()
  measured = _measured(prepared, fitted, weights, taught, workdir, test)
  for warning in fitted.warnings:
    screen.say(f'note: {warning}')
  return record(prepared, measured, fitted, seconds=time.monotonic() - begun)


def _measured(
  prepared: Prepared, fitted: Any, weights: Weights | None, taught: Mapping[str, Weights], workdir: Path, test: bool
) -> dict[str, Any]:
  """What is measured at the end of a run; draws what there is to draw."""
  from transferlab import combining, plots, results

  measured = {
    **results.final(prepared, fitted, workdir / 'predictions', test, taught),
    **combining.curve(prepared, fitted, test),
    **results.forgotten(prepared, fitted, weights, test),
  }
  curve = measured.get('interpolation', {'points': []})
  if test and len(curve['points']) > 1:
    with contextlib.suppress(UserError):  # the metric that chooses may be none of those that are measured
      plots.interpolation(curve['points'], curve['chosen'], prepared.select_metric(), workdir / 'interpolation.png')
  return measured


def _fit_baseline(
  prepared: Prepared, workdir: Path, sources: Path, screen: Screen, stop: Stop, test: bool
) -> dict[str, Any]:
  """A run that fits a classical method: to raw inputs, or to what a network makes of them."""
  from transferlab import plots, results

  begun = time.monotonic()
  variables = probed_variables(prepared, lambda: source_weights(prepared, sources, screen, stop))
  if stop():
    raise Interrupted('interrupted before the baseline was fitted')
  if prepared.network is not None:
    describe(prepared, workdir)
  measured = results.final_baseline(prepared, variables, workdir / 'predictions', test)
  for warning in measured['warnings']:
    screen.say(f'note: {warning}')
  if len(measured.get('probes', ())) > 1:
    numbers = [name for name, value in measured['last']['train'].items() if not isinstance(value, list)]
    metric = prepared.select_metric() if prepared.select_metric() in numbers or not numbers else numbers[0]
    # Where neither validation nor test data were measured, or no number, there is nothing to draw.
    with contextlib.suppress(UserError):
      plots.depth(measured['probes'], metric, workdir / 'depth.png')
  return record(prepared, measured, None, seconds=time.monotonic() - begun)


def probed_variables(prepared: Prepared, weights: Callable[[], Weights | None]) -> dict[str, Any] | None:
  """What a probe's network holds: its source's weights as the transplant has it, else its initialisation.

  None for a baseline on raw inputs, whose weights are not asked for.
  """
  return None if prepared.network is None else start(prepared, weights()).variables


def record(prepared: Prepared, measured: Mapping[str, Any], fitted: Any, *, seconds: float) -> dict[str, Any]:
  """What results.json holds; times stand in 'seconds', so that everything else is reproducible to the bit."""
  return {
    'format': FORMAT,
    'status': 'done',
    **measured,
    'best': fitted.best if fitted else None,
    'steps': fitted.steps if fitted else None,
    'curve': fitted.history if fitted else [],
    'warnings': fitted.warnings if fitted else list(measured.get('warnings', ())),
    'trained_parameters': prepared.trained_parameters(),
    'frozen_stages': list(prepared.caching),
    'labels': prepared.loaded.labels,
    'data': prepared.loaded.info.origin,
    'identity': config.digest(prepared.identity),
    'seconds': round(seconds, 3),
  }


def source_weights(prepared: Prepared, sources: Path, screen: Screen, stop: Stop) -> Weights | None:
  """The source's weights: read, or pretrained in `sources/HASH`, where runs that share a source find them again."""
  if prepared.weights is not None or prepared.source is None:
    return prepared.weights
  assert prepared.run.source is not None
  return _pretrained(prepared.source, prepared.run.source.which, 'the source', sources, screen, stop)


def teacher_weights(prepared: Prepared, sources: Path, screen: Screen, stop: Stop) -> dict[str, Weights]:
  """The weights of its teachers by name: read, or pretrained in `sources/HASH` as a source is."""
  return teachers.weights(
    prepared, lambda teacher, which: _pretrained(teacher, which, 'a teacher', sources, screen, stop)
  )


def _pretrained(source: Prepared, which: str, what: str, sources: Path, screen: Screen, stop: Stop) -> Weights:
  """The weights of a run that stands in `sources`, and is trained where it does not."""
  place = source_folder(source, sources)
  if not (place / 'results.json').exists():
    screen.say(f'pretraining {what} in {place}')
  try:
    run(source.run, place, screen=screen, stop=stop, sources=sources)
  except Diverged as error:
    raise Diverged(f'{what}, in {place}: {error}') from None
  return finished_weights(place, which)


def source_folder(source: Prepared, sources: Path) -> Path:
  """Where the run of a source or teacher stands: the hash of what determines it."""
  return sources / config.digest(source.identity)


def finished_weights(place: Path, which: str) -> Weights:
  """The weights of a run that is over."""
  from transferlab import checkpoints

  path = checkpoints.find(str(place))
  return Weights(checkpoints.weights(path, which), checkpoints.progress(path)['preprocessing'], str(place))


def describe(prepared: Prepared, workdir: Path) -> None:
  """parameters.txt and transplant.json."""
  folder.write_text(workdir / 'parameters.txt', '\n'.join(parameter_table(prepared)) + '\n')
  if prepared.plan is not None:
    notes = {kind: [note for note in prepared.notes if note.startswith(kind)] for kind in ('preprocessing', 'network')}
    rest = [note for note in prepared.notes if not note.startswith(tuple(notes))]
    folder.write_json(workdir / 'transplant.json', {**prepared.plan.as_json(), **notes, 'weights': rest})


def parameter_table(prepared: Prepared) -> list[str]:
  """A line per leaf: path, shape, origin, and its learning rate in each phase ('frozen' where it does not move)."""
  origins = {o.path: o.action for o in prepared.plan.origins} if prepared.plan else {}
  shapes = paths.flatten(prepared.network.shapes()['params'])
  phases = phase_names(prepared.run.phases)
  rows = [('parameter', 'shape', 'origin', *phases)]
  for path, leaf in shapes.items():
    rates = [f'{s.rates[path]:g}' if path in s.method.trainable else 'frozen' for s in prepared.stretches]
    rows.append((path, 'x'.join(map(str, leaf.shape)), origins.get(path, 'init'), *rates))
  for path, owner in prepared.network.shared.items():
    rows.append((path, '', f'shared with {owner}', *[''] * len(phases)))
  widths = [max(map(len, column)) for column in zip(*rows)]
  return ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def cadence_of(settings: Run) -> Any:
  """When a run validates, logs and saves."""
  from transferlab.training.state import Cadence

  return Cadence(settings.evaluation.every, settings.logging.every, settings.checkpoint.every)


def feed_of(prepared: Sequence[Prepared], members: Sequence[Any]) -> Any:
  """The way of training that a config asks for.

  Raises:
    UserError: pmap with terms that couple examples.
  """
  from transferlab.training import feed, parallel

  settings = prepared[0].run
  chosen = parallel.devices(settings.parallel)
  arrays, orders = [member.arrays for member in members], [member.order for member in members]
  if settings.parallel.compile == 'pmap':
    return feed.Mapped(arrays[0], orders[0], chosen)
  mesh, room = parallel.make_mesh(chosen), _room(settings, members)
  if settings.target.data.hold == 'stream':
    return feed.Streamed(arrays[0], orders[0], mesh, settings.target.data.workers, room)
  return feed.Held(arrays, orders, mesh, room)


def _room(settings: Run, members: Sequence[Any]) -> int:
  """Steps a call: no more than between any two things that happen."""
  cadence = cadence_of(settings)
  return min(cadence.evaluate, cadence.log, cadence.checkpoint, max(s.steps for s in members[0].stretches))


def cached_feed(
  prepared: Sequence[Prepared], members: Sequence[Any], place: Path, say: Callable[[str], None]
) -> Callable[[int, list[Any]], Any]:
  """How the loop feeds a phase for which outputs are kept: `make(index of the phase, variables of each member)`.

  Args:
    place: the folder for outputs that stay on disk, where the config names none.
    say: told of what takes time.
  """
  from transferlab.training import feature_store, feed, parallel

  settings = prepared[0].run
  chosen = parallel.devices(settings.parallel)
  mesh = parallel.make_mesh(chosen)
  limit = settings.feature_cache.disk * 2**30
  files = Path(settings.feature_cache.folder or place / 'features').expanduser()

  def make(index: int, variables: list[Any]) -> Any:
    arrays, orders = [], []
    for member, own in zip(members, variables):
      stretch = member.stretches[index]
      arrays.append(feature_store.arrays(stretch, own, member, mesh, files, say, limit))
      orders.append(dataclasses.replace(member.order, views=stretch.kept[0].views))
    stretch, data, room = members[0].stretches[index], settings.target.data, _room(settings, members)
    if settings.parallel.compile == 'pmap':
      return feed.Mapped(arrays[0], orders[0], chosen)
    streamed = data.hold == 'stream' and stretch.prefix is None
    if not streamed and all(kept.where == 'device' for kept in stretch.kept):
      return feed.Held(arrays, orders, mesh, room)
    return feed.Streamed(arrays[0], orders[0], mesh, data.workers if streamed else 0, room)

  return make


class RunFolder:
  """The loop's saver for a run with a folder of its own: checkpoints, metrics.jsonl, TensorBoard events."""

  def __init__(self, prepared: Prepared, workdir: Path, keep: int | None = None):
    from transferlab import checkpoints

    self.place = workdir / 'checkpoints'
    self.stretches = prepared.stretches
    self.writer = checkpoints.Writer(self.place, keep or prepared.run.checkpoint.keep)
    found = checkpoints.steps(self.place)
    self.newest = self.place / str(found[-1]) if found else None
    self.fixed = {'preprocessing': prepared.record, 'identity': config.digest(prepared.identity)}
    self.metrics = folder.Metrics(workdir / 'metrics.jsonl', found[-1] if found else 0)

  def restore(self) -> Any:
    """See `Saver`."""
    from transferlab import checkpoints
    from transferlab.training.state import Progress

    if self.newest is None:
      return None
    newest, saved = self.newest, checkpoints.progress(self.newest)
    fields = {field.name: saved[field.name] for field in dataclasses.fields(Progress) if field.name in saved}
    return Progress(**fields), lambda like: checkpoints.load(newest, like)

  def save(self, progress: Any, tree: Mapping[str, Any]) -> None:
    """See `Saver`. Metrics reach the disk before the checkpoint does."""
    self.metrics.flush()
    trainable = self.stretches[progress.phase].method.trainable
    frozen = {path: digest for path, digest in progress.digests[0].items() if path not in trainable}
    self.writer.save(progress.step, tree, {**dataclasses.asdict(progress), **self.fixed}, frozen)

  def line(
    self, step: int, phase: str, split: str, values: Mapping[str, Any], seconds: float, waited: float | None
  ) -> None:
    """See `Saver`."""
    self.metrics.write(step, phase, split, values, seconds, waited)

  def close(self) -> None:
    """Waits for what is being written."""
    self.writer.close()
    self.metrics.close()


def load_run(workdir: Path) -> Run:
  """The config of a run's folder. Raises `UserError` where there is none."""
  saved = folder.read_record(workdir / 'config.json', 'config')
  return config.validate(Run, saved['config'])
