"""The unpickler: what honest pickles hold, that a hostile one runs nothing, and that a damaged one is only refused."""

import builtins
import collections
import contextlib
import datetime
import fractions
import io
import os
import pickle
import pickletools
import subprocess
import sys
import time
import types

import numpy as np
import pytest

from transferlab.weights import pickles, torch_files, torch_parts, torch_tensors
from transferlab.weights.pickles import Global, Record

WATCHED = ('os.system', 'os.exec', 'os.posix_spawn', 'os.fork', 'subprocess.Popen', 'pickle.find_class', 'exec', 'eval')
SEEN: list[str] | None = None


def _audit(event, arguments):
  if SEEN is not None and event in WATCHED:
    SEEN.append(event)


sys.addaudithook(_audit)  # it stays until the process ends, and does nothing while SEEN is None


def _load(data):
  return pickles.load(io.BytesIO(data), len(data))


def _snapshot():
  """Everything that a pickle might have changed: what the modules and their classes hold, and the builtins."""
  held = [pickles, torch_files, torch_parts, torch_tensors, builtins, os, Global, Record, pickles._Machine]
  dictionaries = [{**vars(thing)} for thing in held]
  codes = [value.__code__ for value in vars(pickles).values() if isinstance(value, types.FunctionType)]
  return dictionaries, codes, [dict(pickles.OPERATIONS)], sorted(sys.modules)


@pytest.fixture
def nothing_runs(monkeypatch, tmp_path):
  """Fails where code of the file ran: by a marker file, by Python's own audit, by what was called, by what changed."""
  global SEEN
  called = []
  for module, name in ((os, 'system'), (os, 'popen'), (subprocess, 'Popen'), (subprocess, 'call'), (os, 'execv')):
    monkeypatch.setattr(module, name, lambda *args, **named: called.append(args))
  monkeypatch.chdir(tmp_path)
  before = _snapshot()
  SEEN = []
  yield
  seen, SEEN = SEEN, None
  assert seen == []
  assert called == []
  assert list(tmp_path.glob('marker*')) == []
  assert _snapshot() == before


SHARED = ['shared']
NUMBERS = [0, 1, 255, 256, 65536, -1, 2**31, -(2**63), 2**80, -(2**2100), True, False, None, 1.5, -0.0, float('inf')]
HONEST = {
  'numbers': NUMBERS,
  'texts': ['', 'plain', 'ä€😀', 'line\nbreak', '\ud800', 'x' * 300, 'y' * 70000],
  'containers': {'a': [1, (2,), (3, 4), (5, 6, 7), (8, 9, 10, 11), ()], 'b': {}, 3: {'c': []}, None: 1},
  'shared': [SHARED, SHARED],
  'long': list(range(3000)),
}


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize('name', HONEST)
def test_plain_values_are_as_pickle_gives_them(name, protocol):
  found = _load(pickle.dumps(HONEST[name], protocol)).value
  assert found == HONEST[name]
  assert repr(found) == repr(HONEST[name])  # 1 is not True, and 0.0 is not -0.0


@pytest.mark.parametrize('protocol', range(3, 6))
def test_bytes_are_as_pickle_gives_them(protocol):
  value = [b'', b'\x00\xff', b'z' * 300, {b'key': 1}]
  assert _load(pickle.dumps(value, protocol)).value == value


def test_sharing_survives():
  first, second = _load(pickle.dumps([SHARED, SHARED])).value
  assert first is second


@pytest.mark.parametrize('protocol', range(3, 6))
def test_sets_become_lists_and_a_bytearray_stays_one(protocol):
  if protocol > 3:
    found = _load(pickle.dumps([{1, 2}, frozenset({3})], protocol)).value
    assert sorted(found[0]) == [1, 2] and found[1] == [3]
  data = pickle.dumps(bytearray(b'abc'), 5)
  assert _load(data).value == bytearray(b'abc')


class Slotted:
  __slots__ = ('inner',)


class Point(collections.namedtuple('Point', 'x y')):
  pass


@pytest.mark.parametrize('protocol', range(2, 6))
def test_every_other_object_is_a_record_of_what_was_asked(protocol):
  slotted = Slotted()
  slotted.inner = [1]
  ordered = collections.OrderedDict(a=1, b=2)
  ordered.extra = 'attribute'
  time_of = datetime.timedelta(days=3)
  found = _load(pickle.dumps([slotted, ordered, time_of, collections.deque([7, 8]), Point(1, 2)], protocol)).value
  assert all(isinstance(value, Record) for value in found)
  one, two, three, four, five = found
  assert two.kind == Global('collections', 'OrderedDict')
  assert two.items == [('a', 1), ('b', 2)] and two.states == [{'extra': 'attribute'}]
  assert three.args == (3, 0, 0) and str(three.kind) == 'datetime.timedelta'
  assert four.elements == [7, 8] and one.states == [(None, {'inner': [1]})]
  assert five.kind.name == 'Point' and five.args == (1, 2)


