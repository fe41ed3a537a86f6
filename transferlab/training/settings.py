"""What a config may say of devices and compilation. Imports nothing heavy, so that a mistake is answered at once."""

from typing import Annotated, Literal

import pydantic

from transferlab.config import OUTSIDE, Positive, Schema

GiB = Annotated[float, pydantic.Field(ge=0, le=1e9)]


class Parallel(Schema):
  """Devices and compilation."""

  compile: Literal['jit', 'pmap'] = pydantic.Field(
    'jit', description='jit over a mesh of devices, or pmap (no scan, no population)', json_schema_extra=OUTSIDE
  )
  devices: Positive | None = pydantic.Field(
    None, description='how many devices to use; None: all', json_schema_extra=OUTSIDE
  )


class FeatureCache(Schema):
  """Outputs of frozen stages, computed once per example and view where that is exact."""

  use: Literal['auto', 'never', 'always'] = pydantic.Field(
    'auto',
    description='auto: where it is exact and saves work; always: refuse to train phases where it is not',
    json_schema_extra=OUTSIDE,
  )
  where: Literal['auto', 'device', 'memory', 'disk'] = pydantic.Field(
    'auto', description='where the outputs stay; auto: by their size and the limits below', json_schema_extra=OUTSIDE
  )
  device: GiB = pydantic.Field(1.0, description='GiB of outputs that go on the device', json_schema_extra=OUTSIDE)
  memory: GiB | None = pydantic.Field(
    None, description="GiB that stay in memory; None: a quarter of the machine's", json_schema_extra=OUTSIDE
  )
  disk: GiB = pydantic.Field(64.0, description='GiB that may be written to disk', json_schema_extra=OUTSIDE)
  folder: str | None = pydantic.Field(
    None, description="where they are written; None: features/ beside the run's folder", json_schema_extra=OUTSIDE
  )
