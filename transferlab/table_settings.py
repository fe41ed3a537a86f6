"""What a config may say of an experiment's table. Imports nothing heavy, so that a mistake is answered at once."""

from typing import Literal

import pydantic

from transferlab.config import LATER, Fraction, Schema


class Table(Schema):
  """What an experiment's table shows and compares."""

  rows: str = pydantic.Field('method', description='The axis whose values are the rows.')
  repeats: str = pydantic.Field(
    'seed', description='The axis whose values are repeats: means run over it, tests pair by it.'
  )
  baseline: str | None = pydantic.Field(
    None, description='The row that all others are tested against; None: no comparison.'
  )
  metric: str = pydantic.Field('accuracy', description='The metric shown, by its name among the metrics.')
  split: str = pydantic.Field('test', description='The split, or further named data set, it is measured on.')
  also: list[str] = pydantic.Field(
    [],
    description='Further columns: the metric on another split or named data set (evaluation.sets), or another metric '
    "of a set: 'shifted', 'test:agreement'.",
    json_schema_extra=LATER,
  )
  along: str | None = pydantic.Field(
    None,
    description='An axis over whose values along.png draws a line for each row.',
    json_schema_extra=LATER,
  )
  single: dict[str, str] = pydantic.Field(
    {},
    description='The row of each task that trains it alone: the columns Δm and Δ of each task compare all rows '
    'with them, in per cent.',
    json_schema_extra=LATER,
  )
  tradeoff: bool = pydantic.Field(
    False,
    description='tradeoff.png draws the first two entries of `also` against each other, a point for each row.',
    json_schema_extra=LATER,
  )
  which: Literal['selected', 'last'] = pydantic.Field(
    'selected', description='Of which step: selected on validation data (last where none was), or last.'
  )
  confidence: Fraction = pydantic.Field(0.95, description='Confidence of the intervals.')
  notes: list[str] = pydantic.Field([], description='Sentences to stand under the table.')

  @pydantic.model_validator(mode='after')
  def _drawn(self) -> 'Table':
    if self.tradeoff and len(self.also) < 2:
      raise ValueError('tradeoff draws two entries of also, and there are fewer')
    return self

  def column(self, name: str) -> 'Table':
    """The same table of what an entry of `also` names."""
    split, _, metric = name.partition(':')
    return self.model_copy(update={'split': split, 'metric': metric or self.metric})
