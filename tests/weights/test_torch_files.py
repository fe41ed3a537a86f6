"""The PyTorch reader beside torch itself: every format, dtype, stride and way to nest; and files that mean harm."""

import collections
import copy
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from transferlab.errors import UserError
from transferlab.weights import torch_files, torch_parts

torch = pytest.importorskip('torch')
FORMATS = pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])


def _save(value, path, zipped=True, **options):
  torch.save(value, path, _use_new_zipfile_serialization=zipped, **options)
  return path


def _bits(tensor):
  """A torch tensor's bytes, in C order, whatever its dtype."""
  tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
  return (tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else np.empty(0, np.uint8)).tobytes()


def _equal(contents, expected):
  """Names, order, shapes, dtypes and every bit are those of torch tensors."""
  assert list(contents) == list(expected)
  for name, tensor in expected.items():
    entry, value = contents.tensors[name], contents[name]
    assert entry.shape == value.shape == tuple(tensor.shape), name
    assert entry.dtype == value.dtype and str(value.dtype) == str(tensor.dtype).removeprefix('torch.'), name
    assert value.flags.c_contiguous and value.flags.writeable, name
    assert value.tobytes() == _bits(tensor), name


def _state():
  return {'conv.weight': torch.randn(4, 3, 3, 3), 'conv.bias': torch.randn(4), 'steps': torch.tensor(7)}


# Formats, dtypes, strides


def _of_dtype(dtype):
  values = torch.arange(24).reshape(2, 3, 4) % 5
  return (values + 0.5 if dtype.is_floating_point or dtype.is_complex else values).to(dtype)


NAMES = (
  *('float64', 'float32', 'float16', 'bfloat16', 'int64', 'int32', 'int16', 'int8', 'uint8', 'bool'),
  *('complex64', 'complex128', 'uint16', 'uint32', 'uint64', 'float8_e4m3fn', 'float8_e5m2', 'float8_e4m3fnuz'),
  *('float8_e5m2fnuz', 'float8_e8m0fnu'),
)


@FORMATS
@pytest.mark.parametrize('name', NAMES)
def test_every_dtype_is_read_bit_by_bit(tmp_path, name, zipped):
  state = {'w': _of_dtype(getattr(torch, name)), 'scalar': _of_dtype(getattr(torch, name))[1, 1, 1].clone()}
  _equal(torch_files.read(_save(state, tmp_path / 'a.pt', zipped)), state)


def _views():
  base = torch.randn(6, 8)
  images = torch.randn(2, 3, 4, 5)
  drawn = lambda: torch.randn(3, 4, dtype=torch.complex64)
  return {
    'transposed': base.T,
    'row': base[2],
    'column': base[:, 3],
    'every second': base[1::2, ::3],
    'block': base[2:4, 5:],
    'expanded': torch.randn(1, 4).expand(5, 4),
    'expanded number': torch.tensor(3.0).expand(2, 2),
    'channels last': images.to(memory_format=torch.channels_last),
    'permuted': images.permute(3, 1, 0, 2),
    'number': torch.tensor(2.5),
    'of the middle': base[3, 3],
    'empty': torch.empty(0),
    'empty in the middle': torch.empty(3, 0, 2),
    'strange stride': torch.randn(4).as_strided((1, 4), (99, 1)),
    'overlapping': torch.arange(6.0).as_strided((4, 3), (1, 1)),
    'conjugated': drawn().conj(),
    'negated': drawn().conj().imag,
    'base': base,
  }


@FORMATS
def test_every_stride_and_offset_and_shared_storage_is_read(tmp_path, zipped):
  views = _views()
  _equal(torch_files.read(_save(views, tmp_path / 'a.pt', zipped)), views)


@FORMATS
@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_every_protocol_of_pickle_is_read(tmp_path, zipped, protocol):
  state = {**_state(), 'param': torch.nn.Parameter(torch.randn(3))}
  _equal(torch_files.read(_save(state, tmp_path / 'a.pt', zipped, pickle_protocol=protocol)), state)


class Sub(torch.Tensor):
  pass


@FORMATS
def test_parameters_buffers_and_subclasses_are_tensors(tmp_path, zipped):
  plain = torch.nn.Parameter(torch.randn(2, 3), requires_grad=False)
  tagged = torch.nn.Parameter(torch.randn(3))
  tagged.tag = 'attribute'
  attributed = torch.randn(4)
  attributed.tag = 'attribute'
  state = {
    'plain': plain,
    'tagged': tagged,
    'attributed': attributed,
    'buffer': torch.nn.Buffer(torch.randn(2)),
    'sub': torch.randn(5).as_subclass(Sub),
    'sub parameter': torch.nn.Parameter(torch.randn(5).as_subclass(Sub)),
  }
  _equal(torch_files.read(_save(state, tmp_path / 'a.pt', zipped)), state)


