"""Many runs: a base config with named axes, cell by cell, and the table they make. Reads and writes folders.

Cells whose compiled programs agree are trained together, as a population; cells that share a source share its
pretraining. A finished cell is a small record and is never repeated; a failed one is a row with its reason.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transferlab import choice, config, experiment, folder, teachers
from transferlab.cells import Candidate, Cell, Study, expand
from transferlab.config import LARGEST
from transferlab.errors import Diverged, UserError
from transferlab.preparation import Prepared, prepare, start
from transferlab.pretrained import Weights
from transferlab.screen import Screen
from transferlab.settings import Run

Stop = Callable[[], bool]


# ------------------------------------------------------------------------------------------------- entry points
def run_config(
  given: Any, workdir: Any = None, *, screen: Screen | None = None, stop: Stop = lambda: False
) -> dict[str, Any]:
  """Runs a config, a single run or an experiment; see `transferlab.run`."""
  values = config.read(given)[0] if isinstance(given, str) else config.plain(given)
  place = Path(workdir or folder.default(given if isinstance(given, str) else 'run')).expanduser()
  screen = screen or Screen(quiet=True)
  if 'axes' in values:
    return run_study(config.validate(Study, values), place, screen=screen, stop=stop)[0]
  return experiment.run(config.validate(Run, values), place, screen=screen, stop=stop)


def run_study(
  study: Study, workdir: Path, *, screen: Screen, stop: Stop = lambda: False
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """Runs the cells that are not done, and writes the table; returns it with the cells' records.

  Raises:
    UserError: a mistake in the study itself (one in a single cell makes that cell fail), or a foreign folder.
    Interrupted: `stop` said so; finished cells are kept.
  """
  cells = list(expand(study))
  with folder.locked(workdir):
    folder.claim(workdir, config.resolved(study), {'config': config.identity(study), 'data': {}})
    pending = [cell for cell in cells if not _finished(workdir, cell)]
    if pending:
      folder.write_json(workdir / 'environment.json', folder.environment())
      _run_cells(pending, workdir, study.population, screen, stop)
    records = [folder.read_json(_place(workdir, cell)) for cell in cells]
    return write_table(study, records, workdir), records


def _place(workdir: Path, cell: Cell) -> Path:
  name = '-'.join(str(value) for value in cell.where.values())
  clean = ''.join(letter if letter.isalnum() or letter in '-_.' else '_' for letter in name)
  return workdir / 'cells' / f'{clean}-{config.digest(cell.where)[:6]}.json'


def _finished(workdir: Path, cell: Cell) -> bool:
  path = _place(workdir, cell)
  return path.exists() and folder.read_record(path, 'status', 'cell')['status'] == 'done'


# --------------------------------------------------------------------------------------------------- the running
def _run_cells(cells: Sequence[Cell], workdir: Path, population: bool, screen: Screen, stop: Stop) -> None:
  screen.doing('preparing')
  for cell in cells:
    for candidate in cell.candidates:
      try:
        candidate.prepared = candidate.prepared or prepare(candidate.settings)
      except UserError as error:
        cell.failure = str(error)
        break
  alive = [cell for cell in cells if cell.failure is None]
  sources = _Sources(workdir.parent / 'sources', population, screen, stop)
  everything = list({id(c): c for cell in alive for c in cell.candidates}.values())
  trained = [c for c in everything if c.prepared is not None and c.prepared.network is not None]
  screen.expect(sum(_steps(c) for c in trained))
  sources.pretrain([source for c in trained if c.prepared for source in c.prepared.pretrained])
  names = {id(candidate): _name(cell) for cell in alive for candidate in cell.candidates}
  groups = list(_groups(everything, population))
  open_cells = dict.fromkeys(range(len(alive)))
  for _ in _side_by_side(lambda group: _train_group(group, names[id(group[0])], sources, screen, stop), groups):
    for number in list(open_cells):
      if all(c.score is not None or c.failure for c in alive[number].candidates):
        screen.doing(f'evaluating {_name(alive[number])}')
        screen.advance(0)
        folder.write_json(_place(workdir, alive[number]), choice.record(alive[number], sources))
        del open_cells[number]
        for candidate in alive[number].candidates:
          candidate.fitted = candidate.fitted if candidate.cells > 1 else None  # weights take memory
  for cell in cells:
    if cell.failure is not None:
      folder.write_json(_place(workdir, cell), choice.record(cell, sources))


def _side_by_side(work: Callable[[Any], None], items: Sequence[Any]) -> Iterator[None]:
  """Does the work for all items; on a CPU two at a time, so that one compiles while the other trains."""
  import jax

  pool = ThreadPoolExecutor(2 if jax.default_backend() == 'cpu' else 1)
  try:
    yield from pool.map(work, items)
  finally:
    pool.shutdown(cancel_futures=True)


def _steps(candidate: Candidate) -> int:
  assert candidate.prepared is not None
  return sum(stretch.steps for stretch in candidate.prepared.stretches)


def _name(cell: Cell) -> str:
  return ' / '.join(str(value) for name, value in cell.where.items() if name != 'seed')


def _groups(candidates: Sequence[Candidate], population: bool) -> Iterator[list[Candidate]]:
  """Candidates that one compiled program can train together, in order of first appearance."""
  groups: dict[Any, list[Candidate]] = {}
  for number, candidate in enumerate(candidates):
    key = _structure(candidate.prepared) if population else None
    groups.setdefault(number if key is None else key, []).append(candidate)
  for group in groups.values():
    room = _room(group[0].prepared)
    yield from (group[start : start + room] for start in range(0, len(group), room))


def _room(prepared: Prepared | None) -> int:
  """How many runs together keep the outputs of their frozen stages within what may stand on the device."""
  assert prepared is not None
  size = max((sum(kept.size for kept in stretch.kept) for stretch in prepared.stretches), default=0)
  return max(1, int(prepared.run.feature_cache.device * 2**30 // size)) if size else LARGEST


def _structure(prepared: Prepared | None) -> Any:
  """What must agree for runs to share a program; None where a run must train alone."""
  assert prepared is not None
  settings, data = prepared.run, prepared.run.target.data
  alone = any(p.early_stop for p in settings.phases) or data.hold == 'stream' or settings.parallel.compile == 'pmap'
  alone = alone or any(kept.where != 'device' for s in prepared.stretches for kept in s.kept)
  if alone or settings.baseline is not None:
    return None
  validation = prepared.loaded.splits.get('validation')
  return (
    tuple((s.method, s.steps, s.adapt, s.name, s.phase.keep_optimizer) for s in prepared.stretches),
    tuple((tuple(kept.views for kept in s.kept), tuple(s.phase.interpolate or ())) for s in prepared.stretches),
    tuple(prepared.plan.copied()) if prepared.plan and _looks_back(prepared) else prepared.plan is None,
    data.batch_size,
    data.last_batch,
    None if validation is None else len(validation),
    prepared.loaded.examples.arrays['x'].dtype.str,
    prepared.select_metric(),
    prepared.loaded.info.auxiliary,
    settings.evaluation.every,
    settings.logging.every,
    settings.checkpoint.every,
    str(settings.parallel),
  )


def _looks_back(prepared: Prepared) -> bool:
  """Whether training looks at the values that the transplant gave, whose structure is then the program's."""
  from transferlab.training.methods import needs_start

  return any(needs_start(stretch.method) for stretch in prepared.stretches)


