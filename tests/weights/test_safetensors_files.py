"""safetensors files: every dtype against the library that defines them, damage, shards, and memory."""

import json
import os
import re
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from transferlab.errors import UserError
from transferlab.weights import naming, readers, safetensors_files

RANDOM = np.random.default_rng(0)


def _arrays():
  return {
    'conv.weight': RANDOM.normal(size=(4, 3, 3, 3)).astype(np.float32),
    'conv.bias': RANDOM.normal(size=4).astype(np.float16),
    'steps': np.array(7, np.int64),
    'empty': np.zeros((0, 5), np.float32),
  }


def _written(header, values=b''):
  text = json.dumps(header).encode() if isinstance(header, dict) else header
  return struct.pack('<Q', len(text)) + text + values


def _entry(begin, end, shape=None, dtype='U8'):
  return {'dtype': dtype, 'shape': [end - begin] if shape is None else shape, 'data_offsets': [begin, end]}


def test_arrays_and_metadata_are_those_that_the_library_wrote(tmp_path):
  given = _arrays()
  safetensors.numpy.save_file(given, tmp_path / 'x.safetensors', metadata={'format': 'pt', 'note': 'ä'})
  found = safetensors_files.read(tmp_path / 'x.safetensors')
  assert dict(found.metadata) == {'format': 'pt', 'note': 'ä'}
  assert found.file == str(tmp_path / 'x.safetensors') and set(found) == set(given)
  for name, array in given.items():
    assert found.tensors[name].shape == array.shape and found.tensors[name].dtype == array.dtype
    assert found[name].dtype == array.dtype and found[name].flags.writeable
    np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
  'dtype',
  ['bool', *(f'{kind}{bits}' for kind in ('uint', 'int') for bits in (8, 16, 32, 64)), 'float16', 'float32', 'float64'],
)
def test_every_dtype_of_numpy_is_read(tmp_path, dtype):
  values = np.array([[0, 1, 1], [0, 1, 5]]).astype(dtype)
  safetensors.numpy.save_file({'x': values}, tmp_path / 'x.safetensors')
  found = safetensors_files.read(tmp_path / 'x.safetensors')
  assert found.tensors['x'].dtype == values.dtype and found['x'].dtype == values.dtype
  np.testing.assert_array_equal(found['x'], values)


@pytest.mark.parametrize(
  'kind, dtype, bits',
  [
    # 1.0 and -2.0 as their standards write them.
    ('BF16', ml_dtypes.bfloat16, b'\x80\x3f\x00\xc0'),
    ('F8_E4M3', ml_dtypes.float8_e4m3fn, b'\x38\xc0'),
    ('F8_E5M2', ml_dtypes.float8_e5m2, b'\x3c\xc0'),
  ],
)
def test_floats_that_numpy_lacks_are_read_from_their_bits(tmp_path, kind, dtype, bits):
  (tmp_path / 'x.safetensors').write_bytes(_written({'x': _entry(0, len(bits), [2], kind)}, bits))
  found = safetensors_files.read(tmp_path / 'x.safetensors')['x']
  assert found.dtype == dtype
  np.testing.assert_array_equal(found.astype(np.float32), [1, -2])


def test_small_floats_of_torch_have_torch_s_values(tmp_path):
  torch, library = pytest.importorskip('torch'), pytest.importorskip('safetensors.torch')
  values = torch.tensor([[0.1, -3.0, 448.0], [1e-3, 0.0, 7.7]])
  given = {kind: values.to(getattr(torch, kind)) for kind in ('bfloat16', 'float8_e4m3fn', 'float8_e5m2', 'float16')}
  library.save_file(given, tmp_path / 'x.safetensors')
  found = safetensors_files.read(tmp_path / 'x.safetensors')
  for kind, tensor in given.items():
    assert found[kind].dtype.name == kind
    np.testing.assert_array_equal(found[kind].astype(np.float32), tensor.to(torch.float32).numpy())


