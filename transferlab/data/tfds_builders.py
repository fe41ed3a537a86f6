"""Finding data sets of TensorFlow Datasets, and preparing those that are not. Reads and writes files, runs a process.

A data set is prepared in a process of its own, since some need TensorFlow for that. What is prepared already is known
from its files alone, even where TFDS has no builder of that name.
"""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from transferlab.errors import UserError, unknown


def prepared(name: str, folder: str | None) -> Any:
  """The builder of a data set that is prepared, at last.

  Raises:
    UserError: there is no such data set, it cannot be prepared, or it is prepared in a format without random access.
  """
  if folder is not None and Path(folder).exists() and not Path(folder).is_dir():
    raise UserError(f'data.folder={folder!r} is a file; needed: the folder in which prepared data sets stand')
  builder = find(name, folder)
  if not builder.info.splits:
    prepare(name, folder)
    builder = find(name, folder)
  form = builder.info.file_format
  if form is not None and form.value not in ('array_record', 'parquet'):
    raise UserError(
      f'tfds:{name}: {builder.data_path} is prepared as {form.value}, which cannot be read at random; '
      'data.folder names another place, where it is prepared anew'
    )
  return builder


def find(name: str, folder: str | None) -> Any:
  """The builder of a data set, prepared or not.

  Raises:
    UserError: there is no such data set, version or configuration, or TFDS cannot make its builder.
  """
  import tensorflow_datasets as tfds

  try:
    try:
      return tfds.builder(name, data_dir=folder)
    except tfds.core.DatasetNotFoundError:
      _import_builders()
      return tfds.builder(name, data_dir=folder)
  except tfds.core.DatasetNotFoundError:
    raise unknown('TFDS data set', name, _known(folder)) from None
  except Exception as error:
    # Some builders need TensorFlow even where everything is prepared: those are read from their files.
    try:
      parsed, options = tfds.core.naming.parse_builder_name_kwargs(name, data_dir=folder)
      return tfds.core.read_only_builder.builder_from_files(str(parsed), **options)
    except Exception:
      if wanted := re.search('BuilderConfig (.*) not found', str(error)):
        known = tfds.builder_cls(name.partition('/')[0]).builder_configs
        raise unknown(f'configuration of tfds:{name.partition("/")[0]}', wanted[1], known) from None
      raise UserError(f'tfds:{name}: {_reason(str(error) or type(error).__name__)}') from None


def _import_builders() -> None:
  """Makes all builders known: TFDS imports many of them only with TensorFlow, though few need it."""
  import tensorflow_datasets as tfds

  for package in sorted(Path(tfds.__file__).parent.glob('*/__init__.py')):
    if package.parent.name not in ('core', 'scripts', 'testing', 'proto'):
      try:
        importlib.import_module(f'tensorflow_datasets.{package.parent.name}')
      except Exception:  # it needs what is not installed
        continue


def _known(folder: str | None) -> list[str]:
  import tensorflow_datasets as tfds

  place = Path(folder or tfds.core.constants.DATA_DIR).expanduser()
  depths = ('*/*/dataset_info.json', '*/*/*/dataset_info.json')  # NAME/VERSION and NAME/CONFIG/VERSION
  there = {found.relative_to(place).parts[0] for depth in depths for found in place.glob(depth)}
  return sorted({*there, *tfds.list_builders(with_community_datasets=False)})


PREPARE = """
import sys
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import downloader
from transferlab.data.tfds_builders import find
tfds.disable_progress_bar()
downloader.MAX_RETRIES = 5  # the usual 10, each after twice the time, take minutes to say that there is no network
find(sys.argv[1], sys.argv[2] or None).download_and_prepare(file_format='array_record')
"""


def prepare(name: str, folder: str | None) -> None:
  """Downloads and prepares a data set in a process of its own.

  Raises:
    UserError: TensorFlow is needed and missing, there is no network, the disk is full, or anything else it says.
  """
  print(f'preparing tfds:{name} (once)', file=sys.stderr, flush=True)
  done = subprocess.run([sys.executable, '-c', PREPARE, name, folder or ''], capture_output=True, text=True)
  if done.returncode:
    raise UserError(f'tfds:{name} could not be prepared: {_reason(done.stderr)}')


def _reason(output: str) -> str:
  """Why TFDS failed, from what it wrote."""
  lines = [line.strip() for line in output.strip().splitlines() if line.strip()] or ['it said nothing']
  text = '\n'.join(lines)
  if any(words in text for words in ('No space left on device', 'ENOSPC', 'Not enough disk space')):
    return 'the disk is full; data.folder names another place'
  if "No module named 'tensorflow'" in text or 'requires TensorFlow' in text:
    return "this data set needs TensorFlow to be prepared; pip install 'transferlab[prepare]', and run the same again"
  if any(word in text for word in ('NameResolution', 'Name or service not known', 'Max retries', 'ConnectionError')):
    return 'there is no network, or its server does not answer'
  if text.startswith('Parsing builder name string'):
    return 'this is no name; NAME, NAME/CONFIG and NAME:VERSION are'
  said = lines[0] if text.startswith('Failed to construct dataset') else lines[-1]
  return re.sub(r'^Failed to construct dataset ".*?", builder_kwargs "{.*?}": ', '', said)[:300]
