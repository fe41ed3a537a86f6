"""The ways a run can end other than well, and the wording of the most common mistake: a wrong name.

Each class carries the exit status that `main.py` gives. Anything else that escapes is a bug, and shows its
traceback (exit status 1).
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
  """A mistake of the user's: one clear message, exit status 2, no traceback."""

  exit_status = 2


class Diverged(Exception):
  """The loss or the parameters stopped being finite; the message names the exact first step."""

  exit_status = 3


class Interrupted(Exception):
  """SIGTERM or Ctrl-C arrived; the same command continues the run."""

  exit_status = 4


def nearest(name: str, choices: Iterable[str], count: int = 3) -> list[str]:
  """The `count` choices that look most like `name`, best first; the first of them if nothing is alike.

  Case does not count, and a choice that begins with the name is like it, however long it is.
  """
  choices, given = [str(choice) for choice in choices], str(name).lower()
  begun = [choice for choice in choices if len(given) > 2 and choice.lower().startswith(given)]
  lower = {choice.lower(): choice for choice in reversed(choices) if choice not in begun}
  alike = [lower[found] for found in difflib.get_close_matches(given, lower, n=count, cutoff=0.5)]
  return [*sorted(begun, key=len), *alike][:count] or choices[:count]


def unknown(kind: str, name: object, choices: Iterable[str]) -> UserError:
  """The error for a name that does not exist: it offers the nearest and lists a few of the others."""
  choices = [str(choice) for choice in choices]
  if not choices:
    return UserError(f'unknown {kind} {name!r}: there is none')
  best = nearest(str(name), choices)
  rest = [choice for choice in choices if choice not in best]
  more = f' (also: {", ".join(rest[:12])}{", …" if len(rest) > 12 else ""})' if rest else ''
  return UserError(f'unknown {kind} {name!r}; nearest: {", ".join(best)}{more}')
