"""What a config may say of devices and compilation. Imports nothing heavy, so that a mistake is answered at once."""

from typing import Literal

import pydantic

from transferlab.config import OUTSIDE, Positive, Schema


class Parallel(Schema):
  """Devices and compilation."""

  compile: Literal['jit', 'pmap'] = pydantic.Field(
    'jit', description='jit over a mesh of devices, or pmap (no scan, no population)', json_schema_extra=OUTSIDE
  )
  devices: Positive | None = pydantic.Field(
    None, description='how many devices to use; None: all', json_schema_extra=OUTSIDE
  )