def test_names_lose_the_wrappers_that_all_of_them_share(tmp_path):
  arrays = {f'module.model.{name}': array for name, array in _arrays().items()}
  safetensors.numpy.save_file(arrays, tmp_path / 'x.safetensors')
  found = safetensors_files.read(tmp_path / 'x.safetensors')
  assert set(found) == set(_arrays()) and found.notes == ('taken off the names: module, model',)
  np.testing.assert_array_equal(found['conv.weight'], arrays['module.model.conv.weight'])


@pytest.mark.parametrize(
  'names, expected',
  [
    (['module.a.w', 'module.b.w'], ['a.w', 'b.w']),
    (['_orig_mod.module.a.w', '_orig_mod.module.b.w'], ['a.w', 'b.w']),
    (['a._orig_mod.w', 'b._fsdp_wrapped_module._checkpoint_wrapped_module.w'], ['a.w', 'b.w']),
    # What only some names have is part of the network, and so is a name that nothing would be left of.
    (['model.a.w', 'head.w'], ['model.a.w', 'head.w']),
    (['model.', 'model.w'], ['model.', 'model.w']),
    (['modules.a', 'modules.b', 'my_orig_mod.c'], ['modules.a', 'modules.b', 'my_orig_mod.c']),
    # Two tensors must not become one.
    (['a._orig_mod.w', 'a.w'], ['a._orig_mod.w', 'a.w']),
  ],
)
def test_only_wrappers_of_all_names_are_stripped(names, expected):
  stripped, note = naming.strip_wrappers(names)
  assert stripped == dict(zip(names, expected)) and bool(note) == (names != expected)


def test_the_published_mobilenet_is_read_as_the_library_reads_it():
  folder = os.environ.get('TRANSFERLAB_TEST_DATA')
  if not folder:
    pytest.skip('TRANSFERLAB_TEST_DATA is not set')
  path = os.path.join(folder, 'weights', 'mobilenet_v1_025_224.safetensors')
  found, expected = safetensors_files.read(path), safetensors.numpy.load_file(path)
  assert set(found) == set(expected)
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array)


# ---------------------------------------------------------------------------------------------------------- damage
@pytest.fixture
def whole(tmp_path):
  safetensors.numpy.save_file(_arrays(), tmp_path / 'whole.safetensors')
  return (tmp_path / 'whole.safetensors').read_bytes()


def test_a_file_that_was_cut_anywhere_is_refused(tmp_path, whole):
  path = tmp_path / 'cut.safetensors'
  for size in [*range(20), *range(20, len(whole), 13), len(whole) - 1]:
    path.write_bytes(whole[:size])
    with pytest.raises(UserError, match=re.escape(str(path))):
      safetensors_files.read(path)
  with pytest.raises(UserError, match=r'439 bytes of tensors are there, and 448 should be'):
    path.write_bytes(whole[:-9])
    safetensors_files.read(path)


def test_a_file_that_is_cut_after_it_was_opened_is_refused(tmp_path, whole):
  path = tmp_path / 'cut.safetensors'
  path.write_bytes(whole)
  found = safetensors_files.read(path)
  path.write_bytes(whole[:-9])
  with pytest.raises(UserError, match=r'cut\.safetensors is damaged or cut short: \d bytes are missing'):
    dict(found)


def test_a_flipped_byte_of_the_header_gives_a_message_or_arrays_that_fit(tmp_path, whole):
  path, refused = tmp_path / 'flipped.safetensors', 0
  header = 8 + struct.unpack('<Q', whole[:8])[0]
  for place in range(header):
    for flip in (0x01, 0x10, 0x80):
      path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
      try:
        found = safetensors_files.read(path)
        assert all(found[name].shape == found.tensors[name].shape for name in found)
      except UserError as error:
        assert str(path) in str(error)
        refused += 1
  assert refused > header