def _train_group(group: Sequence[Candidate], name: str, sources: '_Sources', screen: Screen, stop: Stop) -> None:
  screen.doing(f'{name} ({len(group)} runs)' if len(group) > 1 else name)
  begun = time.monotonic()
  try:
    runs = [candidate.prepared for candidate in group if candidate.prepared is not None]
    if runs[0].run.baseline is not None:
      for candidate in group:
        assert candidate.prepared is not None
        candidate.score = choice.baseline_score(candidate.prepared, sources.of)
    else:
      weights, taught = [sources.of(run) for run in runs], [sources.teachers(run) for run in runs]
      for candidate, fitted in zip(group, train(runs, weights, taught, sources.place.parent, screen, stop)):
        candidate.fitted = fitted
        candidate.failure = f'diverged at step {fitted.diverged}' if fitted.diverged else None
        candidate.score = None if fitted.diverged else choice.best_score(candidate)
  except (UserError, Diverged, MemoryError) as error:
    if len(group) > 1:
      # One may have failed them all: each is tried, and speaks, for itself.
      for candidate in group:
        _train_group([candidate], name, sources, screen, stop)
      return
    group[0].failure = str(error)
  for candidate in group:
    candidate.seconds = (time.monotonic() - begun) / len(group)


def train(
  runs: Sequence[Prepared],
  weights: Sequence[Weights | None],
  taught: Sequence[Mapping[str, Weights]],
  place: Path,
  screen: Screen,
  stop: Stop,
) -> list[Any]:
  """Trains runs of equal structure together, in memory.

  Args:
    weights, taught: of each run's source, and of its teachers.
    place: for outputs of frozen stages that are too large.
  """
  from transferlab import results
  from transferlab.training.loop import Loop

  members = [start(*each) for each in zip(runs, weights, taught)]
  loop = Loop(
    members,
    experiment.feed_of(runs, members),
    experiment.cadence_of(runs[0].run),
    cached=experiment.cached_feed(runs, members, place, lambda line: None),
    validation=results.validation(runs),
    advance=screen.advance,
    stop=stop,
  )
  return loop.run()


