"""The command line, and nothing else.

python -m transferlab.main --config=FILE.py[:ARGUMENT] [--workdir=FOLDER] [--config.KEY=VALUE …]
"""

import dataclasses
import errno
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transferlab import config
from transferlab.errors import Diverged, Interrupted, UserError, nearest

USAGE = """usage: python -m transferlab.main --config=FILE.py[:ARGUMENT] [flags] [--config.KEY=VALUE …]

  --config=FILE.py       a config file; FILE.py:smoke is a run of seconds
  --config.KEY=VALUE     overrides a documented key; list elements by number, None and Python literals as they are
  --workdir=FOLDER       the run's folder; default: runs/ and the name of the config
  --dry_run              data, parameters, transplant plan, operations and memory of each phase; then stops
  --find_rate            the loss while the first phase trains at growing rates, and which it suggests; writes
                         rate_finder.json and .png in --workdir, where the run can train afterwards
  --extend               train a finished run longer, as the config now says
  --evaluate=SPEC        measure the run in --workdir on NAME[,key=value…][,split=NAME]
  --predict=SPEC         write a row per example: id, class, probabilities (see predictions/ in --workdir)
  --sample=PROMPT        a language model in --workdir goes on with a text; --sample_with=length=200,temperature=0.8,
                         top_k=40,top_p=0.9,seed=1 says how
  --inspect=FILE         what a run, a checkpoint or a file of weights holds, and of which family it is; FILE,part=ema
  --export=FILE          writes the network of the run in --workdir: .safetensors, .npz, or .h5 with names=keras;
                         FILE,names=torchvision under that origin's names; FILE,which=last the last step's weights
  --list=WHAT            networks, terms, data, optimizers, schedules, metrics, baselines or weights
  --help_config          every key a config may have, with type, default and meaning

exit status: 0 done, 1 a failed cell or a bug, 2 a mistake in the command or config, 3 diverged, 4 interrupted
(the same command continues)"""

VALUES = ('config', 'workdir', 'evaluate', 'predict', 'inspect', 'export', 'list', 'sample', 'sample_with')
# What the file system refuses, wherever it happens.
OUTSIDE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG)
SWITCHES = ('dry_run', 'find_rate', 'extend', 'help_config', 'help')


@dataclasses.dataclass
class Command:
  """The command line, taken apart."""

  flags: dict[str, str] = dataclasses.field(default_factory=dict)
  switches: set[str] = dataclasses.field(default_factory=set)
  overrides: list[tuple[str, str]] = dataclasses.field(default_factory=list)


