"""Reads a pickle without running it: the opcodes are interpreted here, and nothing of the file is imported or called.

Containers become dicts, lists and tuples (a set becomes a list); whatever else a pickle asks for becomes an inert
`Record` that says what was asked. What a record means is the reader's business, not this file's.
"""

import dataclasses
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO


@dataclasses.dataclass(frozen=True)
class Global:
  """The name of a class or a function: never looked up."""

  module: str
  name: str

  def __str__(self) -> str:
    return f'{self.module}.{self.name}'


PERSISTENT = Global('pickle', 'persistent_load')


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class Record:
  """What a pickle would have made by calling something.

  Attributes:
    kind: what would have been called: a `Global` in every honest file. `PERSISTENT` for data that lie elsewhere.
    args: what it would have been called with; for `PERSISTENT`, the one identifier.
    states: what would have been handed to `__setstate__`, or become its attributes.
    items: keys and values that would have been set.
    elements: what would have been appended.
  """

  kind: Any
  args: tuple[Any, ...]
  states: list[Any] = dataclasses.field(default_factory=list)
  items: list[tuple[Any, Any]] = dataclasses.field(default_factory=list)
  elements: list[Any] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, eq=False)
class Pickle:
  """One pickle's object, and the records of data that lie elsewhere, in the pickle's order."""

  value: Any
  persistent: tuple[Record, ...]


def load(stream: BinaryIO, size: int) -> Pickle:
  """The object of the pickle at the stream's position; the stream is left behind it.

  Args:
    size: of the stream in bytes, so that a length that the pickle only claims is never allocated.

  Raises:
    ValueError: the bytes are no pickle, or a damaged one. Nothing else is raised, but for errors of the device.
  """
  machine = _Machine()
  try:
    for opcode, argument, _ in pickletools.genops(_Bounded(stream, size)):  # type: ignore[arg-type]
      if opcode.name in LITERALS:
        machine.stack.append(argument)
      elif opcode.name not in IGNORED:
        OPERATIONS[opcode.name](machine, argument)
    return Pickle(machine.stack.pop(), tuple(machine.persistent))
  except (LookupError, TypeError, ValueError, OverflowError, MemoryError) as error:
    raise ValueError(f'{type(error).__name__}: {error}') from None


class _Bounded:
  """A stream that is never asked for more than it has: file objects allocate whatever length they are asked for."""

  def __init__(self, stream: BinaryIO, size: int):
    self.stream, self.size, self.tell, self.readline = stream, size, stream.tell, stream.readline

  def read(self, count: int) -> bytes:
    return self.stream.read(min(count, max(0, self.size - self.stream.tell())))


class _Machine:
  """The stack, the stacks below its marks, and the memo: a dict, so that an index costs nothing, however large."""

  def __init__(self) -> None:
    self.stack: list[Any] = []
    self.below: list[list[Any]] = []
    self.memo: dict[int, Any] = {}
    self.persistent: list[Record] = []

  def marked(self) -> list[Any]:
    """Takes what was pushed since the last mark."""
    items, self.stack = self.stack, self.below.pop()
    return items

  def popped(self, count: int) -> list[Any]:
    """Takes the last `count` values, in the order in which they were pushed."""
    if count > len(self.stack):
      raise IndexError('the stack is empty')
    items = self.stack[len(self.stack) - count :]
    del self.stack[len(self.stack) - count :]
    return items


def _key(value: Any) -> Any:
  """A key of a dict. Others than plain ones are hidden in a record: to hash a deep tuple overflows C's stack."""
  return value if type(value) in (str, int, float, bool, bytes, type(None), Global) else Record(None, (value,))


def _arguments(value: Any) -> tuple[Any, ...]:
  return value if type(value) is tuple else (value,)


def _mark(machine: _Machine, argument: Any) -> None:
  machine.below.append(machine.stack)
  machine.stack = []


def _pop(machine: _Machine, argument: Any) -> None:
  if machine.stack:
    machine.stack.pop()
  else:
    machine.marked()  # a mark counts as a value here


def _pop_mark(machine: _Machine, argument: Any) -> None:
  machine.marked()


def _duplicate(machine: _Machine, argument: Any) -> None:
  machine.stack.append(machine.stack[-1])


def _put(machine: _Machine, argument: Any) -> None:
  machine.memo[argument] = machine.stack[-1]


def _memoize(machine: _Machine, argument: Any) -> None:
  machine.memo[len(machine.memo)] = machine.stack[-1]


def _get(machine: _Machine, argument: Any) -> None:
  machine.stack.append(machine.memo[argument])


def _last(count: int) -> Callable[[_Machine, Any], None]:
  """The operation that makes a tuple of the last `count` values."""
  return lambda machine, argument: machine.stack.append(tuple(machine.popped(count)))


def _since_mark(make: Callable[[list[Any]], Any]) -> Callable[[_Machine, Any], None]:
  """The operation that makes a container of the values since the mark."""

  def operation(machine: _Machine, argument: Any) -> None:
    items = machine.marked()
    machine.stack.append(make(items))

  return operation