class _Sources:
  """The sources of a study's cells: pretrained once each, together where they can be, and kept in folders."""

  def __init__(self, place: Path, population: bool, screen: Screen, stop: Stop):
    self.place, self.population, self.screen, self.stop = place, population, screen, stop
    self.found: dict[tuple[str, str], Weights] = {}
    self.failures: dict[str, str] = {}

  def pretrain(self, sources: Sequence[Prepared]) -> None:
    """Pretrains what is not there yet, and first what that has learnt from itself."""
    unique = {config.digest(source.identity): source for source in sources}
    if earlier := [before for source in unique.values() for before in source.pretrained]:
      self.pretrain(earlier)
    missing = [
      Candidate(source.run, {}, source)
      for source in unique.values()
      if not (experiment.source_folder(source, self.place) / 'results.json').exists()
    ]
    self.screen.expect(sum(_steps(candidate) for candidate in missing))
    groups = list(_groups(missing, self.population))
    for _ in _side_by_side(lambda group: _train_group(group, 'sources', self, self.screen, self.stop), groups):
      pass
    for candidate in missing:
      if candidate.failure is None:
        self._keep(candidate)
      elif candidate.prepared is not None:
        self.failures[config.digest(candidate.prepared.identity)] = candidate.failure

  def _keep(self, candidate: Candidate) -> None:
    """Writes a pretrained source as a finished run, in the form that single runs have."""
    from transferlab import results

    prepared, fitted = candidate.prepared, candidate.fitted
    assert prepared is not None
    place = experiment.source_folder(prepared, self.place)
    with folder.locked(place):
      folder.claim(place, config.resolved(prepared.run), prepared.identity)
      saver = experiment.RunFolder(prepared, place)
      saver.save(fitted.progress, fitted.tree)
      saver.close()
      measured = results.final(prepared, fitted, taught=self.teachers(prepared))
      folder.write_json(place / 'environment.json', folder.environment())
      folder.write_json(
        place / 'results.json',
        {**experiment.record(prepared, measured, fitted, seconds=candidate.seconds), 'tested': True},
      )
    key = config.digest(prepared.identity)
    self.found[key, 'last'] = Weights(fitted.last, prepared.record, str(place))
    self.found[key, 'selected'] = Weights(fitted.selected or fitted.last, prepared.record, str(place))

  def of(self, run: Prepared) -> Weights | None:
    """The weights that a run starts from. Raises `UserError` where their pretraining failed."""
    if run.weights is not None or run.source is None:
      return run.weights
    assert run.run.source is not None
    return self._finished(run.source, run.run.source.which)

  def teachers(self, run: Prepared) -> dict[str, Weights]:
    """Those of a run's teachers, by name. Raises `UserError` where their pretraining failed."""
    return teachers.weights(run, self._finished)

  def _finished(self, source: Prepared, which: str) -> Weights:
    place = experiment.source_folder(source, self.place)
    key = place.name, which
    if key not in self.found:
      if not (place / 'results.json').exists():
        raise UserError(
          f'the source, or a teacher, could not be pretrained: {self.failures.get(place.name, "interrupted")}'
        )
      self.found[key] = experiment.finished_weights(place, which)
    return self.found[key]


# ---------------------------------------------------------------------------------------------------- the table
def write_table(study: Study, records: Sequence[Mapping[str, Any]], workdir: Path) -> dict[str, Any]:
  """table.md, table.csv, table.json, comparison.png, curves.png (and along.png); returns what table.json holds."""
  from transferlab import plots, tables
  from transferlab.comparison import summarise

  summary = summarise(records, study.table)
  path = workdir / 'table.json'
  if not path.exists() or folder.read_record(path).get('records') != list(records):
    # Without validation data there are no curves, and without a finished cell no picture at all.
    with contextlib.suppress(UserError):
      plots.comparison(summary, workdir / 'comparison.png')
    if study.table.tradeoff:
      with contextlib.suppress(UserError):
        plots.tradeoff(summary, workdir / 'tradeoff.png')
    if study.table.along is not None:
      with contextlib.suppress(UserError):
        plots.along(summary, workdir / 'along.png')
    with contextlib.suppress(UserError):
      plots.curves(records, study.table, workdir / 'curves.png')
    tables.write(summary, records, workdir)
  return folder.read_record(path)