def test_the_same_tensor_under_two_names_is_listed_under_both(tmp_path):
  tied = torch.randn(3, 2)
  state = {'embed.weight': tied, 'head.weight': tied, 'bias': torch.randn(2)}
  _equal(torch_files.read(_save(state, tmp_path / 'a.pt')), state)


def _rewritten(source, target, change, compression=zipfile.ZIP_STORED):
  """A zip archive whose entries are `change(name, data)`; None leaves an entry out."""
  with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, 'w', compression) as new:
    for name in old.namelist():
      if (data := change(name, old.read(name))) is not None:
        new.writestr(name, data)
  return target


def test_a_deflated_archive_of_another_folder_name_is_read(tmp_path):
  views = _views()
  path = _save(views, tmp_path / 'a.pt')
  with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / 'b.pt', 'w', zipfile.ZIP_DEFLATED) as new:
    for name in old.namelist():
      new.writestr(name.replace('archive/', 'my model/').replace('a/', 'my model/', 1), old.read(name))
  _equal(torch_files.read(tmp_path / 'b.pt'), views)


def test_big_endian_archives_are_turned(tmp_path):
  state = {name: _of_dtype(getattr(torch, name)) for name in NAMES}
  path = _save(state, tmp_path / 'a.pt')
  sizes = {str(place): tensor for place, tensor in enumerate(state.values())}

  def turned(name, data):
    folder, _, key = name.rpartition('/')
    if name.endswith('byteorder'):
      return b'big'
    if not folder.endswith('/data'):
      return data
    size = sizes[key].element_size() // (2 if sizes[key].is_complex() else 1)
    return np.frombuffer(data, f'u{size}').byteswap().tobytes()

  _equal(torch_files.read(_rewritten(path, tmp_path / 'b.pt', turned)), state)


def test_an_archive_without_a_byte_order_is_little_endian(tmp_path):
  state = _state()
  path = _save(state, tmp_path / 'a.pt')
  leave_out = lambda name, data: None if name.endswith('byteorder') else data
  _equal(torch_files.read(_rewritten(path, tmp_path / 'b.pt', leave_out)), state)


def test_an_archive_without_checksums_is_read(tmp_path):
  if not hasattr(torch.serialization, 'set_crc32_options'):
    pytest.skip('this torch always writes them')
  state = _state()
  torch.serialization.set_crc32_options(False)
  try:
    path = _save(state, tmp_path / 'a.pt')
  finally:
    torch.serialization.set_crc32_options(True)
  _equal(torch_files.read(path), state)


