"""The door: a file is what its contents say, whatever it is called; and one clear message for all that is none."""

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import flax.serialization
import h5py
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from transferlab.errors import UserError
from transferlab.weights import readers

KERNEL, BIAS = np.arange(12, dtype=np.float32).reshape(3, 4), np.ones(4, np.float32)
FORMATS = 'read are PyTorch, safetensors, Keras'


def _safetensors(path):
  safetensors.numpy.save_file({'dense.weight': KERNEL}, path)


def _npz(path):
  with open(path, 'wb') as file:
    np.savez(file, **{'params/dense/kernel': KERNEL, 'opt/mu': BIAS})


def _msgpack(path):
  path.write_bytes(flax.serialization.to_bytes({'params': {'dense': {'kernel': KERNEL}}, 'opt_state': {'mu': BIAS}}))


def _torch(path):
  torch = pytest.importorskip('torch')
  torch.save({'state_dict': {'module.dense.weight': torch.from_numpy(KERNEL)}}, path)


def _legacy(path):
  torch = pytest.importorskip('torch')
  torch.save({'dense.weight': torch.from_numpy(KERNEL)}, path, _use_new_zipfile_serialization=False)


def _hdf5(path):
  with h5py.File(path, 'w') as file:
    file.attrs['layer_names'] = [b'dense']
    file.create_group('dense').attrs['weight_names'] = [b'dense/kernel:0']
    file['dense']['dense/kernel:0'] = KERNEL


def _text(path):
  path.write_text('{}')


WRITERS = {
  'safetensors': _safetensors,
  'npz': _npz,
  'Flax msgpack': _msgpack,
  'PyTorch': _torch,
  'legacy': _legacy,
  'Keras': _hdf5,
}


@pytest.mark.parametrize('suffix', ['.safetensors', '.npz', '.pth', '.h5', '.msgpack', '', '.whatever'])
@pytest.mark.parametrize('format', WRITERS)
def test_a_file_is_what_its_contents_say_whatever_it_is_called(tmp_path, format, suffix):
  path = tmp_path / f'x{suffix}'
  WRITERS[format](path)
  found = readers.read(str(path))
  assert found.format.startswith(format.replace('legacy', 'PyTorch')) and found.file == str(path)
  (name,) = found
  assert name.removesuffix('kernel').removesuffix('weight') in ('dense/', 'dense.')
  np.testing.assert_array_equal(found[name], KERNEL)


def test_a_keras_archive_is_told_from_other_zip_archives(tmp_path, monkeypatch):
  monkeypatch.setenv('KERAS_BACKEND', 'jax')
  keras = pytest.importorskip('keras')
  model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
  model.save(tmp_path / 'x.keras')
  (tmp_path / 'x.keras').rename(tmp_path / 'x.npz')
  found = readers.read(tmp_path / 'x.npz')
  assert found.format.startswith('Keras')
  np.testing.assert_array_equal(next(iter(found.values())), np.asarray(model.layers[0].kernel))