def test_a_function_or_class_by_name_is_a_name():
  assert _load(pickle.dumps([fractions.Fraction, len], 4)).value == [
    Global('fractions', 'Fraction'),
    Global('builtins', 'len'),
  ]


def test_persistent_identifiers_are_listed_in_order():
  class Pickler(pickle.Pickler):
    def persistent_id(self, thing):
      return ('storage', len(thing)) if isinstance(thing, np.ndarray) else None

  stream = io.BytesIO()
  Pickler(stream, 2).dump([np.zeros(3), {'a': np.zeros(5)}])
  found = _load(stream.getvalue())
  assert [record.args for record in found.persistent] == [(('storage', 3),), (('storage', 5),)]
  assert found.value[1]['a'] is found.persistent[1]


def test_the_stream_is_left_behind_the_pickle():
  stream = io.BytesIO(pickle.dumps({'a': 1}, 4) + pickle.dumps('next', 0) + b'rest')
  assert [pickles.load(stream, 10**9).value for _ in range(2)] == [{'a': 1}, 'next']
  assert stream.read() == b'rest'


# Hostile pickles. Each would make a file whose name begins with 'marker', were it run; `pickle.loads` runs most.
TOUCH = b'Vtouch marker\n'
EXEC = b"Vopen('marker', 'w').write('x')\n"


def _short(text):
  """A text as protocol 4 writes it."""
  return b'\x8c' + bytes([len(text)]) + text.encode()


HOSTILE = {
  'reduce': b'cos\nsystem\n(' + TOUCH + b'tR.',
  'reduce of posix': b'cposix\nsystem\n(' + TOUCH + b'tR.',
  'exec': b'cbuiltins\nexec\n(' + EXEC + b'tR.',
  'eval': b'cbuiltins\neval\n(' + EXEC + b'tR.',
  'builtin of Python 2': b'c__builtin__\neval\n(' + EXEC + b'tR.',
  'getattr': b'cbuiltins\ngetattr\n(cos\n__dict__\nVsystem\ntR(' + TOUCH + b'tR.',
  'import': b"cbuiltins\n__import__\n(Vantigravity\ntR.",
  'subprocess': b'csubprocess\nPopen\n((Vtouch\nVmarker\nltR.',
  'subprocess by NEWOBJ': b'\x80\x02csubprocess\nPopen\n((Vtouch\nVmarker\nlt\x81.',
  'NEWOBJ_EX': b'\x80\x04csubprocess\nPopen\n((Vtouch\nVmarker\nlt}Vshell\nI01\ns\x92.',
  'NEWOBJ of type': b'\x80\x02cbuiltins\ntype\n(VX\n(cbuiltins\nobject\nt}V__del__\ncos\nsystem\nst\x81)\x81.',
  'INST': b'(' + TOUCH + b'ios\nsystem\n.',
  'OBJ': b'(cos\nsystem\n' + TOUCH + b'o.',
  'EXT1': b'\x80\x02\x82\x01(' + TOUCH + b'tR.',
  'EXT4': b'\x80\x02\x84\xff\xff\xff\x7f(' + TOUCH + b'tR.',
  'STACK_GLOBAL with dots': b'\x80\x04' + _short('builtins') + _short('exec.__call__') + b'\x93(' + EXEC + b'tR.',
  'STACK_GLOBAL into the reader': b'\x80\x04' + _short('transferlab.weights.pickles') + _short('OPERATIONS.__setitem__')
  + b'\x93(VREDUCE\ncos\nsystem\ntR.',
  'BUILD on a name': b'cos\n__name__\n}Vsystem\ncbuiltins\neval\nsb.',
  'BUILD on a class': b'ctransferlab.weights.pickles\nRecord\n}V__init__\ncos\nsystem\nsb.',
  'BUILD with slots': b'ctransferlab.weights.pickles\n_Machine\n(N}Vmarked\ncos\nsystem\nstb.',
  'BUILD calls __setstate__': b'cbuiltins\neval\nccopyreg\n_reconstructor\n(cos\nsystem\ntR' + TOUCH + b'b.',
  '__reduce_ex__ by copyreg': b'ccopyreg\n__newobj__\n(cos\nsystem\n' + TOUCH + b'tR.',
  'SETITEM on a record': b'cbuiltins\nglobals\n(tRVpickles\ncos\nsystem\ns.',
  'APPENDS on a record': b'cos\nsystem\n(tR(' + TOUCH + b'e.',
  'huge memo index': b'\x80\x02cos\nsystem\nr\xff\xff\xff\x7f0j\xff\xff\xff\x7f(' + TOUCH + b'tR.',
  'partial': b'cfunctools\npartial\n(cos\nsystem\n' + TOUCH + b'tR(tR.',
  'map in a set': b'\x80\x04\x8f(cos\nsystem\n(' + TOUCH + b'tR\x90.',
  'as a key': b'}cos\nsystem\n(' + TOUCH + b'tRI1\ns.',
  'persistent identifier': b'cos\nsystem\n(' + TOUCH + b'tRQ.',
  'persistent identifier as text': b'Ptouch marker\n.',
  'in the arguments': b'ccollections\nOrderedDict\n((cos\nsystem\n(' + TOUCH + b'tRltR.',
}  # fmt: skip


