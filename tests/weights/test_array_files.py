"""npz and msgpack files as JAX programs publish them: names, values, what is refused, damage, and memory."""

import io
import zipfile

import flax.serialization
import ml_dtypes
import msgpack
import numpy as np
import pytest

from transferlab.errors import UserError
from transferlab.weights import array_files, msgpack_files

RANDOM = np.random.default_rng(0)
KERNEL, BIAS = RANDOM.normal(size=(3, 4)).astype(np.float32), RANDOM.normal(size=4).astype(np.float32)
HALF = KERNEL.astype(ml_dtypes.bfloat16)


def _npz(path, arrays, compressed=False):
  with open(path, 'wb') as file:
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
  return path


def _msgpack(path, tree):
  path.write_bytes(flax.serialization.to_bytes(tree))
  return path


def _same(found, expected):
  assert set(found) == set(expected)
  for name, array in expected.items():
    assert found.tensors[name].shape == array.shape and found.tensors[name].dtype == array.dtype
    assert found[name].dtype == array.dtype, name
    np.testing.assert_array_equal(found[name], array)


# ------------------------------------------------------------------------------------------------------------- npz
@pytest.mark.parametrize('compressed', [False, True])
def test_arrays_of_an_npz_file_are_those_that_numpy_wrote(tmp_path, compressed):
  given = {
    'Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel': KERNEL,
    'resnet/root_block/conv2d/kernel': np.asfortranarray(RANDOM.normal(size=(2, 3, 4))),
    'swapped': BIAS.astype('>f4'),
    'empty': np.zeros((0, 2), np.int8),
    'halves': KERNEL.astype(np.float16),
    'truth': np.array([True, False]),
  }
  found = array_files.read(_npz(tmp_path / 'x.npz', given, compressed))
  _same(found, {**given, 'swapped': BIAS})
  assert found.part is None and found.format == 'npz'


def test_bfloat16_survives_numpy_s_ignorance_of_it(tmp_path):
  found = array_files.read(_npz(tmp_path / 'x.npz', {'head/kernel': HALF, 'head/bias': BIAS}))
  _same(found, {'head/kernel': HALF, 'head/bias': BIAS})


def test_parameters_of_big_vision_lose_their_entry_and_the_optimizer_is_another_part(tmp_path):
  given = {
    'params/img/head/kernel': KERNEL,
    'params/t': np.ones((1,), np.float32),
    'opt/0/count': np.array(3),
    'opt/0/mu/img/head/kernel': 2 * KERNEL,
    'step': np.array(1000),
    'best': np.array(0.5),
  }
  found = array_files.read(_npz(tmp_path / 'x.npz', given))
  _same(found, {'img/head/kernel': KERNEL, 't': np.ones((1,), np.float32)})
  assert found.part == 'params' and dict(found.others) == {'opt': 2}
  assert dict(found.metadata) == {'step': 1000, 'best': 0.5}
  _same(array_files.read(tmp_path / 'x.npz', 'opt/0/mu'), {'img/head/kernel': 2 * KERNEL})
  with pytest.raises(UserError, match=r"x\.npz: unknown part 'optt'; nearest: opt"):
    array_files.read(tmp_path / 'x.npz', 'optt')


def test_single_numbers_stay_tensors_inside_the_weights(tmp_path):
  given = {'scale': np.array(2.5, np.float32), 'step': np.array(3), 'dense/kernel': KERNEL, 'dense/gain': np.array(4)}
  found = array_files.read(_npz(tmp_path / 'x.npz', given))
  _same(found, {name: array for name, array in given.items() if name != 'step'})
  assert dict(found.metadata) == {'step': 3}


