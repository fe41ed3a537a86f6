"""What a person sees while a program works: sentences, and progress with an estimate of the time left. Prints.

On a terminal a bar (rich); elsewhere a line every few seconds, so that logs stay readable.
"""

import sys
import time
from typing import Any


class Screen:
  """Progress in steps; silent where `quiet`."""

  def __init__(self, quiet: bool = False, every: float = 5.0):
    self.quiet, self.every = quiet, every
    self.total, self.done, self.what = 0, 0, ''
    self.begun = self.shown = time.monotonic()
    self._bar: Any = None
    self._task: Any = None

  def say(self, text: str) -> None:
    """One sentence, or a few lines."""
    if self.quiet:
      return
    if self._bar is not None:
      self._bar.console.print(text, markup=False, highlight=False)
    else:
      print(text, flush=True)

  def expect(self, steps: int) -> None:
    """Adds to the steps that are to come."""
    self.total += steps
    if self.quiet:
      return
    if self._bar is None and sys.stdout.isatty():
      from rich import progress

      self._bar = progress.Progress(
        progress.TextColumn('{task.description}'),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn('left'),
        progress.TimeRemainingColumn(elapsed_when_finished=False),
      )
      self._bar.start()
      self._task = self._bar.add_task(self.what, total=self.total)
    if self._bar is not None:
      self._bar.update(self._task, total=self.total)

  def doing(self, what: str) -> None:
    """What the next steps are."""
    self.what = what
    if self._bar is not None:
      self._bar.update(self._task, description=what)

  def advance(self, steps: int) -> None:
    """Steps that are done."""
    self.done += steps
    if self._bar is not None:
      self._bar.update(self._task, completed=self.done)
    elif not self.quiet and time.monotonic() - self.shown > self.every:
      self.shown = time.monotonic()
      elapsed = self.shown - self.begun
      left = elapsed / max(self.done, 1) * (self.total - self.done)
      print(
        f'{elapsed:5.0f} s  {self.done:,} of {self.total:,} steps  {self.what}  about {left:.0f} s left', flush=True
      )

  def close(self) -> None:
    """Ends the bar."""
    if self._bar is not None:
      self._bar.stop()
      self._bar = None
