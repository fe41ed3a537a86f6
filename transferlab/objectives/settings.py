"""What a config may say of balancing. Imports nothing heavy, so that a mistake is answered at once."""

import pydantic

from transferlab.config import LATER, Schema


class Balancing(Schema):
  """How the losses of several tasks combine; keys beside these are arguments of the balancer."""

  model_config = pydantic.ConfigDict(extra='allow', frozen=True, strict=True, allow_inf_nan=False)
  name: str = pydantic.Field(description='name of a balancer (--list=balancers), or module.path.function of your own')
  lookahead: float | None = pydantic.Field(
    None,
    gt=0,
    le=1e6,
    description='log who helps whom: the share by which the loss of each task falls after a plain step of this '
    'rate along the gradient of each other; a forward pass for each task, for balancers of gradients of parameters',
    json_schema_extra=LATER,
  )