def test_state_dicts_saved_as_npz_lose_their_wrappers_and_texts_are_metadata(tmp_path):
  given = {'module.bn.weight': BIAS, 'module.bn.num_batches_tracked': np.array(5), 'module.fc.weight': KERNEL}
  found = array_files.read(_npz(tmp_path / 'x.npz', given))
  _same(found, {name.removeprefix('module.'): array for name, array in given.items()})
  found = array_files.read(_npz(tmp_path / 'x.npz', {'a/w': BIAS, 'classes': np.array(['ant', 'bee'])}))
  assert list(found) == ['a/w'] and dict(found.metadata) == {'classes': ['ant', 'bee']}


@pytest.mark.parametrize('text', ['{"transferlab": "1"}', '{"a": ', '', 'ä'])
def test_what_a_file_says_of_itself_is_metadata_and_no_array(tmp_path, text):
  found = array_files.read(_npz(tmp_path / 'x.npz', {'a.w': BIAS, 'step': np.array(3), '__metadata__': np.array(text)}))
  _same(found, {'a.w': BIAS})
  assert dict(found.metadata) == {'step': 3, '__metadata__': text}


class _Harm:
  def __reduce__(self):
    return (print, ('ran',))


def test_a_pickle_in_an_npz_file_is_refused_and_never_run(tmp_path, capsys):
  path = _npz(tmp_path / 'x.npz', {'a/w': BIAS, 'harm': np.array([_Harm()], dtype=object)})
  with pytest.raises(UserError, match=r"x\.npz: 'harm' holds Python objects \(a pickle\), which are never loaded"):
    array_files.read(path)
  assert 'ran' not in capsys.readouterr().out


def _npy(array, version=None):
  file = io.BytesIO()
  np.lib.format.write_array(file, array, version=version)
  return file.getvalue()


def _zip(path, members):
  with zipfile.ZipFile(path, 'w') as archive:
    for name, content in members:
      archive.writestr(name, content)
  return path


RECORDS = np.zeros(2, [('ä', np.float32)])


@pytest.mark.parametrize(
  'members, message',
  [
    ([('a.npy', _npy(BIAS)[:-1])], r"'a' is damaged or cut short \(143 bytes are there, and 144 should be\)"),
    ([('a.npy', _npy(BIAS) + b'x')], "'a' is damaged or cut short"),
    ([('a.npy', b'\x93NUMPY\x09\x00')], "'a' is written in version 9.0"),
    ([('a.npy', b'')], "'a' is damaged or cut short"),
    ([('a.npy', _npy(RECORDS, (3, 0)))], "'a' is written in version 3.0"),
    ([('a.npy', _npy(np.zeros(2, [('a', np.float32)])))], 'numbers are needed'),
    ([('a.npy', _npy(np.zeros(2, 'M8[s]')))], 'has dtype datetime64'),
    ([('a.npy', _npy(BIAS)), ('a.npy', _npy(KERNEL))], "'a' stands in it twice"),
    ([('readme.txt', b'hello')], 'an npz file without arrays'),
  ],
)
@pytest.mark.filterwarnings('ignore:Duplicate name', 'ignore:Stored array in format 3.0')
def test_members_that_are_no_arrays_of_numbers_are_refused(tmp_path, members, message):
  with pytest.raises(UserError, match=rf'x\.npz.*{message}'):
    array_files.read(_zip(tmp_path / 'x.npz', members))


def test_members_that_are_no_arrays_are_noted(tmp_path):
  found = array_files.read(_zip(tmp_path / 'x.npz', [('a.npy', _npy(BIAS)), ('readme.txt', b'hello')]))
  assert list(found) == ['a'] and found.notes == ('left out, since it is no array: readme.txt',)


