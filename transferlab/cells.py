"""From a base config and named axes to cells, and from a cell's grid to its candidates. Pure.

A cell is one combination of the axes' values; a candidate is one value of what `choose` lets validation data decide.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Annotated, Any

import pydantic

from transferlab import config
from transferlab.comparison import Table
from transferlab.config import OUTSIDE, Schema
from transferlab.errors import UserError, nearest
from transferlab.preparation import Prepared
from transferlab.settings import Run

Axis = dict[str, dict[str, Any]] | Annotated[list[Any], pydantic.Field(min_length=1)]


class Study(Schema):
  """An experiment: a base run and the axes along which its cells differ."""

  base: dict[str, Any] = pydantic.Field(description='the run that all cells start from; its keys are those of a run')
  axes: dict[str, Axis] = pydantic.Field(
    description='by name: a list of values of the config key of that name, or {value: {config key: value, …}}'
  )
  table: Table = pydantic.Field(Table(), description='what the table shows and compares')
  population: bool = pydantic.Field(
    True, description='train cells of equal structure together in one compiled program', json_schema_extra=OUTSIDE
  )


@dataclasses.dataclass
class Candidate:
  """One value of the grid of one cell, on its way; `cells` of equal settings share it."""

  settings: Run
  chosen: dict[str, Any]
  prepared: Prepared | None = None
  fitted: Any = None
  score: float | None = None
  seconds: float = 0.0
  failure: str | None = None
  cells: int = 1


@dataclasses.dataclass
class Cell:
  """One combination of the axes' values."""

  where: dict[str, Any]
  settings: Run | None = None
  candidates: list[Candidate] = dataclasses.field(default_factory=list)
  failure: str | None = None


def expand(study: Study) -> Iterator[Cell]:
  """The cells, in the order of the axes. A cell whose config is wrong carries the reason; equal cells train once.

  Raises:
    UserError: an axis without values, or a table that names an axis which is not there.
  """
  for name in (study.table.rows, study.table.repeats, study.table.along):
    if name is not None and name not in study.axes:
      raise UserError(f'config.table: no axis {name!r}; nearest: {", ".join(nearest(name, study.axes)) or "none"}')
  options: list[list[tuple[str, Any, dict[str, Any]]]] = []
  for name, axis in study.axes.items():
    named = axis.items() if isinstance(axis, dict) else ((value, {name: value}) for value in axis)
    options.append([(name, value, overrides) for value, overrides in named])
    if not options[-1]:
      raise UserError(f'config.axes.{name}: an axis needs values')
  problems: list[str] = []
  made: dict[str, list[Candidate]] = {}
  for combination in itertools.product(*options):
    values: dict[str, Any] = study.base
    for _, _, overrides in combination:
      for key, value in overrides.items():
        values = config.override(values, key, value)
    cell = Cell({name: value for name, value, _ in combination})
    try:
      cell.settings = config.validate(Run, values)
      same = cell.settings.model_dump_json()
      for candidate in made.get(same, []):
        candidate.cells += 1
      cell.candidates = made.setdefault(same, []) or list(candidates(cell.settings))
      made[same] = cell.candidates
    except UserError as error:
      cell.failure = str(error)
      problems.append(str(error))
    yield cell
  if problems and not made:
    raise UserError(problems[0])


def check(settings: Run | Study) -> None:
  """Validates every cell and every candidate: cheap, and done before anything heavy is imported.

  Raises:
    UserError: as `expand` and `candidates`.
  """
  list(expand(settings) if isinstance(settings, Study) else candidates(settings))


def candidates(settings: Run) -> Iterator[Candidate]:
  """A run for every combination of the values to choose from."""
  values = config.resolved(settings)
  for combination in itertools.product(*settings.choose.values()):
    chosen = dict(zip(settings.choose, combination))
    own = {**values, 'choose': {}, 'soup': None}
    for key, value in chosen.items():
      own = config.override(own, key, value)
    yield Candidate(config.validate(Run, own), chosen)