def test_a_home_folder_is_expanded_and_the_name_stays_as_it_was_given(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  _safetensors(tmp_path / 'x.safetensors')
  assert readers.read('~/x.safetensors').file == '~/x.safetensors'


def test_parts_reach_the_reader(tmp_path):
  _npz(tmp_path / 'x')
  assert list(readers.read(tmp_path / 'x', 'opt')) == ['mu'] and readers.read(tmp_path / 'x').others == {'opt': 1}
  _safetensors(tmp_path / 'y')
  with pytest.raises(UserError, match="no part 'opt'"):
    readers.read(tmp_path / 'y', 'opt')


# --------------------------------------------------------------------------------------------------------- folders
@pytest.mark.parametrize(
  'files, format, chosen',
  [
    ({'model.safetensors': _safetensors, 'flax_model.msgpack': _msgpack}, 'safetensors', 'model.safetensors'),
    ({'x.safetensors': _safetensors, 'config.json': _text}, 'safetensors', 'x.safetensors'),
    ({'pytorch_model.bin': _torch, 'flax_model.msgpack': _msgpack}, 'PyTorch', 'pytorch_model.bin'),
    ({'pytorch_model.bin': _torch, 'adapter.safetensors': _safetensors}, 'PyTorch', 'pytorch_model.bin'),
    ({'flax_model.msgpack': _msgpack, 'tf_model.h5': _hdf5}, 'Flax msgpack', 'flax_model.msgpack'),
    ({'checkpoint_9': _npz, 'checkpoint_10': _msgpack}, 'Flax msgpack', 'checkpoint_10'),
    ({'weights.npz': _npz, 'readme.txt': _text}, 'npz', 'weights.npz'),
    ({'model_best.pth.tar': _torch}, 'PyTorch', 'model_best.pth.tar'),
    ({'step_5': lambda path: ocp.PyTreeCheckpointer().save(path, {'params': {'w': KERNEL}})}, 'orbax', ''),
  ],
)
@pytest.mark.filterwarnings('ignore::UserWarning')
def test_a_folder_is_read_by_the_file_that_is_its_weights(tmp_path, monkeypatch, files, format, chosen):
  monkeypatch.setenv('HOME', str(tmp_path.parent))
  for name, write in files.items():
    write(tmp_path / name)
  found = readers.read(f'~/{tmp_path.name}')
  assert found.format == format and found.file == os.path.join('~', tmp_path.name, *filter(None, [chosen]))
  np.testing.assert_array_equal(next(iter(found.values())), KERNEL)


def test_folders_without_weights_or_with_too_many_are_refused(tmp_path):
  (tmp_path / 'readme.txt').write_text('x')
  with pytest.raises(UserError, match=r'no weights of a known format \(PyTorch, safetensors'):
    readers.read(tmp_path)


@pytest.mark.parametrize(
  'files, listed',
  [
    ({'a.npz': _npz, 'b.npz': _npz}, ['a.npz', 'b.npz']),
    # One of them must not be read as if the others were not there, whatever its format.
    ({'resnet20.th': _torch, 'x.safetensors': _safetensors}, ['resnet20.th', 'x.safetensors']),
    ({'x.safetensors': _safetensors, 'x.h5': _hdf5, 'x.npz': _npz}, ['x.h5', 'x.npz', 'x.safetensors']),
    ({'checkpoint_9': _npz, 'checkpoint_10': _npz, 'a.npz': _npz}, ['a.npz', 'checkpoint_10']),
    ({f'x-{number}-of-2.safetensors': _safetensors for number in (1, 2)}, [f'x-{n}-of-2.safetensors' for n in (1, 2)]),
    (
      {'x.bin.index.json': _text, 'x-1-of-2.bin': _torch, 'x-2-of-2.bin': _torch, 'y.npz': _npz},
      ['x.bin.index.json', 'y.npz'],
    ),
    ({'m.weights.json': _text, 'm_00000.weights.h5': _hdf5, 'm.h5': _hdf5}, ['m.h5', 'm.weights.json']),
  ],
)
def test_a_folder_of_several_files_of_weights_asks_for_one(tmp_path, files, listed):
  for name, write in files.items():
    write(tmp_path / name)
  with pytest.raises(UserError) as error:
    readers.read(tmp_path)
  assert str(error.value) == f'{tmp_path} holds several files of weights; name one of them: {", ".join(listed)}'


@pytest.mark.parametrize('named', ['', 'pytorch_model.bin.index.json', 'pytorch_model-00002-of-00002.bin'])
def test_shards_of_pytorch_are_read_by_their_index(tmp_path, named):
  torch = pytest.importorskip('torch')
  # The second shard alone would lose its prefix; all of them together do not share it.
  shards = [{'head.weight': torch.ones(2), 'model.a.weight': torch.zeros(3)}, {'model.b.weight': torch.ones(4)}]
  where = {}
  for number, arrays in enumerate(shards, 1):
    torch.save(arrays, tmp_path / f'pytorch_model-0000{number}-of-00002.bin')
    where |= dict.fromkeys(arrays, f'pytorch_model-0000{number}-of-00002.bin')
  (tmp_path / 'pytorch_model.bin.index.json').write_text(json.dumps({'metadata': {}, 'weight_map': where}))
  found = readers.read(tmp_path / named)
  assert {name: array.shape for name, array in found.items()} == {
    n: tuple(t.shape) for s in shards for n, t in s.items()
  }
  assert found.format == 'PyTorch, 2 shards' and found.notes == ()
  assert found.file == str(tmp_path / (named or 'pytorch_model.bin.index.json'))
  (tmp_path / 'pytorch_model-00001-of-00002.bin').unlink()
  with pytest.raises(
    UserError, match=r'shard pytorch_model-00001-of-00002\.bin is missing; it would hold 2 of 3 tensors'
  ):
    readers.read(tmp_path / named)


def test_a_shard_without_its_index_is_noted(tmp_path):
  _safetensors(tmp_path / 'model-00001-of-00003.safetensors')
  found = readers.read(tmp_path / 'model-00001-of-00003.safetensors')
  assert found.notes == ('one shard of 3, read alone: no index lies beside it',)


# ------------------------------------------------------------------------------------------- what is no weights at all
def _zipped(names):
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w') as archive:
    for name in names:
      archive.writestr(name, 'x')
  return file.getvalue()


def _bare(array):
  file = io.BytesIO()
  np.save(file, array)
  return file.getvalue()


@pytest.mark.parametrize(
  'content, message',
  [
    (b'', 'is empty'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:1', 'a pointer of git-lfs, and the weights were not fet'),
    (b'<!DOCTYPE html><html><body>404', 'it is a web page'),
    (b'\n <html lang="en">', 'it is a web page'),
    (b'{"architectures": ["ResNet"]}', """it is text, beginning '{"architectures"""),
    ('Größe: 3\n'.encode() * 100, "it is text, beginning 'Größe"),
    (bytes(range(256)), f'is a file of no known format; {FORMATS}'),
    (_bare(KERNEL), 'it is one bare NumPy array'),
    (b'\x1f\x8b\x08' + bytes(20), 'compressed with gzip'),
    (b'GGUF' + bytes(20), 'GGUF'),
    (b'name' + bytes(253) + b'ustar' + bytes(300), 'it is a tar archive'),
    (pickle.dumps({'a': 1}), 'no known format'),
    (_zipped(['a.txt', 'b.csv']), r'a zip archive of no known format; it holds a\.txt, b\.csv; read are'),
    (_zipped([]), 'a zip archive of no known format; it holds nothing'),
    (_zipped(['a.npy'])[:60], r'a zip archive \(PyTorch, npz or Keras\) that is damaged or cut short'),
  ],
  ids=lambda value: None if isinstance(value, str) else 'content',  # an archive holds the time: no name for a test
)
def test_files_of_no_known_format_are_told_what_they_are(tmp_path, content, message):
  (tmp_path / 'weights.pth').write_bytes(content)
  with pytest.raises(UserError, match=rf'weights\.pth.*{message}'):
    readers.read(tmp_path / 'weights.pth')


def test_missing_files_name_their_nearest_neighbours(tmp_path):
  for name in ('resnet20.th', 'vgg16.pth'):
    (tmp_path / name).write_bytes(b'x')
  with pytest.raises(UserError, match=rf"no file '{tmp_path}/resnet2\.th'; nearest in '{tmp_path}': resnet20\.th"):
    readers.read(tmp_path / 'resnet2.th')
  with pytest.raises(UserError, match=rf"no file '{tmp_path}/a/b': there is no folder '{tmp_path}/a'"):
    readers.read(tmp_path / 'a' / 'b')
  for name in ('x' * 5000, 'a\0b', '~nobody-here/x'):
    with pytest.raises(UserError):
      readers.read(name)


@pytest.mark.parametrize('format', WRITERS)
def test_a_file_that_was_cut_anywhere_is_one_message_that_names_it(tmp_path, format):
  path = tmp_path / 'weights'
  WRITERS[format](path)
  whole = path.read_bytes()
  assert len(dict(readers.read(path))) == 1
  for size in {*range(0, len(whole), max(1, len(whole) // 60)), len(whole) - 1}:
    path.write_bytes(whole[:size])
    with pytest.raises(UserError, match='weights'):
      dict(readers.read(path))


@pytest.mark.parametrize('format', WRITERS)
def test_flipped_bytes_are_never_another_error(tmp_path, format):
  path = tmp_path / 'weights'
  WRITERS[format](path)
  whole = path.read_bytes()
  for place in range(0, len(whole), max(1, len(whole) // 150)):
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
    try:
      dict(readers.read(path))
    except UserError as error:
      assert 'weights' in str(error)


def test_the_published_files_are_read():
  folder = os.environ.get('TRANSFERLAB_TEST_DATA')
  if not folder:
    pytest.skip('TRANSFERLAB_TEST_DATA is not set')
  place = Path(folder) / 'weights'
  squeezenet = readers.read(place / 'squeezenet_v1_1_notop.h5')
  # Counts as published: 25 convolutions with biases.
  assert len(squeezenet) == 50 and sum(array.size for array in squeezenet.values()) == 722_496
  assert readers.read(place / 'cifar10_resnet20.th')['conv1.weight'].shape == (16, 3, 3, 3)
  assert readers.read(place / 'mobilenet_v1_025_224.safetensors').format == 'safetensors'


def test_reading_imports_neither_torch_nor_tensorflow_nor_keras_nor_jax(tmp_path):
  for format in ('safetensors', 'npz', 'Flax msgpack', 'PyTorch', 'Keras'):
    WRITERS[format](tmp_path / format)
  program = f"""
import sys
from transferlab.weights import readers
for format in {sorted(set(WRITERS) - {'legacy'})!r}:
  dict(readers.read({str(tmp_path)!r} + '/' + format))
print([name for name in ('torch', 'tensorflow', 'keras', 'jax', 'safetensors') if name in sys.modules])
"""
  environment = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[2])}
  assert subprocess.check_output([sys.executable, '-c', program], env=environment, text=True) == '[]\n'