def _by_hand(path, storages, root, system=None):
  """A legacy file written without torch.save: {key: (bytes, element size)}, and the pickled object's opcodes."""
  with open(path, 'wb') as file:
    for value in (0x1950A86A20F9469CFC6C, 1001, system or {'protocol_version': 1001, 'little_endian': True}):
      pickle.dump(value, file, 2)
    file.write(root)
    pickle.dump(list(storages), file, 2)
    for data, size in storages.values():
      file.write(struct.pack('<q', len(data) // size) + data)
  return path


def _tensor_code(key, shape, stride, offset=0, storage='FloatStorage', count=6, view=b'N', function='_rebuild_tensor'):
  """The opcodes of a tensor, written by hand as the first versions of torch wrote them."""
  integers = lambda values: b'(' + b''.join(b'I%d\n' % value for value in values) + b't'
  code = f'((Vstorage\nctorch\n{storage}\nV{key}\nVcpu\nI{count}\n'.encode() + view + b'tQ'
  tail = b'I%d\n' % offset + integers(shape) + integers(stride) + b't'
  return f'ctorch._utils\n{function}\n'.encode() + code + tail + b'R'


def test_a_file_of_a_big_endian_machine_is_little_endian_in_the_legacy_format(tmp_path):
  values = np.arange(6, dtype='<f4')
  code = b'}Vw\n' + _tensor_code('7', (2, 3), (3, 1)) + b's.'
  path = _by_hand(tmp_path / 'a.pt', {'7': (values.tobytes(), 4)}, code, {'little_endian': False})
  found = torch_files.read(path)
  np.testing.assert_array_equal(found['w'], values.reshape(2, 3))
  np.testing.assert_array_equal(found['w'], torch.load(path, weights_only=False)['w'].numpy())


def test_storages_that_are_views_of_others_are_read_from_their_place(tmp_path):
  values = np.arange(10, dtype='<f4')
  view = b'(Vviewkey\nI4\nI6\nt'
  code = b'}Vw\n' + _tensor_code('7', (2, 2), (2, 1), offset=1, count=10, view=view) + b's.'
  path = _by_hand(tmp_path / 'a.pt', {'7': (values.tobytes(), 4)}, code)
  found = torch_files.read(path)
  np.testing.assert_array_equal(found['w'], [[5, 6], [7, 8]])
  np.testing.assert_array_equal(found['w'], torch.load(path, weights_only=False)['w'].numpy())


# NumPy inside


@FORMATS
@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_arrays_and_numbers_of_numpy_are_tensors(tmp_path, zipped, protocol):
  random = np.random.default_rng(0)
  arrays = {
    'float': random.normal(size=(2, 3)).astype(np.float32),
    'fortran': np.asfortranarray(random.normal(size=(3, 4))),
    'big': np.arange(4, dtype='>i4'),
    'strided': np.arange(10)[::3],
    'bytes': np.arange(256, dtype=np.uint8),
    'complex': np.array([1 + 2j]),
    'bool': np.array([True, False]),
    'zero': np.array(2.5),
    'empty': np.zeros((0, 2)),
    'scalar': np.float32(1.5),
    'integer': np.int64(-3),
  }
  strange = {'text': np.array(['a', 'b']), 'object': np.array([None, 1]), 'time': np.array(['2020'], 'datetime64[D]')}
  path = _save({**arrays, **strange, 'torch': torch.ones(2)}, tmp_path / 'a.pt', zipped, pickle_protocol=protocol)
  found = torch_files.read(path)
  assert list(found) == [*arrays, 'torch']
  for name, array in arrays.items():
    assert found.tensors[name].shape == array.shape and found[name].flags.writeable
    assert found[name].dtype == found.tensors[name].dtype == array.dtype.newbyteorder('=')
    np.testing.assert_array_equal(found[name], array)


def test_arrays_by_the_names_of_older_numpy_are_tensors(tmp_path):
  path = _save({'a': np.arange(3.0), 's': np.float64(2), 't': torch.ones(1)}, tmp_path / 'a.pt')
  older = lambda name, data: data.replace(b'numpy._core', b'numpy.core') if name.endswith('data.pkl') else data
  found = torch_files.read(_rewritten(path, tmp_path / 'b.pt', older))
  np.testing.assert_array_equal(found['a'], [0, 1, 2])
  assert found['s'] == 2


# Which part


OPTIMIZER = {
  'state': {0: {'momentum_buffer': torch.ones(3)}, 1: {'momentum_buffer': torch.ones(2)}},
  'param_groups': [],
}


def test_the_networks_own_weights_are_chosen_beside_optimizer_and_average(tmp_path):
  state, average = _state(), _state()
  saved = {
    'epoch': 199,
    'best_prec1': 91.78,
    'arch': 'resnet',
    'mean': (0.5, 0.4, 0.3),
    'args': {'lr': 1},
    'nothing': None,
    'accuracy': np.float64(0.9),
    'loss': torch.tensor(0.1),
    'ema': average,
    'state_dict': state,
    'optimizer': OPTIMIZER,
  }
  path = _save(saved, tmp_path / 'a.pt')
  found = torch_files.read(path)
  _equal(found, state)
  assert found.part == 'state_dict'
  assert found.others == {'loss': 1, 'ema': 3, 'optimizer': 2}
  assert found.metadata == {
    'epoch': 199, 'best_prec1': 91.78, 'arch': 'resnet', 'mean': [0.5, 0.4, 0.3], 'accuracy': 0.9,
  }  # fmt: skip
  ema = torch_files.read(path, 'ema')
  _equal(ema, average)
  assert ema.part == 'ema' and ema.others == {'loss': 1, 'state_dict': 3, 'optimizer': 2}
  optimizer = torch_files.read(path, 'optimizer')
  assert list(optimizer) == ['state.0.momentum_buffer', 'state.1.momentum_buffer']


@pytest.mark.parametrize('name', torch_parts.PREFERRED)
def test_every_usual_entry_is_found(tmp_path, name):
  state = _state()
  found = torch_files.read(_save({name: state, 'optimizer': OPTIMIZER, 'step': 3}, tmp_path / 'a.pt'))
  _equal(found, state)
  assert (found.part, found.others) == (name, {'optimizer': 2})


def test_nested_again_works_by_default_and_by_name(tmp_path):
  state, average = _state(), _state()
  path = _save({'model': {'state_dict': state, 'ema': average, 'optimizer': OPTIMIZER}}, tmp_path / 'a.pt')
  found = torch_files.read(path)
  _equal(found, state)
  assert (found.part, found.others) == ('model.state_dict', {'model.ema': 3, 'model.optimizer': 2})
  _equal(torch_files.read(path, 'model.ema'), average)
  assert torch_files.read(path, 'model').part == 'model.state_dict'


def test_an_unknown_part_names_the_nearest(tmp_path):
  path = _save({'model': _state(), 'model_ema': _state(), 'epoch': 1}, tmp_path / 'a.pt')
  with pytest.raises(UserError, match=r"a\.pt: unknown part 'model_emma'; nearest: model_ema"):
    torch_files.read(path, 'model_emma')
  with pytest.raises(UserError, match=r"a\.pt: part 'epoch' is no container of tensors; there are: model, model_ema"):
    torch_files.read(path, 'epoch')
  with pytest.raises(UserError, match=r'a\.pt: unknown part'):
    torch_files.read(_save(_state(), tmp_path / 'a.pt'), 'ema')


def test_several_unknown_entries_are_not_guessed_at(tmp_path):
  path = _save({'gen': _state(), 'disc': _state(), 'optimizer': OPTIMIZER}, tmp_path / 'a.pt')
  with pytest.raises(UserError, match=r'a\.pt: .*gen \(3\), disc \(3\), optimizer \(2\).*give part'):
    torch_files.read(path)
  assert len(torch_files.read(path, 'disc')) == 3
  with pytest.raises(UserError, match='give part'):
    torch_files.read(_save({'optimizer': OPTIMIZER}, tmp_path / 'b.pt'))
  only = torch_files.read(
    _save({'gen': _state(), 'optimizer': OPTIMIZER, 'loss_so_far': torch.tensor(0.1)}, tmp_path / 'c.pt')
  )
  assert (only.part, len(only), only.others) == ('gen', 3, {'optimizer': 2, 'loss_so_far': 1})


def test_weights_in_a_tree_below_a_known_entry_are_all_taken(tmp_path):
  path = _save({'model': {'encoder': {'w': torch.ones(2)}, 'model': {'w': torch.ones(3)}}}, tmp_path / 'a.pt')
  assert list(torch_files.read(path)) == ['encoder.w', 'model.w'] and torch_files.read(path).part == 'model'


def test_an_optimizer_beside_bare_weights_is_left_out(tmp_path):
  found = torch_files.read(_save({**_state(), 'optimizer': OPTIMIZER, 'epoch': 3}, tmp_path / 'a.pt'))
  assert list(found) == list(_state()) and found.others == {'optimizer': 2} and found.part is None
  assert found.metadata == {'epoch': 3}


def test_lists_and_single_tensors_are_numbered_and_named(tmp_path):
  assert list(torch_files.read(_save([torch.ones(2), torch.ones(3)], tmp_path / 'a.pt'))) == ['0', '1']
  assert list(torch_files.read(_save(torch.ones(2), tmp_path / 'b.pt'))) == ['tensor']
  path = _save((_state(), OPTIMIZER), tmp_path / 'c.pt')
  assert list(torch_files.read(path, '0')) == list(_state())


def test_keys_that_are_no_text_are_named_all_the_same(tmp_path):
  keys = [3, b'bytes', 1.5, (1, 2), None]
  path = _save({key: torch.ones(2) for key in keys}, tmp_path / 'a.pt', pickle_protocol=3)
  assert list(torch_files.read(path)) == ['3', 'bytes', '1.5', '?3', '?4']


def test_two_tensors_of_one_name_are_refused(tmp_path):
  path = _save({'a.b': torch.ones(2), 'a': {'b': torch.ones(3)}}, tmp_path / 'a.pt')
  with pytest.raises(UserError, match=r"a\.pt: two tensors have the name 'a\.b'"):
    torch_files.read(path)


@pytest.mark.parametrize(
  'prefix', ['module.', '_orig_mod.', 'model.', 'net.', 'state_dict.', 'module.model._orig_mod.']
)
def test_prefixes_that_all_names_share_are_taken_off(tmp_path, prefix):
  state = _state()
  found = torch_files.read(_save({prefix + name: tensor for name, tensor in state.items()}, tmp_path / 'a.pt'))
  _equal(found, state)
  assert set(found.notes[0].removeprefix('taken off the names: ').split(', ')) == set(prefix[:-1].split('.'))


def test_prefixes_that_some_names_lack_stay(tmp_path):
  state = {'model.weight': torch.ones(2), 'head.weight': torch.ones(2)}
  found = torch_files.read(_save(state, tmp_path / 'a.pt'))
  _equal(found, state)
  assert found.notes == ()


# Whole modules


class Block(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.conv = torch.nn.Conv2d(3, 4, 3, bias=False)
    self.norm = torch.nn.BatchNorm2d(4)
    self.scale = torch.nn.Parameter(torch.randn(4))
    self.register_buffer('mask', torch.ones(2))
    self.register_buffer('scratch', torch.ones(5), persistent=False)
    self.register_parameter('nothing', None)
    self.loose = torch.ones(9)
    self.parts = torch.nn.ModuleList([torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)])
    self.more = torch.nn.ParameterDict({'a': torch.nn.Parameter(torch.ones(1, 2))})
    self.config = {'layers': [1, 2], 'name': 'block'}


def _modules():
  torch.manual_seed(0)
  shared = torch.nn.Linear(3, 3)
  return {
    'sequential': torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)),
    'own class': Block(),
    'nested': torch.nn.Sequential(collections.OrderedDict(first=Block(), second=torch.nn.Sequential(Block()))),
    'shared': torch.nn.Sequential(shared, torch.nn.Tanh(), shared),
    'lstm': torch.nn.LSTM(3, 4, num_layers=2),
    'attention': torch.nn.MultiheadAttention(4, 2),
    'tied': _tied(),
  }