@pytest.mark.parametrize(
  'file, message',
  [
    (_written({'a': _entry(0, 4), 'b': _entry(2, 6)}, bytes(6)), "tensors 'a' and 'b' overlap"),
    (_written({'a': _entry(0, 4), 'b': _entry(5, 6)}, bytes(6)), "tensors 'a' and 'b' have a gap"),
    (_written({'a': _entry(2, 6)}, bytes(6)), '2 bytes before its first tensor'),
    (_written({'a': _entry(0, 4)}, bytes(6)), '6 bytes of tensors are there, and 4 should be'),
    (_written({'a': _entry(0, 4, [2], 'F32')}, bytes(4)), r"'a' of shape \(2,\) and F32 needs 8 bytes, and has 4"),
    (_written({'a': _entry(0, 4, [-4])}, bytes(4)), 'has shape'),
    (_written({'a': _entry(0, 4, [4.0])}, bytes(4)), 'has shape'),
    (_written({'a': _entry(0, 4, [2**70])}, bytes(4)), 'needs 1180591620717411303424 bytes'),
    (_written({'a': _entry(0, 4, [4], 'F4')}, bytes(4)), "dtype 'F4'; read are BOOL, BF16"),
    (_written({'a': {'dtype': 'U8', 'shape': [4]}}, bytes(4)), 'lacks a shape, a dtype or offsets'),
    (_written({'a': 3}), 'lacks a shape'),
    (_written({'__metadata__': 3}), '__metadata__ is no record'),
    (_written(b'[1, 2]'), 'its header is no record'),
    (_written(b'{"a": '), 'not valid JSON'),
    (_written(b'{"a": ' + b'[' * 100000), 'not valid JSON'),
    (_written(b'{"\xff": 3}'), 'not valid JSON'),
    (_written(b'{"a": {}, "a": {}}'), 'a name stands twice'),
    (struct.pack('<Q', 10**9) + b'{}', 'do not begin with a header'),
    (struct.pack('<Q', 10**6) + b'{}', 'it has 10 bytes, and its header alone should have 1000008'),
  ],
)
def test_headers_that_contradict_themselves_or_the_file_are_refused(tmp_path, file, message):
  (tmp_path / 'x.safetensors').write_bytes(file)
  with pytest.raises(UserError, match=rf'x\.safetensors.*{message}'):
    safetensors_files.read(tmp_path / 'x.safetensors')


def test_missing_files_and_parts_are_named(tmp_path):
  with pytest.raises(UserError, match=r'nowhere\.safetensors cannot be read \(No such file'):
    safetensors_files.read(tmp_path / 'nowhere.safetensors')
  with pytest.raises(UserError, match="has no parts, so there is no part 'ema'"):
    safetensors_files.read(tmp_path / 'nowhere.safetensors', 'ema')


# ---------------------------------------------------------------------------------------------------------- shards
@pytest.fixture
def sharded(tmp_path):
  """Arrays in two shards, the second of which alone would lose more of its names than both together."""
  shards = {
    'model-00001-of-00002.safetensors': {'a.weight': np.arange(6.0), 'model.b.weight': np.ones((2, 3), np.float32)},
    'model-00002-of-00002.safetensors': {'model.c.weight': np.arange(4)},
  }
  for name, arrays in shards.items():
    safetensors.numpy.save_file(arrays, tmp_path / name, metadata={'format': 'pt'})
  where = {name: shard for shard in reversed(shards) for name in shards[shard]}
  index = {'metadata': {'total_size': 104}, 'weight_map': where}
  (tmp_path / 'model.safetensors.index.json').write_text(json.dumps(index))
  return tmp_path


@pytest.mark.parametrize('named', ['', 'model.safetensors.index.json', 'model-00002-of-00002.safetensors'])
def test_shards_are_read_by_their_index_however_they_are_named(sharded, named):
  found = readers.read(sharded / named)
  assert list(found) == ['model.c.weight', 'a.weight', 'model.b.weight']
  assert dict(found.metadata) == {'format': 'pt', 'total_size': 104} and found.format == 'safetensors, 2 shards'
  np.testing.assert_array_equal(found['model.c.weight'], np.arange(4))
  np.testing.assert_array_equal(found['a.weight'], np.arange(6.0))
  np.testing.assert_array_equal(found['model.b.weight'], np.ones((2, 3)))


