"""From several trained candidates to the one that is chosen, or their soup, and what is written of it.

Choices are made on validation data; only what was chosen is tested. Reads and writes the folders of runs.
"""

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from transferlab import config, experiment, folder
from transferlab.cells import Candidate, Cell, candidates
from transferlab.errors import Diverged, UserError
from transferlab.preparation import Prepared, prepare
from transferlab.pretrained import Weights
from transferlab.screen import Screen
from transferlab.settings import Run

Stop = Callable[[], bool]
WeightsOf = Callable[[Prepared], Weights | None]


class Origins(Protocol):
  """Where the cells of an experiment find the weights of others."""

  def of(self, run: Prepared) -> Weights | None:
    """Those that a run starts from."""

  def teachers(self, run: Prepared) -> Mapping[str, Weights]:
    """Those of its teachers, by name."""


def choose_run(
  settings: Run, workdir: Path, *, screen: Screen, stop: Stop = lambda: False, extend: bool = False
) -> dict[str, Any]:
  """A single run with `choose`: every candidate is a run with its own folder; validation data choose one, and only
  that one is tested. A candidate that diverges is out of the choice.

  Raises:
    Diverged: every candidate did.
  """
  options = list(candidates(settings))
  prepared = prepare(options[0].settings)
  with folder.locked(workdir):
    identity = {**prepared.identity, 'config': config.identity(settings)}
    folder.claim(workdir, config.resolved(settings), identity, extend=extend)
    if (workdir / 'results.json').exists() and not extend:
      screen.say(f'{workdir} is finished')
      return folder.read_record(workdir / 'results.json', 'chosen', 'last', 'selected')
    folder.write_json(workdir / 'environment.json', folder.environment())
    scores, seconds = _tried(options, prepared, workdir, screen, stop, extend)
    finite = [score for score in scores if score is not None]
    best = scores.index(max(finite)) if finite else 0
    chosen = {'chosen': options[best].chosen, 'candidate': best, 'grid': settings.choose, 'scores': scores}
    place = workdir / 'candidates' / str(best)
    if settings.soup is None:
      results = experiment.run(options[best].settings, place, screen=screen, stop=stop)
    else:
      results = _soup_run(settings.soup, options, scores, best, workdir / 'candidates', screen)
      chosen['candidate'] = 'soup'
    results = {**results, **chosen, 'seconds': round(seconds, 3)}
    folder.write_json(workdir / 'results.json', results)
    return results


def _tried(
  options: Sequence[Candidate], prepared: Prepared, workdir: Path, screen: Screen, stop: Stop, extend: bool
) -> tuple[list[float | None], float]:
  """Trains every candidate: their scores on validation data (None: it has none, or diverged), and the seconds."""
  scores: list[float | None] = []
  seconds, failures = 0.0, []
  for number, option in enumerate(options):
    screen.say(f'candidate {number}: {describe(option.chosen)}')
    place = workdir / 'candidates' / str(number)
    try:
      results = experiment.run(option.settings, place, screen=screen, stop=stop, extend=extend, test=False)
    except Diverged as problem:
      screen.say(f'candidate {number} diverged: {problem}')
      failures.append(problem)
      scores.append(None)
      continue
    score = prepared.score((results['selected'] or results['last'])['validation'])
    scores.append(score if math.isfinite(score) else None)
    seconds += results['seconds']
  if len(failures) == len(options):
    raise failures[0]
  return scores, seconds


def _soup_run(
  recipe: str, options: Sequence[Candidate], scores: Sequence[float | None], best: int, place: Path, screen: Screen
) -> dict[str, Any]:
  """A soup of the candidates' weights as a finished run in `place/soup`: what its results.json holds.

  Args:
    scores: of each candidate, whose runs stand in `place/NUMBER`; None where it diverged.
    best: the candidate whose config the soup's run has.
  """
  from transferlab import combining, results
  from transferlab.training.state import Fitted, Progress

  begun = time.monotonic()
  numbers = [number for number, score in enumerate(scores) if score is not None]
  runs, prepared = [prepare(options[number].settings) for number in numbers], prepare(options[best].settings)
  weights = [experiment.finished_weights(place / str(number), 'selected').variables for number in numbers]
  variables, said = combining.soup(recipe, runs, weights, [score for score in scores if score is not None])
  said['ingredients'] = [numbers[number] for number in said['ingredients']]
  steps = sum(stretch.steps for stretch in prepared.stretches)
  progress = Progress(steps, len(prepared.stretches) - 1, True, digests=[{}])
  fitted = Fitted(variables, variables, None, [], steps, None, [], progress, {})
  # It is made of what stands beside it, so an older one, of shorter runs, gives way.
  shutil.rmtree(place / 'soup', ignore_errors=True)
  with folder.locked(place / 'soup'):
    folder.claim(place / 'soup', config.resolved(prepared.run), prepared.identity)
    saver = experiment.RunFolder(prepared, place / 'soup')
    saver.save(progress, variables)
    saver.close()
    fetch = (prepared, place / 'sources', screen, lambda: False)
    taught = experiment.teacher_weights(*fetch)
    measured = results.final(prepared, fitted, place / 'soup' / 'predictions', taught=taught)
    if prepared.run.evaluation.forgotten:
      source = experiment.source_weights(*fetch)
      measured |= results.forgotten(prepared, fitted, source)
    record = experiment.record(prepared, measured, fitted, seconds=time.monotonic() - begun)
    folder.write_json(place / 'soup' / 'results.json', {**record, 'soup': said, 'tested': True})
  return {**record, 'soup': said}


