"""What a config may say of evaluation. Imports nothing heavy, so that a mistake is answered at once."""

from typing import Annotated

import pydantic

from transferlab.config import LATER, OUTSIDE, NonNegative, Positive, Schema
from transferlab.data.settings import Data

# It names a file of predictions.
SetName = Annotated[str, pydantic.Field(pattern=r'^[\w.-]*\w$')]


class Evaluation(Schema):
  """What is measured, and when."""

  every: Positive = pydantic.Field(100, description='steps between validations (each phase also ends with one)')
  batch_size: Positive = pydantic.Field(256, description='examples at a time', json_schema_extra=OUTSIDE)
  metrics: list[str] | None = pydantic.Field(None, description="what results.json holds; None: the task's usual ones")
  select: str | None = pydantic.Field(
    None, description='validation metric that chooses step, value and early stop; None: accuracy (mean_squared_error)'
  )
  sets: dict[SetName, Data] = pydantic.Field({}, description='further data sets to evaluate at the end, by name')
  correct: Annotated[list[NonNegative], pydantic.Field(min_length=1)] | None = pydantic.Field(
    None,
    description='classes whose logits get one offset, chosen on validation data to make the fewest errors: sets are '
    "measured with it as NAME_corrected, and with one chosen on the test split, as the paper's (Hinton et al. 2015, "
    'section 3), as NAME_corrected_on_test',
    json_schema_extra=LATER,
  )
  forgotten: bool = pydantic.Field(
    False,
    description="measure the source's network on the source's test split before the target's training and after it "
    '(not from scratch)',
    json_schema_extra=LATER,
  )