def test_a_missing_shard_is_named_with_what_it_would_hold(sharded):
  (sharded / 'model-00001-of-00002.safetensors').unlink()
  with pytest.raises(UserError, match=r'shard model-00001-of-00002\.safetensors is missing; it would hold 2 of 3 tens'):
    readers.read(sharded)


def test_a_shard_that_lacks_what_the_index_promises_is_refused(sharded):
  safetensors.numpy.save_file({'c.wait': np.arange(4)}, sharded / 'model-00002-of-00002.safetensors')
  with pytest.raises(UserError, match=r"'model\.c\.weight' should stand in model-00002.*nearest: c\.wait"):
    readers.read(sharded)


def test_a_shard_may_hold_more_than_its_index_names_which_is_noted(tmp_path):
  safetensors.numpy.save_file({'module.model.a': np.ones(2), 'module.b': np.ones(3)}, tmp_path / 'x.safetensors')
  (tmp_path / 'x.index.json').write_text(json.dumps({'weight_map': {'module.model.a': 'x.safetensors'}}))
  found = readers.read(tmp_path / 'x.index.json')
  assert list(found) == ['a'] and '1 tensors of the shards are not in the index, and are left out' in found.notes


@pytest.mark.parametrize(
  'text, message',
  [
    ('{"weight_map": {"a": "../x.safetensors"}}', 'names a shard outside its folder'),
    ('{"weight_map": {"a": "/etc/passwd"}}', 'names a shard outside its folder'),
    ('{"weight_map": {"a": 3}}', 'no index of shards'),
    ('{"weight_map": {}}', 'no index of shards'),
    ('[]', 'no index of shards'),
    ('{"weight_ma', 'no index of shards'),
  ],
)
def test_a_damaged_index_is_refused_by_whatever_shard_it_is_found(sharded, text, message):
  (sharded / 'model.safetensors.index.json').write_text(text)
  with pytest.raises(UserError, match=message):
    readers.read(sharded)
  if 'no index' in message:
    with pytest.raises(UserError, match=message):
      readers.read(sharded / 'model-00001-of-00002.safetensors')


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_every_shard_is_opened_once_and_nothing_untrue_is_said(tmp_path, monkeypatch, prefix):
  names = [f'{prefix}layer{number}.weight' for number in range(4)]
  for number, name in enumerate(names):
    safetensors.numpy.save_file({name: np.full(2, number)}, tmp_path / f'x-{number}-of-4.safetensors')
  where = {name: f'x-{number}-of-4.safetensors' for number, name in enumerate(names)}
  (tmp_path / 'x.safetensors.index.json').write_text(json.dumps({'weight_map': where}))
  header, opened = safetensors_files._header, []
  monkeypatch.setattr(safetensors_files, '_header', lambda path: opened.append(path.name) or header(path))
  found = readers.read(tmp_path / 'x-2-of-4.safetensors')
  assert opened == list(where.values())
  assert found.format == 'safetensors, 4 shards' and found.notes == (('taken off the names: module',) if prefix else ())
  assert {name: array.tolist() for name, array in found.items()} == {f'layer{n}.weight': [n, n] for n in range(4)}


# ---------------------------------------------------------------------------------------------------------- memory
def test_reading_holds_no_more_than_the_arrays_and_a_part_of_the_largest(tmp_path, peak_of_reading):
  arrays = {'a': np.ones(2**22, np.float32), 'large': np.ones(2**23, np.float32), 'c': np.ones(2**21, np.float64)}
  safetensors.numpy.save_file(arrays, tmp_path / 'x.safetensors')
  peak = peak_of_reading('safetensors_files', tmp_path / 'x.safetensors')
  total, largest = sum(array.nbytes for array in arrays.values()), 2**25
  # The contract is the sum of both; reading into place needs only the first, and a part for the interpreter.
  assert 0.95 * total < peak < total + largest / 2