# ------------------------------------------------------------------------------------------------- in an experiment
def best_score(candidate: Candidate) -> float:
  """That of a trained candidate's best step; zero without validation data."""
  best, prepared = candidate.fitted.best, candidate.prepared
  assert prepared is not None
  return 0.0 if best is None else prepared.score({prepared.select_metric(): best['value']})


def baseline_score(prepared: Prepared, weights_of: WeightsOf) -> float:
  """That of a classical method; zero without validation data."""
  from transferlab import results

  if 'validation' not in prepared.loaded.splits:
    return 0.0
  variables = experiment.probed_variables(prepared, lambda: weights_of(prepared))
  return prepared.score(results.measure_baseline(prepared, variables)['validation'])


def record(cell: Cell, origins: Origins) -> dict[str, Any]:
  """What is kept of a cell: its chosen candidate, the only one whose test split is touched; or why it failed."""
  seconds = round(sum(c.seconds / c.cells for c in cell.candidates), 3)
  failed = {'cell': cell.where, 'seconds': seconds, 'status': 'failed'}
  good = [candidate for candidate in cell.candidates if candidate.score is not None]
  if cell.failure is not None or not good:
    reason = cell.failure or cell.candidates[0].failure or 'no candidate finished'
    return {**failed, 'reason': reason}
  best = max(good, key=lambda candidate: candidate.score or 0.0)
  assert cell.settings is not None
  soup: dict[str, Any] = {}
  if cell.settings.soup is not None:
    try:
      best, soup = _souped(cell.settings.soup, best, good, cell.candidates)
    except UserError as error:
      return {**failed, 'reason': str(error)}
  assert best.prepared is not None
  try:
    measured = _measure(best, origins)
  except UserError as error:
    return {**failed, 'reason': str(error)}
  return {
    **experiment.record(best.prepared, measured, best.fitted, seconds=seconds),
    **soup,
    'cell': cell.where,
    'reason': None,
    'chosen': best.chosen,
    'grid': cell.settings.choose,
    'failed candidates': {describe(c.chosen): c.failure for c in cell.candidates if c.failure},
    'stands_in': None,
  }


def _souped(
  recipe: str, best: Candidate, good: Sequence[Candidate], everyone: Sequence[Candidate]
) -> tuple[Candidate, dict[str, Any]]:
  """A candidate with the soup of the good ones for its weights, and what went in."""
  from transferlab import combining

  weights = [candidate.fitted.selected or candidate.fitted.last for candidate in good]
  runs = [candidate.prepared for candidate in good if candidate.prepared is not None]
  variables, said = combining.soup(recipe, runs, weights, [candidate.score or 0.0 for candidate in good])
  said['ingredients'] = [everyone.index(good[number]) for number in said['ingredients']]
  fitted = dataclasses.replace(best.fitted, last=variables, selected=variables, best=None, line=None)
  return dataclasses.replace(best, fitted=fitted), {'soup': said}


def _measure(candidate: Candidate, origins: Origins) -> dict[str, Any]:
  from transferlab import combining, results

  prepared = candidate.prepared
  assert prepared is not None
  if prepared.run.baseline is not None:
    return results.final_baseline(prepared, experiment.probed_variables(prepared, lambda: origins.of(prepared)))
  weights = origins.of(prepared) if prepared.run.evaluation.forgotten else None
  fitted = candidate.fitted
  return {
    **results.final(prepared, fitted, taught=origins.teachers(prepared)),
    **combining.curve(prepared, fitted),
    **results.forgotten(prepared, fitted, weights),
  }


def describe(chosen: Mapping[str, Any]) -> str:
  """The values of a candidate in one line."""
  return ', '.join(f'{key}={value}' for key, value in chosen.items())