@pytest.mark.parametrize('compressed', [False, True])
def test_every_flipped_byte_of_an_npz_file_is_found_or_harmless(tmp_path, compressed):
  # More than zipfile reads ahead, so that the checksum is compared where the values are read.
  given = {'a/kernel': RANDOM.normal(size=(50, 100)), 'a/bias': BIAS}
  whole = _npz(tmp_path / 'x.npz', given, compressed).read_bytes()
  refused, places = 0, [*range(0, 400, 3), *range(400, len(whole) - 600, 97), *range(len(whole) - 600, len(whole), 3)]
  for place in places:
    (tmp_path / 'x.npz').write_bytes(whole[:place] + bytes([whole[place] ^ 0x11]) + whole[place + 1 :])
    try:
      found = dict(array_files.read(tmp_path / 'x.npz'))
    except UserError as error:
      assert 'x.npz' in str(error)
      refused += 1
    else:
      # Names are written twice, and dates and the like are no affair of ours; values are never wrong.
      assert all(any(np.array_equal(array, one) for one in given.values()) for array in found.values())
  assert refused > len(places) / 2


def test_an_npz_file_that_was_cut_anywhere_is_refused(tmp_path):
  whole = _npz(tmp_path / 'x.npz', {'a/kernel': KERNEL, 'a/bias': BIAS}).read_bytes()
  for size in range(0, len(whole), 7):
    (tmp_path / 'x.npz').write_bytes(whole[:size])
    with pytest.raises(UserError, match=r'x\.npz'):
      array_files.read(tmp_path / 'x.npz')


def test_reading_an_npz_file_holds_no_more_than_its_arrays_and_a_part_of_the_largest(tmp_path, peak_of_reading):
  arrays = {'a': np.ones(2**22, np.float32), 'large': np.ones(2**23, np.float32), 'c': np.ones(2**21, np.float64)}
  peak = peak_of_reading('array_files', _npz(tmp_path / 'x.npz', arrays))
  assert 0.95 * 2**26 < peak < 2**26 + 2**24


# --------------------------------------------------------------------------------------------------------- msgpack
TREE = {
  'params': {'dense': {'kernel': KERNEL, 'bias': HALF}, 'layers': [{'w': BIAS}, {'w': 2 * BIAS}]},
  'batch_stats': {'norm': {'mean': np.arange(3, dtype=np.int32), 'empty': np.zeros((0, 2), np.float32)}},
  'opt_state': ({'mu': KERNEL, 'nu': KERNEL}, np.int32(3)),
  'ema_params': {'dense': {'kernel': 3 * KERNEL}},
  'step': 1000,
  'rate': np.float32(0.5),
  'name': 'a run',
  'phase': 1 + 2j,
  'nothing': None,
}
WEIGHTS = {
  'dense/kernel': KERNEL,
  'dense/bias': HALF,
  'layers/0/w': BIAS,
  'layers/1/w': 2 * BIAS,
  'batch_stats/norm/mean': np.arange(3, dtype=np.int32),
  'batch_stats/norm/empty': np.zeros((0, 2), np.float32),
}


def test_arrays_of_a_msgpack_file_are_those_that_flax_wrote(tmp_path):
  found = msgpack_files.read(_msgpack(tmp_path / 'checkpoint_1000', TREE))
  _same(found, WEIGHTS)
  assert found.part == 'params' and dict(found.others) == {'opt_state': 3, 'ema_params': 1}
  expected = {'step': 1000, 'rate': 0.5, 'name': 'a run', 'phase': 1 + 2j, 'nothing': None}
  assert dict(found.metadata) == expected
  _same(msgpack_files.read(tmp_path / 'checkpoint_1000', 'ema_params'), {'dense/kernel': 3 * KERNEL})
  with pytest.raises(UserError, match=r"checkpoint_1000: unknown part 'ema'; nearest: ema_params"):
    msgpack_files.read(tmp_path / 'checkpoint_1000', 'ema')


def test_a_tree_of_bare_parameters_keeps_its_names(tmp_path):
  found = msgpack_files.read(_msgpack(tmp_path / 'flax_model.msgpack', {'bert': {'pooler': {'kernel': KERNEL}}}))
  _same(found, {'bert/pooler/kernel': KERNEL})
  assert found.part is None and not found.others