def _tied():
  model = torch.nn.ModuleDict({'embed': torch.nn.Embedding(5, 3), 'out': torch.nn.Linear(3, 5)})
  model['out'].weight = model['embed'].weight
  return model


MODULES = ('sequential', 'own class', 'nested', 'shared', 'lstm', 'attention', 'tied')


@FORMATS
@pytest.mark.parametrize('name', MODULES)
@pytest.mark.filterwarnings('ignore')
def test_a_whole_module_gives_its_state_dict(tmp_path, name, zipped):
  module = _modules()[name]
  _equal(torch_files.read(_save(module, tmp_path / 'a.pt', zipped)), module.state_dict())
  found = torch_files.read(
    _save({'epoch': 3, 'ema': copy.deepcopy(module), 'model': module}, tmp_path / 'b.pt', zipped)
  )
  _equal(found, module.state_dict())
  assert (found.part, found.metadata) == ('model', {'epoch': 3})


def test_data_parallel_and_averaged_models_lose_their_wrapper(tmp_path):
  module = _modules()['sequential']
  parallel = torch.nn.DataParallel(module)
  _equal(torch_files.read(_save(parallel.state_dict(), tmp_path / 'a.pt')), module.state_dict())
  _equal(torch_files.read(_save(parallel, tmp_path / 'b.pt')), module.state_dict())
  averaged = torch.optim.swa_utils.AveragedModel(module)
  found = torch_files.read(_save(averaged.state_dict(), tmp_path / 'c.pt'))
  _equal(found, {'n_averaged': averaged.n_averaged, **module.state_dict()})


