"""transferlab: a laboratory for reusing trained networks.

    run = transferlab.run(config, 'runs/x')        # a dict, a ConfigDict, or the name of a config file
    model = transferlab.load('runs/x')
    model.predict(images)

Importing this imports nothing heavy; JAX comes with the first call.
"""

from typing import Any

from transferlab.errors import Diverged, Interrupted, UserError

__version__ = '0.1.0'
__all__ = ['Diverged', 'Interrupted', 'UserError', 'load', 'run']


def run(config: Any, workdir: Any = None) -> dict[str, Any]:
  """Trains and evaluates what a config describes, as the command line does.

  Args:
    config: a dict or ConfigDict, or 'FILE.py' or 'FILE.py:ARGUMENT'.
    workdir: the folder; None: `runs/` and the name of the config file ('runs/run' for a dict).

  Returns:
    What results.json holds; for an experiment, what table.json holds.

  Raises:
    UserError, Diverged, Interrupted: see `transferlab.errors`.
  """
  from transferlab import study

  return study.run_config(config, workdir)


def load(workdir: Any, which: str = 'selected') -> Any:
  """A trained run as a `transferlab.model.Model`: `predict`, `probabilities`, `evaluate`, preprocessing included.

  Raises:
    UserError: no run there, or one without weights.
  """
  from transferlab import model

  return model.load(workdir, which)
