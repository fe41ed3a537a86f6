"""What a config may say of balancing. Imports nothing heavy, so that a mistake is answered at once."""

import pydantic

from transferlab.config import Schema


class Balancing(Schema):
  """How the losses of several tasks combine; keys beside these are arguments of the balancer."""

  model_config = pydantic.ConfigDict(extra='allow', frozen=True, strict=True, allow_inf_nan=False)
  name: str = pydantic.Field(description='name of a balancer (--list=balancers), or module.path.function of your own')