class Plain:
  def __init__(self):
    self.first, self.inner, self.number = torch.ones(2), {'deep': [torch.ones(3)]}, 5


class Slotted:
  __slots__ = ('weight',)

  def __init__(self):
    self.weight = torch.ones(4)


def test_tensors_of_other_objects_are_listed_under_attribute_names(tmp_path):
  found = torch_files.read(_save(Plain(), tmp_path / 'a.pt'))
  assert {name: tensor.shape for name, tensor in found.tensors.items()} == {'first': (2,), 'inner.deep.0': (3,)}
  found = torch_files.read(_save({'model': Slotted()}, tmp_path / 'b.pt'))
  assert {name: tensor.shape for name, tensor in found.tensors.items()} == {'weight': (4,)}


@pytest.mark.filterwarnings('ignore')
def test_torchscript_gives_its_state_dict(tmp_path):
  module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)).eval()
  torch.jit.trace(module, torch.ones(1, 1, 5, 5)).save(tmp_path / 'a.pt')
  found = torch_files.read(tmp_path / 'a.pt')
  assert set(found) == set(module.state_dict())
  for name, tensor in module.state_dict().items():
    np.testing.assert_array_equal(found[name], tensor.numpy())


def test_a_quantised_tensor_is_left_out_with_a_note(tmp_path):
  quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
  found = torch_files.read(_save({'w': torch.ones(2), 'q': quantised}, tmp_path / 'a.pt'))
  assert list(found) == ['w']
  assert found.notes == ('left out, and not run: q (torch._utils._rebuild_qtensor)',)


def test_the_published_resnet_is_read():
  data_folder = os.environ.get('TRANSFERLAB_TEST_DATA')
  if data_folder is None:
    pytest.skip('TRANSFERLAB_TEST_DATA is not set')
  path = Path(data_folder) / 'weights' / 'cifar10_resnet20.th'
  found = torch_files.read(path)
  saved = torch.load(path, map_location='cpu', weights_only=True)
  _equal(found, {name.removeprefix('module.'): tensor for name, tensor in saved['state_dict'].items()})
  assert (found.part, found.others, found.metadata) == ('state_dict', {}, {'best_prec1': saved['best_prec1']})


# What is no such file