def _pushed(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
  """The operation that pushes a constant or a new container."""
  return lambda machine, argument: machine.stack.append(make())


def _extend(machine: _Machine, values: list[Any]) -> None:
  target = machine.stack[-1]
  if type(target) is Record:
    target.elements.extend(values)
  elif type(target) is list:
    target.extend(values)
  else:
    raise ValueError(f'values appended to a {type(target).__name__}')


def _set_items(machine: _Machine, values: list[Any]) -> None:
  target = machine.stack[-1]
  if len(values) % 2:
    raise ValueError('a key without a value')
  pairs = [(_key(key), value) for key, value in zip(values[::2], values[1::2])]
  if type(target) is Record:
    target.items.extend(pairs)
  elif type(target) is dict:
    target.update(pairs)
  else:
    raise ValueError(f'items set on a {type(target).__name__}')


def _pairs(values: list[Any]) -> dict[Any, Any]:
  if len(values) % 2:
    raise ValueError('a key without a value')
  return {_key(key): value for key, value in zip(values[::2], values[1::2])}


def _global(machine: _Machine, argument: Any) -> None:
  module, _, name = argument.partition(' ')
  machine.stack.append(Global(module, name))


def _stack_global(machine: _Machine, argument: Any) -> None:
  module, name = machine.popped(2)
  if type(module) is not str or type(name) is not str:
    raise ValueError('a name that is no text')
  machine.stack.append(Global(module, name))


def _extension(machine: _Machine, argument: Any) -> None:
  machine.stack.append(Global('copyreg', f'extension {argument}'))


def _call(machine: _Machine, argument: Any) -> None:
  kind, args = machine.popped(2)
  machine.stack.append(Record(kind, _arguments(args)))


def _call_with_names(machine: _Machine, argument: Any) -> None:
  kind, args, named = machine.popped(3)
  machine.stack.append(Record(kind, _arguments(args), [named]))


def _instance(machine: _Machine, argument: Any) -> None:
  args = machine.marked()
  _global(machine, argument)
  machine.stack.append(Record(machine.stack.pop(), tuple(args)))


def _object(machine: _Machine, argument: Any) -> None:
  kind, *args = machine.marked()
  machine.stack.append(Record(kind, tuple(args)))


def _build(machine: _Machine, argument: Any) -> None:
  target, state = machine.popped(2)
  machine.stack.append(target)
  if type(target) is Record:  # a container keeps no state, and a name has none
    target.states.append(state)


def _persistent(machine: _Machine, argument: Any) -> None:
  record = Record(PERSISTENT, (machine.stack.pop() if argument is None else argument,))
  machine.persistent.append(record)
  machine.stack.append(record)


IGNORED = ('PROTO', 'FRAME', 'STOP')
LITERALS = frozenset({
  *('INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT', 'BINFLOAT'),
  *('STRING', 'BINSTRING', 'SHORT_BINSTRING', 'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8'),
  *('UNICODE', 'SHORT_BINUNICODE', 'BINUNICODE', 'BINUNICODE8'),
})  # fmt: skip
# Buffers out of band, which no file can hold, are the only opcodes that are missing here.
OPERATIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
  'NONE': _pushed(lambda: None),
  'NEWTRUE': _pushed(lambda: True),
  'NEWFALSE': _pushed(lambda: False),
  'EMPTY_LIST': _pushed(list),
  'EMPTY_TUPLE': _pushed(tuple),
  'EMPTY_DICT': _pushed(dict),
  'EMPTY_SET': _pushed(list),
  'LIST': _since_mark(list),
  'TUPLE': _since_mark(tuple),
  'FROZENSET': _since_mark(list),
  'DICT': _since_mark(_pairs),
  'TUPLE1': _last(1),
  'TUPLE2': _last(2),
  'TUPLE3': _last(3),
  'APPEND': lambda machine, argument: _extend(machine, machine.popped(1)),
  'APPENDS': lambda machine, argument: _extend(machine, machine.marked()),
  'ADDITEMS': lambda machine, argument: _extend(machine, machine.marked()),
  'SETITEM': lambda machine, argument: _set_items(machine, machine.popped(2)),
  'SETITEMS': lambda machine, argument: _set_items(machine, machine.marked()),
  'MARK': _mark,
  'POP': _pop,
  'POP_MARK': _pop_mark,
  'DUP': _duplicate,
  'GET': _get,
  'BINGET': _get,
  'LONG_BINGET': _get,
  'PUT': _put,
  'BINPUT': _put,
  'LONG_BINPUT': _put,
  'MEMOIZE': _memoize,
  'GLOBAL': _global,
  'STACK_GLOBAL': _stack_global,
  'EXT1': _extension,
  'EXT2': _extension,
  'EXT4': _extension,
  'REDUCE': _call,
  'NEWOBJ': _call,
  'NEWOBJ_EX': _call_with_names,
  'INST': _instance,
  'OBJ': _object,
  'BUILD': _build,
  'PERSID': _persistent,
  'BINPERSID': _persistent,
}