def test_arrays_in_chunks_are_joined(tmp_path, monkeypatch):
  monkeypatch.setattr(flax.serialization, 'MAX_CHUNK_SIZE', 20)
  path = _msgpack(tmp_path / 'x.msgpack', {'params': {'a': {'kernel': KERNEL}, 'b': HALF, 'c': np.ones(2)}})
  assert path.read_bytes().count(b'__msgpack_chunked_array__') == 2
  _same(msgpack_files.read(path), {'a/kernel': KERNEL, 'b': HALF, 'c': np.ones(2)})


def test_lists_and_long_texts_and_every_kind_of_number_are_stepped_over(tmp_path):
  pack = lambda array: msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))
  numbers = [0, 127, 128, 255, 256, 70000, 2**40, -1, -32, -33, -200, -70000, -(2**40), 1.5, True, False, None]
  tree = {
    'log': {'numbers': numbers, 'text': 'x' * 300, 'long': 'x' * 70000, 'bytes': b'x' * 70000},
    'many': {str(number): number for number in range(20)},
    'odd': msgpack.ExtType(9, b'abcd'),
    7: {'weights': [pack(KERNEL), pack(np.ones(70000))]},
    'layer': {'kernel': pack(np.ones((20, 3)))},
  }
  path = tmp_path / 'x.msgpack'
  path.write_bytes(msgpack.packb(tree))
  found = msgpack_files.read(path)
  _same(found, {'7/weights/0': KERNEL, '7/weights/1': np.ones(70000), 'layer/kernel': np.ones((20, 3))})
  assert [found.metadata[f'log/numbers/{index}'] for index in range(len(numbers))] == numbers
  assert found.metadata['many/19'] == 19 and found.metadata['log/text'] == 'x' * 300


def test_a_msgpack_file_that_was_cut_anywhere_is_refused(tmp_path):
  whole = _msgpack(tmp_path / 'x', TREE).read_bytes()
  for size in range(0, len(whole), 5):
    (tmp_path / 'x').write_bytes(whole[:size])
    with pytest.raises(UserError, match=r'/x is no msgpack file of Flax, or is damaged or cut short'):
      msgpack_files.read(tmp_path / 'x')
  (tmp_path / 'x').write_bytes(whole + b'x')
  with pytest.raises(UserError, match='1 bytes follow behind its tree'):
    msgpack_files.read(tmp_path / 'x')


def test_a_flipped_byte_of_a_msgpack_file_gives_a_message_or_arrays_that_fit(tmp_path):
  whole = _msgpack(tmp_path / 'x', TREE).read_bytes()
  for place in range(len(whole)):
    (tmp_path / 'x').write_bytes(
      whole[:place] + bytes([whole[place] ^ (0x01, 0x10, 0x80)[place % 3]]) + whole[place + 1 :]
    )
    try:
      found = msgpack_files.read(tmp_path / 'x')
      assert all(found[name].shape == found.tensors[name].shape for name in found)
    except UserError as error:
      assert str(tmp_path / 'x') in str(error)


VALUES = BIAS.tobytes()


def _extension(shape=(4,), dtype='float32', content=VALUES):
  return msgpack.packb({'a': msgpack.ExtType(1, msgpack.packb((shape, dtype, content)))})


@pytest.mark.parametrize(
  'content, message',
  [
    (_extension(dtype='object'), "a has dtype 'object'"),
    (_extension(dtype='str96'), "a has dtype 'str96'"),
    (_extension(dtype='nonsense'), "a has dtype 'nonsense'"),
    (_extension(shape=(5,)), r'a of shape \(5,\) and float32 needs 20 bytes, and has 16'),
    (_extension(shape=(-1,)), 'a has no shape'),
    (_extension(shape=('4',)), 'a has no shape'),
    (msgpack.packb({'a': msgpack.ExtType(1, b'\x93\x91\x04')}), 'damaged or cut short'),
    (msgpack.packb({'a': 1}), 'a msgpack file without arrays'),
    (msgpack.packb([1, 2]), 'does not begin with a map'),
    (b'\x82\xa1a\x01\xa1a\x02', "'a' stands twice"),
    (b'\x81\xa1a\xc1', 'byte 0xc1 begins nothing'),
    (b'\x81\xa1a' + b'\x91' * 200, 'more than 64 levels'),
    (b'\x81\x81', 'neither text nor number'),
  ],
)
def test_trees_that_contradict_themselves_are_refused(tmp_path, content, message):
  (tmp_path / 'x.msgpack').write_bytes(content)
  with pytest.raises(UserError, match=rf'x\.msgpack.*{message}'):
    msgpack_files.read(tmp_path / 'x.msgpack')