@FORMATS
def test_is_torch_and_recognises_tell_by_content(tmp_path, zipped):
  path = _save(_state(), tmp_path / 'a.bin', zipped)
  assert torch_files.is_torch(path)
  assert torch_files.recognises(path.read_bytes()[:64]) is not zipped
  for protocol in (0, 1, 4, 5):
    assert torch_files.recognises(_save({}, tmp_path / 'b', False, pickle_protocol=protocol).read_bytes()[:64])
  np.savez(tmp_path / 'c.npz', a=np.ones(2))
  (tmp_path / 'd').write_bytes(b'')
  (tmp_path / 'e').write_bytes(b'PK\x03\x04')
  (tmp_path / 'f').write_bytes(pickle.dumps({}))
  assert not any(torch_files.is_torch(tmp_path / name) for name in ('c.npz', 'd', 'e', 'f', 'missing'))


WRONG = {
  'empty': (b'', 'is empty'),
  'text': (b'<!DOCTYPE html>', 'is no file of PyTorch'),
  'plain pickle': (pickle.dumps({'a': np.ones(2)}), 'a pickle, but not of torch.save'),
  'zip': (b'PK\x03\x04 and nothing', 'is damaged, cut short, or no file'),
  'tar': (b'\0' * 257 + b'ustar  \0' + b'\0' * 300, r'before 0\.1\.10'),
}


@pytest.mark.parametrize('name', WRONG)
def test_other_files_are_refused_by_name(tmp_path, name):
  data, message = WRONG[name]
  (tmp_path / 'a.pt').write_bytes(data)
  with pytest.raises(UserError, match=rf'a\.pt.*{message}'):
    torch_files.read(tmp_path / 'a.pt')


def test_a_missing_file_a_folder_and_another_archive_are_refused(tmp_path):
  np.savez(tmp_path / 'c.npz', a=np.ones(2))
  for name, message in (('missing.pt', 'cannot be read'), ('', 'cannot be read'), ('c.npz', 'without data.pkl')):
    with pytest.raises(UserError, match=message):
      torch_files.read(tmp_path / name)


@pytest.mark.parametrize('value', [{}, [], {'a': 1, 'b': [{'c': 'text'}]}, 5, 'text', None, torch.nn.ReLU()])
@pytest.mark.filterwarnings('ignore')
def test_a_file_without_tensors_says_so(tmp_path, value):
  with pytest.raises(UserError, match=r'a\.pt: holds no tensors'):
    torch_files.read(_save(value, tmp_path / 'a.pt'))


def test_a_missing_storage_is_named(tmp_path):
  path = _save(_state(), tmp_path / 'a.pt')
  lost = _rewritten(path, tmp_path / 'b.pt', lambda name, data: None if name.endswith('data/1') else data)
  with pytest.raises(UserError, match=r"b\.pt: tensor 'conv\.bias': its storage '1' is missing"):
    torch_files.read(lost)
  short = _rewritten(path, tmp_path / 'c.pt', lambda name, data: data[:-4] if name.endswith('data/1') else data)
  with pytest.raises(UserError, match=r"c\.pt: tensor 'conv\.bias': 4 elements of float32"):
    torch_files.read(short)


def _read_all(path):
  return {name: array.tobytes() for name, array in torch_files.read(path).items()}


@FORMATS
def test_a_file_cut_anywhere_is_refused(tmp_path, zipped):
  whole = _save({'w': torch.arange(40.0), 'b': np.ones(3)}, tmp_path / 'a.pt', zipped).read_bytes()
  for end in [*range(0, len(whole), 7), *range(len(whole) - 40, len(whole))]:
    (tmp_path / 'cut.pt').write_bytes(whole[:end])
    with pytest.raises(UserError, match=r'cut\.pt'):
      _read_all(tmp_path / 'cut.pt')


