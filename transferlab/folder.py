"""A run's folder: its records, its lock, its metrics. Reads and writes files.

Every record is written atomically. A folder that belongs to a different config is never overwritten.
"""

import contextlib
import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transferlab import config
from transferlab.errors import UserError

# What may stand in a folder before its run does: the learning-rate finder's.
BESIDE = ('rate_finder.json', 'rate_finder.png')


def write_text(path: Path, text: str) -> None:
  """Writes a file whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  temporary.write_text(text)
  os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
  """Writes a JSON record; NaN and infinity are refused, since JSON has neither."""
  write_text(path, json.dumps(value, indent=1, allow_nan=False) + '\n')


def read_json(path: Path) -> Any:
  """A JSON record. Raises `UserError` where it is missing or damaged."""
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    raise UserError(f'{path} does not exist') from None
  except (OSError, ValueError) as error:
    raise UserError(f'{path} cannot be read: {error}') from None


def read_record(path: Path, *keys: str) -> dict[str, Any]:
  """A JSON record with these keys. Raises `UserError` where it is missing, damaged, or something else."""
  record = read_json(path)
  if not isinstance(record, dict) or any(key not in record for key in keys):
    raise UserError(f'{path} is no record of a run')
  return record


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
  """Holds the folder; a second process waits. The lock ends with the process, however it ends."""
  make(folder)
  with (folder / '.lock').open('w') as handle:
    fcntl.flock(handle, fcntl.LOCK_EX)
    yield


def make(folder: Path) -> None:
  """Creates the folder. Raises `UserError` where that cannot be."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f'--workdir={folder}: {error.strerror}: {error.filename}') from None


def chosen(place: Path) -> Path:
  """A run's folder; of a run that chose among several candidates, the chosen one's."""
  results = place / 'results.json'
  number = read_record(results).get('candidate') if results.is_file() else None
  return place if number is None else place / 'candidates' / str(number)


def claim(folder: Path, values: Mapping[str, Any], identity: Mapping[str, Any], *, extend: bool = False) -> None:
  """Writes `config.json` into a new folder, or checks that it is this config's.

  Args:
    values: all resolved values.
    identity: those that determine the results, data contents included.
    extend: the folder may hold the same run with a shorter last phase, or fewer phases.

  Raises:
    UserError: the folder belongs to another config, or the data changed under the run.
  """
  path = folder / 'config.json'
  if path.exists():
    before = read_record(path, 'config', 'identity')
    old, new = before['identity'], json.loads(json.dumps(identity))
    if extend:
      count = len(old['config'].get('phases', []))
      old, new = _open_ended(old, count), _open_ended(new, count)
    if lines := config.differences(old.get('config'), new.get('config')):
      raise UserError(f'{folder} belongs to a run with other values; nothing was overwritten:\n' + '\n'.join(lines))
    # Other values mean other data as well: only now is it the data that changed.
    if lines := config.differences(old.get('data'), new.get('data'), 'data'):
      raise UserError(f'{folder}: the data changed since this run began:\n' + '\n'.join(lines))
    if not extend:
      return
  elif any(not child.name.startswith('.') and child.name not in BESIDE for child in folder.iterdir()):
    raise UserError(f'{folder} is not empty and holds no run of transferlab; nothing was overwritten')
  write_json(path, {'config': values, 'identity': identity})


def _open_ended(identity: Mapping[str, Any], count: int) -> dict[str, Any]:
  """For --extend: the first `count` phases, the last of them without its length."""
  copied = json.loads(json.dumps(identity))
  copied['config']['phases'] = copied['config']['phases'][:count]
  for phase in copied['config']['phases'][-1:]:
    for key in ('steps', 'epochs', 'examples'):
      phase.pop(key, None)
  return copied


def environment() -> dict[str, Any]:
  """Versions, devices, machine and git commit."""
  import importlib.metadata

  import jax

  packages = ('transferlab', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'scikit-learn')
  versions = {}
  for package in packages:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[package] = importlib.metadata.version(package)
  return {
    'versions': versions,
    'python': platform.python_version(),
    'platform': platform.platform(),
    'devices': [str(device) for device in jax.devices()],
    'cores': os.cpu_count(),
    'host': platform.node(),
    'command': sys.argv,
    'commit': _commit(),
    'started': time.strftime('%Y-%m-%dT%H:%M:%S%z'),
  }


def _commit() -> str | None:
  here = Path(__file__).parent
  try:
    found = subprocess.run(
      ['git', 'describe', '--always', '--dirty', '--abbrev=12'], cwd=here, capture_output=True, text=True, timeout=5
    )
  except (OSError, subprocess.TimeoutExpired):
    return None
  return found.stdout.strip() or None


class Metrics:
  """`metrics.jsonl`: one object per line, cut to the checkpoint's step when a run resumes."""

  def __init__(self, path: Path, resume_step: int):
    self.path = path
    kept = [line for line in _lines(path) if line['step'] <= resume_step]
    write_text(path, ''.join(json.dumps(line) + '\n' for line in kept))
    self._file = path.open('a')
    self._events: Any = None
    self._resume_step = resume_step

  def write(
    self, step: int, phase: str, split: str, values: Mapping[str, Any], seconds: float, waited: float | None = None
  ) -> None:
    """Adds a line. `seconds`, and the share of time `waited` for streamed data, are outside bit-identity."""
    line = {'step': step, 'phase': phase, 'split': split, 'values': dict(values), 'seconds': round(seconds, 3)}
    if waited is not None:
      line['waited'] = round(waited, 3)
    self._file.write(json.dumps(line, allow_nan=False) + '\n')
    if self._events is None:
      self._events = _event_writer(self.path.parent / 'events', self._resume_step)
    for name, value in values.items():
      if isinstance(value, float):
        self._events.add_scalar(f'{split}/{name}', value, step)

  def flush(self) -> None:
    """Makes everything written visible; called before each checkpoint."""
    self._file.flush()
    os.fsync(self._file.fileno())
    if self._events is not None:
      self._events.flush()

  def close(self) -> None:
    """Flushes and closes."""
    self.flush()
    self._file.close()
    if self._events is not None:
      self._events.close()


def _lines(path: Path) -> list[dict[str, Any]]:
  """The complete lines of a metrics file; a line cut short by a kill is left out."""
  if not path.exists():
    return []
  found = []
  for line in path.read_text(errors='replace').split('\n'):
    with contextlib.suppress(ValueError):
      found.append(json.loads(line))
  return [line for line in found if isinstance(line, dict) and isinstance(line.get('step'), int)]


def _event_writer(folder: Path, purge_step: int) -> Any:
  """A TensorBoard writer. tensorboardX imports torch wherever it is installed; here it must not."""
  hidden = 'torch' not in sys.modules
  if hidden:
    sys.modules['torch'] = None  # type: ignore[assignment]
  try:
    from tensorboardX import SummaryWriter
  finally:
    if hidden:
      del sys.modules['torch']
  return SummaryWriter(os.fspath(folder), purge_step=purge_step + 1 if purge_step else None)


def default(spec: str) -> Path:
  """`runs/` and the name of the config, with its argument if it has one."""
  path, _, argument = spec.partition(':')
  return Path('runs') / (Path(path).stem + (f'_{argument}' if argument else ''))