def test_reading_a_msgpack_file_holds_no_more_than_its_arrays_and_a_part_of_the_largest(tmp_path, peak_of_reading):
  arrays = {'a': np.ones(2**22, np.float32), 'large': np.ones(2**23, np.float32), 'c': np.ones(2**21, np.float64)}
  peak = peak_of_reading('msgpack_files', _msgpack(tmp_path / 'x.msgpack', arrays))
  assert 0.95 * 2**26 < peak < 2**26 + 2**24


# ---------------------------------------------------------------------------------------- where the weights stand
@pytest.mark.parametrize(
  'tree, expected, part',
  [
    # flax before 2021, scenic: the parameters are the optimizer's target, statistics stand beside it.
    (
      {'optimizer': {'target': {'params': {'w': 1}}, 'state': {'m': 2}}, 'model_state': {'batch_stats': {'v': 3}}},
      {'w': 1, 'batch_stats/v': 3},
      'optimizer/target/params',
    ),
    ({'opt': {'target': {'w': 1}, 'state': {'w': 2}}}, {'w': 1}, 'opt/target'),
    # A train state as one entry of a checkpoint.
    ({'model': {'params': {'w': 1}, 'opt_state': {'w': 2}}, 'config': {'x': 3}}, {'w': 1}, 'model/params'),
    # Variables saved as the parameters of a train state.
    ({'params': {'params': {'w': 1}, 'batch_stats': {'v': 2}}}, {'w': 1, 'batch_stats/v': 2}, 'params'),
    # A layer that happens to have the name of a collection is no collection.
    ({'params': {'params': {'w': 1}, 'dense': {'v': 2}}}, {'params/w': 1, 'dense/v': 2}, 'params'),
    (
      {'params': {'linear/~/x': {'w': 1}}, 'state': {'norm': {'v': 2}}},
      {'linear/~/x/w': 1, 'state/norm/v': 2},
      'params',
    ),
    # NNX keeps every array in a box.
    (
      {'layers': {'0': {'kernel': {'value': 1}, 'bias': {'value': 2}}}},
      {'layers/0/kernel': 1, 'layers/0/bias': 2},
      None,
    ),
    # Two networks in one file stay apart.
    (
      {'generator': {'params': {'w': 1}}, 'critic': {'params': {'w': 2}}},
      {'generator/params/w': 1, 'critic/params/w': 2},
      None,
    ),
  ],
)
def test_the_weights_are_found_wherever_jax_programs_put_them(tmp_path, tree, expected, part):
  filled = flax.serialization.msgpack_restore(msgpack.packb(tree))

  def arrays(node):
    return {name: arrays(child) for name, child in node.items()} if isinstance(node, dict) else np.full(2, node)

  found = msgpack_files.read(_msgpack(tmp_path / 'x', arrays(filled)))
  assert {name: array[0] for name, array in dict(found).items()} == expected and found.part == part


def test_a_file_of_nothing_but_an_optimizer_asks_for_a_part(tmp_path):
  path = _msgpack(tmp_path / 'x', {'opt_state': {'0': {'mu': {'w': KERNEL}}}})
  with pytest.raises(UserError, match=r'/x: holds no weights under a known name; name a part of it: opt_state \(1 arr'):
    msgpack_files.read(path)
  _same(msgpack_files.read(path, 'opt_state/0/mu'), {'w': KERNEL})