@pytest.mark.parametrize('name', HOSTILE)
def test_nothing_of_a_hostile_pickle_runs(name, nothing_runs):
  _load(HOSTILE[name])


def test_python_itself_runs_the_hostile_pickles(tmp_path, monkeypatch):
  # Otherwise the tests above would prove nothing.
  monkeypatch.chdir(tmp_path)
  for name in ('reduce', 'reduce of posix', 'exec', 'eval', 'INST', 'OBJ', 'partial', 'STACK_GLOBAL with dots'):
    pickle.loads(HOSTILE[name])
    assert (tmp_path / 'marker').exists(), name
    (tmp_path / 'marker').unlink()


class Attack:
  def __reduce__(self):
    return os.system, ('touch marker',)


class Nested:
  def __reduce_ex__(self, protocol):
    return getattr, (Attack(), 'x'), {'state': Attack()}, iter([Attack()]), iter([('key', Attack())])


class State:
  def __getstate__(self):
    return {'inner': Attack(), '__class__': os.system}

  def __setstate__(self, state):
    raise AssertionError('the file has called us')


PICKLED = [pickle.dumps([Attack(), Nested(), {'a': State()}, (State(),)], protocol) for protocol in range(2, 6)]


@pytest.mark.parametrize('data', PICKLED)
def test_objects_with_reduce_methods_are_only_recorded(data, nothing_runs):
  attack, nested, in_dict, _ = _load(data).value
  assert attack.args == ('touch marker',) and attack.kind.name == 'system'
  assert nested.args[0].kind == attack.kind and nested.elements[0].kind == attack.kind
  assert nested.items[0][0] == 'key' and nested.states[0]['state'].args == ('touch marker',)
  assert in_dict['a'].states[0]['inner'].args == ('touch marker',)


def test_a_huge_memo_index_costs_nothing():
  started = time.perf_counter()
  assert _load(b'\x80\x02K\x05r\xff\xff\xff\xff0j\xff\xff\xff\xff.').value == 5
  assert time.perf_counter() - started < 1


@pytest.mark.parametrize('opening', [b'(', b']', b'}', b'\x80\x02)'])
def test_deep_nesting_neither_overflows_nor_takes_long(opening):
  closing = {b'(': b't', b']': b'a', b'}': b's'}.get(opening, b'\x85')
  if opening == b'}':
    data = b'}K\x01' * 25_000 + b'}' + closing * 25_000 + b'.'
  elif opening == b'\x80\x02)':
    data = opening + closing * 50_000 + b'.'
  else:
    data = opening * 50_000 + (b']' if closing == b'a' else b'') + closing * 50_000 + b'.'
  assert _load(data).value is not None


def test_a_deep_tuple_as_a_key_is_not_hashed():
  found = _load(b'\x80\x02})' + b'\x85' * 150_000 + b'K\x01s.').value
  assert list(found.values()) == [1]


def test_lengths_beyond_the_file_are_not_allocated():
  class Stream(io.BytesIO):
    def read(self, count=-1):
      assert count <= 64
      return super().read(count)

  for data in (
    b'\x80\x04\x8d' + b'\xff' * 6 + b'\x00\x00x.',
    b'\x80\x04X\xff\xff\xff\xffx.',
    b'\x8b\xff\xff\xff\x7fx.',
  ):
    with pytest.raises(ValueError):
      pickles.load(Stream(data), len(data))


def test_every_truncation_and_every_changed_byte_is_a_pickle_or_a_value_error():
  data = pickle.dumps([HONEST['numbers'], collections.OrderedDict(a=np.arange(3)), {'b': Attack()}, 'ä'], 4)
  random = np.random.default_rng(0)
  for end in range(len(data)):
    with pytest.raises(ValueError):
      _load(data[:end])
  for _ in range(1500):
    changed = bytearray(data)
    for place in random.integers(0, len(data), random.integers(1, 4)):
      changed[place] = random.integers(0, 256)
    with contextlib.suppress(ValueError):
      _load(bytes(changed))


def test_random_opcodes_are_a_pickle_or_a_value_error(nothing_runs):
  random = np.random.default_rng(1)
  codes = [opcode.code.encode('latin-1') for opcode in pickletools.opcodes if opcode.arg is None and opcode.code != '.']
  given = [b'K\x01', b'Vtext\n', b'cos\nsystem\n', b'q\x00', b'h\x00', b'}', b']', b'(', b')']
  for _ in range(1500):
    choice = [*codes, *given, *given]
    data = b''.join(choice[place] for place in random.integers(0, len(choice), 30))
    with contextlib.suppress(ValueError):
      _load(data + b'.')