def parse(arguments: Sequence[str]) -> Command:
  """Flags, switches and overrides. Raises `UserError` for what is none of these."""
  command, rest = Command(), list(arguments)
  while rest:
    argument = rest.pop(0)
    name, equals, value = argument.removeprefix('--').partition('=')
    known = name in (*VALUES, *SWITCHES) or name.startswith('config.')
    if not argument.startswith('--') or not known:
      choices = [f'--{flag}' for flag in (*VALUES, *SWITCHES)]
      raise UserError(f'unknown argument {argument!r}; nearest: {", ".join(nearest("--" + name, choices))}')
    if name in SWITCHES:
      if equals:
        raise UserError(f'--{name} takes no value')
      command.switches.add(name)
      continue
    if not equals:
      if not rest:
        raise UserError(f'--{name} needs a value')
      value = rest.pop(0)
    if name.startswith('config.'):
      command.overrides.append((name.removeprefix('config.'), value))
    else:
      command.flags[name] = value
  return command


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the command and returns its exit status."""
  try:
    return run(parse(sys.argv[1:] if arguments is None else arguments))
  except (UserError, Diverged, Interrupted) as problem:
    label = {2: 'error', 3: 'diverged', 4: 'interrupted'}[problem.exit_status]
    print(f'{label}: {problem}', file=sys.stderr, flush=True)
    return problem.exit_status
  except BrokenPipeError:
    return 0
  except OSError as problem:
    if problem.errno not in OUTSIDE:
      raise
    print(f'error: {problem.strerror}: {problem.filename}', file=sys.stderr, flush=True)
    return 2
  except Exception as problem:
    if not out_of_memory(problem):
      raise
    what = str(problem).strip().partition('\n')[0][:300]
    print(f'error: out of memory: smaller batches or a smaller network may fit ({what})', file=sys.stderr, flush=True)
    return 2


def out_of_memory(problem: Exception) -> bool:
  """Whether the host's memory or the device's is too small, as Python, NumPy and XLA say it."""
  return isinstance(problem, MemoryError) or (
    type(problem).__name__ == 'JaxRuntimeError' and 'RESOURCE_EXHAUSTED' in str(problem)
  )


def run(command: Command) -> int:
  """Chooses what the command is about."""
  from transferlab import commands

  flags = command.flags
  if 'help' in command.switches or not (flags or command.switches):
    print(USAGE)
    return 0
  if 'help_config' in command.switches:
    print(commands.help_config())
    return 0
  if 'list' in flags:
    print('\n'.join(commands.listing(flags['list'])))
    return 0
  if 'inspect' in flags:
    print('\n'.join(commands.inspect(flags['inspect'])))
    return 0
  if {'evaluate', 'predict', 'export', 'sample'} & set(flags):
    if 'workdir' not in flags:
      raise UserError('--evaluate, --predict, --export and --sample need --workdir, the folder of a run')
    if len(verbs := sorted({'evaluate', 'export', 'predict', 'sample'} & set(flags))) > 1 and verbs != [
      'evaluate',
      'predict',
    ]:
      raise UserError(f'--{" and --".join(verbs)}: one after the other; only --evaluate and --predict go together')
    setup()
    if 'sample' in flags:
      print(commands.sample(Path(flags['workdir']).expanduser(), flags['sample'], flags.get('sample_with', '')))
      return 0
    if 'export' in flags:
      print('\n'.join(commands.export(Path(flags['workdir']).expanduser(), flags['export'])))
      return 0
    print(commands.use(Path(flags['workdir']).expanduser(), flags.get('evaluate'), flags.get('predict')))
    return 0
  if 'config' not in flags:
    raise UserError('--config is missing')
  return train(command)


def train(command: Command) -> int:
  """Reads the config, applies overrides, and runs it (or says what it would do)."""
  from transferlab import cells, commands, folder

  values, _ = config.read(command.flags['config'])
  for key, value in command.overrides:
    values = config.override(values, ('base.' if _in_base(values, key) else '') + key, config.literal(value))
  settings: Any = config.validate(cells.Study if 'axes' in values else cells.Run, values)
  cells.check(settings)
  workdir = Path(command.flags.get('workdir') or folder.default(command.flags['config'])).expanduser()
  setup()
  if 'dry_run' in command.switches:
    print('\n'.join(commands.dry_run(settings)))
    return 0
  if 'find_rate' in command.switches:
    print('\n'.join(commands.find_rate(settings, workdir, stop_on_signals())))
    return 0
  return commands.run(settings, workdir, stop_on_signals(), extend='extend' in command.switches)


def _in_base(values: dict[str, Any], key: str) -> bool:
  """In an experiment, keys of a run mean the base run."""
  from transferlab import cells

  return 'axes' in values and key.split('.')[0] not in cells.Study.model_fields


def setup() -> None:
  """Turns on the persistent compilation cache; what compiled once starts at once the next time."""
  import jax

  if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    home = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    jax.config.update('jax_compilation_cache_dir', os.fspath(home / 'transferlab' / 'xla'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


class Stop:
  """Set by SIGTERM and Ctrl-C; the loop asks it after every chunk. A second signal ends the program at once."""

  def __init__(self) -> None:
    self.asked = False

  def __call__(self) -> bool:
    return self.asked

  def handle(self, number: int, frame: Any) -> None:
    """The signal handler."""
    del frame
    if self.asked:
      raise Interrupted('interrupted twice; the last checkpoint stands')
    self.asked = True
    print(f'{signal.Signals(number).name}: saving, then stopping', file=sys.stderr, flush=True)


def stop_on_signals() -> Stop:
  """Installs the handlers."""
  stop = Stop()
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, stop.handle)
  return stop


if __name__ == '__main__':
  sys.exit(main())