@pytest.mark.parametrize('compression', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_changed_byte_of_a_zip_archive_is_refused_or_without_effect(tmp_path, compression):
  path = _save({'w': torch.arange(40.0), 'b': torch.ones(3)}, tmp_path / 'a.pt')
  path = _rewritten(path, tmp_path / 'b.pt', lambda name, data: data, compression)
  whole, expected = path.read_bytes(), _read_all(path)
  random, refused = np.random.default_rng(0), 0
  for _ in range(200):
    changed = bytearray(whole)
    changed[random.integers(len(whole))] ^= 1 << random.integers(8)
    path.write_bytes(changed)
    try:
      assert _read_all(path) == expected
    except UserError as error:
      refused += 'b.pt' in str(error)
  assert refused > 50


def test_a_changed_byte_of_a_legacy_file_is_refused_or_read(tmp_path):
  path = _save({'w': torch.arange(4.0), 'b': np.ones(3), 'c': {'d': torch.ones(1).double()}}, tmp_path / 'a.pt', False)
  whole, random = path.read_bytes(), np.random.default_rng(0)
  for _ in range(400):
    changed = bytearray(whole)
    for place in random.integers(0, len(whole), random.integers(1, 4)):
      changed[place] = random.integers(0, 256)
    path.write_bytes(changed)
    try:
      _read_all(path)
    except UserError as error:
      assert 'a.pt' in str(error)


# Files that mean harm


GOOD = _tensor_code('0', (2, 3), (3, 1))


def _refused(tmp_path, code, message):
  path = _by_hand(tmp_path / 'a.pt', {'0': (np.arange(6, dtype='<f4').tobytes(), 4)}, b'}Vgood\n' + GOOD + b's' + code)
  with pytest.raises(UserError, match=rf'a\.pt: {message}'):
    torch_files.read(path)


BAD_TENSORS = {
  'endless by stride 0': ((10**15,), (0,), 0, 'shows 1 stored elements'),
  'endless by many axes': ((10**5,) * 60, (0,) * 60, 0, 'shows 1 stored elements'),
  'beyond the storage': ((2, 4), (4, 1), 0, 'do not lie in its storage'),
  'offset beyond': ((2, 3), (3, 1), 1, 'do not lie in its storage'),
  'stride beyond': ((2, 3), (2**62, 1), 0, 'do not lie in its storage'),
  'negative size': ((-2, 3), (3, 1), 0, 'its shape'),
  'two negative sizes': ((-2, -3), (3, 1), 0, 'its shape'),
  'negative stride': ((2, 3), (3, -1), 2, 'its stride'),
  'negative offset': ((2, 3), (3, 1), -1, 'its offset'),
  'huge size': ((2**70, 3), (0, 1), 0, 'its shape'),
  'other lengths': ((2, 3), (3,), 0, 'differ in length'),
  'many axes': ((1,) * 100, (1,) * 100, 0, 'its shape'),
}


@pytest.mark.parametrize('name', BAD_TENSORS)
def test_a_tensor_that_does_not_fit_its_storage_is_named(tmp_path, name):
  shape, stride, offset, message = BAD_TENSORS[name]
  _refused(tmp_path, b'Vbad\n' + _tensor_code('0', shape, stride, offset) + b's.', f"tensor 'bad': .*{message}")


def test_strange_storages_are_refused_by_name(tmp_path):
  _refused(tmp_path, b'Vbad\n' + _tensor_code('9', (2,), (1,)) + b's.', "tensor 'bad': its storage '9' is missing")
  code = b'Vbad\nctorch._utils\n_rebuild_tensor\n(Vno storage\nI0\n(I2\nt(I1\nttRs.'
  _refused(tmp_path, code, "tensor 'bad': its storage is not described")
  code = b'Vbad\nctorch._utils\n_rebuild_tensor\n(Ptouch marker\nI0\n(I2\nt(I1\nttRs.'
  _refused(tmp_path, code, "tensor 'bad': its storage is not described")


def test_a_file_that_attacks_is_read_all_the_same(tmp_path, monkeypatch):
  called = []
  monkeypatch.setattr(os, 'system', lambda *args: called.append(args))
  monkeypatch.chdir(tmp_path)
  attack = b'cposix\nsystem\n(Vtouch marker\ntR'
  rebuilt = _tensor_code('0', (2,), (1,), function='_rebuild_tensor_v2')[:-2]
  arguments = GOOD.partition(b'_rebuild_tensor\n')[2][:-1]
  torch_type = b'ctorch._tensor\n_rebuild_from_type_v2\n('
  codes = {
    'value': b'Vattack\n' + attack + b's',
    'state': b'Vattack\n' + attack + attack + b'bs',
    'key': attack + b'I1\ns',
    'hooks': b'Vattacked\n' + rebuilt + b'I00\n' + attack + b'tRs',
    'parameter': b'Vattacked\nctorch._utils\n_rebuild_parameter_with_state\n'
    + (b'(' + GOOD + b'I01\n' + attack + b'}Vx\n' + attack + b'stRs'),
    'type': b'Vattacked\n' + torch_type + b'ctorch._utils\n_rebuild_tensor\n' + attack + arguments + b'}tRs',
    'function of a type': b'Vattack\n' + torch_type + b'cposix\nsystem\n' + attack + b'(Vtouch marker\ntNtRs',
  }
  for name, code in codes.items():
    root = b'}Vgood\n' + GOOD + b's' + code + b'.'
    path = _by_hand(tmp_path / 'a.pt', {'0': (np.arange(6, dtype='<f4').tobytes(), 4)}, root)
    found = torch_files.read(path)
    np.testing.assert_array_equal(found['good'], np.arange(6).reshape(2, 3))
    assert ('attacked' in found) == (b'attacked' in code), name
    assert any('posix.system' in note for note in found.notes) == (name in ('value', 'state')), name
  assert called == [] and not (tmp_path / 'marker').exists()


class Attack:
  def __reduce__(self):
    return os.system, ('touch marker',)


@FORMATS
def test_torch_itself_writes_what_only_it_would_run(tmp_path, zipped, monkeypatch):
  monkeypatch.chdir(tmp_path)
  _save({'w': torch.ones(2), 'attack': Attack(), 'list': [Attack(), torch.ones(3)]}, tmp_path / 'a.pt', zipped)
  found = torch_files.read(tmp_path / 'a.pt')
  assert list(found) == ['w', 'list.1'] and found['list.1'].tolist() == [1, 1, 1]
  assert not (tmp_path / 'marker').exists()
  torch.load(tmp_path / 'a.pt', weights_only=False)
  assert (tmp_path / 'marker').exists()


def _doubling(levels, last):
  """A billion laughs: every list holds the one below it twice."""
  return last + b''.join(b'p%d\n0(g%d\ng%d\nl' % (level, level, level) for level in range(levels))


def test_doubling_containers_end(tmp_path):
  path = _by_hand(
    tmp_path / 'a.pt', {'0': (b'\0' * 24, 4)}, b'}Vgood\n' + GOOD + b'sVlaughs\n' + _doubling(60, b']') + b's.'
  )
  assert list(torch_files.read(path)) == ['good']
  _refused(tmp_path, b'Vlaughs\n' + _doubling(60, GOOD) + b's.', 'is no file of weights')
  _refused(tmp_path, b'Vdeep\n' + b'(' * 3000 + GOOD + b't' * 3000 + b's.', 'is no file of weights')


def test_cycles_and_deep_lists_without_tensors_are_no_matter(tmp_path):
  cycle = b'Vcycle\n]p5\ng5\na' + GOOD + b'as'
  deep = b'Vdeep\n' + b'(' * 20_000 + b't' * 20_000 + b's'
  path = _by_hand(tmp_path / 'a.pt', {'0': (b'\0' * 24, 4)}, b'}Vgood\n' + GOOD + b's' + cycle + deep + b'.')
  assert list(torch_files.read(path)) == ['good', 'cycle.1']


def test_keys_nested_beyond_the_stack_are_refused(tmp_path):
  """To hash such a tuple would end the interpreter, so another one reads; a small stack needs fewer levels."""
  path = _by_hand(tmp_path / 'a.pt', {}, b'}Vgood\n' + GOOD + b's.')
  whole = path.read_bytes()
  path.write_bytes(whole[:-1] + b'(' * 20_000 + b't' * 20_000 + b'a.' + bytes(32))
  program = f"""if True:
    import threading
    from transferlab.errors import UserError
    from transferlab.weights import torch_files
    def read():
      try:
        torch_files.read({str(path)!r})
      except UserError as error:
        print(error)
    threading.stack_size(2**18)
    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
  """
  environment = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[2])}
  found = subprocess.run([sys.executable, '-c', program], env=environment, capture_output=True, text=True)
  assert found.returncode == 0, found.returncode
  assert 'a.pt is damaged' in found.stdout and 'the key of a storage is no text' in found.stdout


def test_an_array_in_the_pickle_that_lies_about_its_size_is_refused(tmp_path):
  path = _save({'a': np.arange(3.0), 'w': torch.ones(1)}, tmp_path / 'a.pt', pickle_protocol=4)
  path = _rewritten(
    path,
    tmp_path / 'b.pt',
    lambda name, data: data.replace(b'K\x03\x85', b'K\xff\x85') if name.endswith('pkl') else data,
  )
  with pytest.raises(UserError, match=r"b\.pt: tensor 'a': its 2040 bytes are not in the pickle"):
    torch_files.read(path)


MEMORY = """
import pathlib, sys
from transferlab.weights import torch_files
def private():
  lines = pathlib.Path('/proc/self/smaps_rollup').read_text().splitlines()
  return sum(int(line.split()[1]) for line in lines if line.startswith('Private_')) / 1024
torch_files.read(sys.argv[2])['w0']  # imports what reading imports
before = private()
contents = torch_files.read(sys.argv[1])
opened = private() - before
held, most = [], 0
for name in contents:
  held.append(contents[name])
  most = max(most, private() - before)
print(opened, most)
"""


@FORMATS
@pytest.mark.skipif(not Path('/proc/self/smaps_rollup').exists(), reason='needs /proc')
def test_reading_takes_no_more_memory_than_the_file_and_its_largest_array(tmp_path, zipped):
  state = {f'w{place}': torch.randn(2**20) for place in range(12)}
  state['w12'] = torch.randn(2**22).reshape(2048, 2048)
  path = _save(state, tmp_path / 'a.pt', zipped)
  small = _save({'w0': torch.ones(2)}, tmp_path / 'b.pt', zipped)
  run = subprocess.run(
    [sys.executable, '-c', MEMORY, path, small], capture_output=True, text=True, check=True, env={**os.environ}
  )
  opened, most = map(float, run.stdout.split())
  assert opened < 2 and most < path.stat().st_size / 2**20 + 4, (opened, most)
