"""From names to leaves: rules, what shapes alone decide, what is refused, and what stays unmapped is said."""

import json

import ml_dtypes
import numpy as np
import pytest

from transferlab import paths
from transferlab.errors import UserError
from transferlab.networks import network as networks
from transferlab.weights import layouts, mapping
from transferlab.weights.contents import Contents, Tensor

RANDOM = np.random.default_rng(0)


def contents(metadata=None, **arrays):
  """A file that holds these arrays."""
  read = {name: Tensor(a.shape, a.dtype, lambda a=a: a.copy()) for name, a in arrays.items()}
  return Contents('file.pth', 'PyTorch', read, metadata=metadata or {})


def draw(*shape, dtype=np.float32):
  return RANDOM.normal(size=shape).astype(dtype)


MLP = networks.build('mlp', {'hidden': [4]}, (3,), 2)
TORCH = {'0.weight': draw(4, 3), '0.bias': draw(4), '2.weight': draw(2, 4), '2.bias': draw(2)}
NAMES = [
  (r'0\.weight', 'layer1/linear/kernel', 'linear'),
  (r'2\.weight', 'head/kernel', 'o i -> i o'),
  (r'0\.(bias)', r'layer1/linear/\1', 'same'),
  (r'2\.(bias)', r'head/\1', 'same'),
]


def _read(mapped, kind='params'):
  return {path: np.asarray(leaf) for path, leaf in paths.flatten(mapped.variables[kind]).items()}


# ----------------------------------------------------------------------------------------------------------- layouts
@pytest.mark.parametrize(
  ('layout', 'shape', 'expected'),
  [
    ('linear', (5, 3), lambda a: a.T),
    ('conv', (6, 3, 2, 4), lambda a: np.moveaxis(a, [2, 3, 1, 0], [0, 1, 2, 3])),
    ('o (c h w) -> (h w c) o, h=2, w=3', (5, 24), lambda a: a.reshape(5, 4, 2, 3).transpose(2, 3, 1, 0).reshape(24, 5)),
    ('h w i o -> h w i o, reverse=i', (2, 2, 3, 4), lambda a: a[:, :, ::-1]),
    ('o i h w -> h w i o, reverse=i', (4, 3, 2, 2), lambda a: a.transpose(2, 3, 1, 0)[:, :, ::-1]),
    ('h w c m -> h w 1 (c m), m=2', (3, 3, 4, 2), lambda a: a.reshape(3, 3, 1, 8)),
    ('1 1 i o -> i o', (1, 1, 4, 2), lambda a: a[0, 0]),
    ('same', (3, 2), lambda a: a),
  ],
)
def test_a_layout_moves_axes_as_it_says_and_back(layout, shape, expected):
  array = draw(*shape)
  ours = layouts.ours(array, layout)
  np.testing.assert_array_equal(ours, expected(array))
  np.testing.assert_array_equal(layouts.theirs(ours, layout), array)
  assert layouts.shape(shape, layout) == ours.shape


@pytest.mark.parametrize(
  ('layout', 'shape', 'expected'),
  [
    ('o i -> i o, part=o:1/3', (6, 2), lambda a: a[2:4].T),
    ('o -> o, part=o:2/3', (6,), lambda a: a[4:]),
    ('i h s -> i (h s), h=2, part=h:1/2', (3, 4, 2), lambda a: a[:, 2:].reshape(3, 4)),
    ('1 (r c) d -> r c d, part=1:1.., r=root', (1, 10, 2), lambda a: a[0, 1:].reshape(3, 3, 2)),
    ('(r c) d -> r c d, part=0:0..6, r=2', (8, 2), lambda a: a[:6].reshape(2, 3, 2)),
  ],
)
def test_a_layout_may_take_a_part_of_an_array(layout, shape, expected):
  array = draw(*shape)
  np.testing.assert_array_equal(layouts.ours(array, layout), expected(array))
  np.testing.assert_array_equal(layouts.theirs(expected(array), layout), layouts.part(layout).of(array))


def test_rules_may_take_several_leaves_from_one_array():
  array, like = draw(8, 4), {'params': {'a': {'kernel': np.zeros((4, 4))}, 'b': {'kernel': np.zeros((4, 4))}}}
  rules = [('w', f'{layer}/kernel', f'o i -> i o, part=o:{number}/2') for number, layer in enumerate('ab')]
  found = _read(mapping.by_names(contents(w=array), rules, like))
  np.testing.assert_array_equal(np.concatenate([found['a/kernel'], found['b/kernel']], axis=1), array.T)
  with pytest.raises(UserError, match='never applies'):
    mapping.by_names(contents(w=array), [('w', 'a/kernel', 'linear'), ('w', 'b/kernel', 'linear')], like)


@pytest.mark.parametrize(
  ('layout', 'message'),
  [
    ('cnov', "unknown layout 'cnov'; nearest: conv"),
    ('o i, x -> i o', 'unknown layout'),
    ('o i h w -> h w i o', r"layout 'o i h w -> h w i o' does not fit an array of shape \(2, 3\)"),
    ('o i -> i', r'does not fit .*: Identifiers only on one side'),
    ('o i -> i o, reverse=c', r"reverse=c names no axis of 'o i': o, i"),
    ('o (i j) -> i j o, j=1, reverse=i', r'reverse=i names no axis'),
    ('o (i j) -> i j o, j=z', 'unknown layout'),
    ('o (c h) -> o c h', 'does not fit'),
    ('o i -> i o, part=c:0/2', r"part=c names no axis of 'o i': o, i"),
    ('o i -> i o, part=i:0/2', '3 cannot be divided by 2'),
    ('o i -> i o, part=o:2/2', 'the last of 2 parts is 1'),
    ('o i -> i o, part=4:0..1', 'does not fit'),
    ('o i -> i o, part=o', 'unknown layout'),
    ('o (r c) -> o r c, r=root', '3 places are no square'),
  ],
)
def test_a_layout_that_cannot_be_is_explained(layout, message):
  with pytest.raises(UserError, match=message):
    layouts.shape((2, 3), layout)


# ------------------------------------------------------------------------------------------------------------- rules
def test_three_lines_of_names_make_a_foreign_file_a_network_of_ours():
  mapped = mapping.by_names(contents(**TORCH), NAMES, MLP.shapes())
  found = _read(mapped)
  np.testing.assert_array_equal(found['layer1/linear/kernel'], TORCH['0.weight'].T)
  np.testing.assert_array_equal(found['head/kernel'], TORCH['2.weight'].T)
  np.testing.assert_array_equal(found['head/bias'], TORCH['2.bias'])
  assert mapped.unmapped == () and len(found) == 4


def test_a_line_for_each_layer_is_enough():
  lines = [('0', 'layer1/linear', 'linear'), ('2', 'head', 'linear')]
  found = _read(mapping.by_names(contents(**TORCH), lines, MLP.shapes()))
  assert set(found) == {'layer1/linear/kernel', 'layer1/linear/bias', 'head/kernel', 'head/bias'}
  for ours, theirs in (('layer1/linear/kernel', '0.weight'), ('head/kernel', '2.weight'), ('head/bias', '2.bias')):
    np.testing.assert_array_equal(found[ours], TORCH[theirs].T)


def test_a_line_for_a_layer_finds_statistics_and_one_line_may_name_many_layers():
  network = networks.build('convnet', {'width': 4, 'blocks': 2, 'batch_norm': True, 'features': 3}, (8, 8, 1), 2)
  arrays = {}
  for number, (inputs, outputs) in enumerate([(1, 4), (4, 8)], 1):
    arrays |= {f'conv{number}.weight': draw(outputs, inputs, 3, 3), f'conv{number}.bias': draw(outputs)}
    arrays |= {f'bn{number}.{part}': draw(outputs) for part in ('weight', 'bias', 'running_mean', 'running_var')}
  lines = [(r'conv(\d)', r'block\1/conv', 'conv'), (r'bn(\d)', r'block\1/norm', 'same')]
  mapped = mapping.by_names(contents(**arrays), lines, network.shapes())
  assert mapped.unmapped == () and set(_read(mapped, 'stats')) == set(paths.flatten(network.shapes()['stats']))
  np.testing.assert_array_equal(_read(mapped)['block2/norm/scale'], arrays['bn2.weight'])
  np.testing.assert_array_equal(_read(mapped, 'stats')['block1/norm/var'], arrays['bn1.running_var'])
  np.testing.assert_array_equal(_read(mapped)['block2/conv/kernel'], arrays['conv2.weight'].transpose(2, 3, 1, 0))


def test_values_are_read_when_they_are_taken_and_not_before():
  reads = []

  def read():
    reads.append(1)
    return TORCH['0.weight']

  file = Contents('x', 'PyTorch', {'0.weight': Tensor((4, 3), np.dtype('float32'), read)})
  mapped = mapping.by_names(file, NAMES[:1], MLP.shapes())
  leaf = mapped.variables['params']['layer1']['linear']['kernel']
  assert (leaf.shape, leaf.origin, reads) == ((3, 4), '0.weight, o i -> i o', [])
  np.asarray(leaf)
  assert reads == [1]


def test_what_no_rule_names_is_listed():
  mapped = mapping.by_names(contents(**TORCH, extra=draw(7)), NAMES[:2], MLP.shapes())
  assert mapped.unmapped == ('0.bias', '2.bias', 'extra')


def test_the_first_rule_that_matches_decides():
  rules = [(r'0\.weight', 'layer1/linear/kernel', 'linear'), (r'(0|2)\.weight', 'head/kernel', 'linear')]
  found = _read(mapping.by_names(contents(**TORCH), rules, MLP.shapes()))
  np.testing.assert_array_equal(found['head/kernel'], TORCH['2.weight'].T)


@pytest.mark.parametrize(
  ('rule', 'message'),
  [
    (
      (r'0\.wieght', 'head/kernel', 'linear'),
      r"names\.0: pattern '0\\\\\.wieght' matches no name in file\.pth; nearest: 0\.weight",
    ),
    (
      (r'0\.weight', 'layer1/linear/kernle', 'linear'),
      'which the network does not have; nearest: layer1/linear/kernel',
    ),
    ((r'.*\.weight', 'head/kernel', 'linear'), r'2\.weight would become head/kernel, and so does 0\.weight'),
    ((r'0\.weight', r'head/\2', 'linear'), 'does not fit pattern'),
    ((r'0\.weight', 'head/kernel', 'conv'), r'file\.pth: 0\.weight to head/kernel: layout .* does not fit'),
    ((r'0\.(weight', 'head/kernel', 'conv'), r'source\.names\.0: pattern .* is not a regular expression'),
  ],
)
def test_a_rule_that_does_not_fit_is_one_message(rule, message):
  with pytest.raises(UserError, match=message):
    mapping.by_names(contents(**TORCH), [rule], MLP.shapes())


def test_a_rule_that_earlier_ones_leave_nothing_is_refused():
  with pytest.raises(UserError, match=r'names\.1: rule .* never applies: earlier rules take 0\.weight, 0\.bias'):
    mapping.by_names(contents(**TORCH), [('0', 'layer1/linear', 'linear'), ('0', 'head', 'linear')], MLP.shapes())


def test_counts_of_batches_go_with_no_layer():
  network = networks.build('convnet', {'width': 4, 'blocks': 1, 'batch_norm': True, 'features': 3}, (8, 8, 1), 2)
  arrays = {f'bn.{part}': draw(4) for part in ('weight', 'bias', 'running_mean', 'running_var')}
  file = contents(**arrays, **{'bn.num_batches_tracked': np.int64(3)})
  mapped = mapping.by_names(file, [('bn', 'block1/norm', 'same')], network.shapes())
  assert mapped.unmapped == () and len(_read(mapped)) == 2


@pytest.mark.parametrize('value', [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite_are_refused_by_name_when_they_are_read(value):
  broken = TORCH['2.weight'].astype(np.float64)
  broken[0, 0] = value
  mapped = mapping.by_names(contents(**{**TORCH, '2.weight': broken}), NAMES, MLP.shapes())
  with pytest.raises(UserError, match=r'file\.pth: 2\.weight holds NaN or infinity, or numbers too large for float32'):
    _read(mapped)


# ------------------------------------------------------------------------------------------------------------ shapes
def test_what_shapes_alone_decide_is_proposed_and_taken_only_when_asked():
  file = contents(**TORCH)
  mapped = mapping.by_names(file, NAMES[:1], MLP.shapes())
  assert 'head/kernel' not in paths.flatten(mapped.variables['params'])
  assert any(
    "2.weight could be head/kernel: ('2\\\\.weight', 'head/kernel', 'linear')" in note for note in mapped.notes
  )
  asked = _read(mapping.by_names(file, [], MLP.shapes(), by_shape=True))
  for ours, theirs in (('layer1/linear/kernel', '0.weight'), ('head/kernel', '2.weight'), ('head/bias', '2.bias')):
    np.testing.assert_array_equal(asked[ours], TORCH[theirs].T)


def test_shapes_that_leave_a_choice_decide_nothing():
  like = networks.build('mlp', {'hidden': [4]}, (3,), 2).shapes()  # two arrays of layer1's shape
  file = contents(a=draw(3, 4), b=draw(3, 4), c=draw(4, 2))
  assert mapping.proposals(file, {}, like) == {'head/kernel': ('c', 'same')}
  twice = networks.build('mlp', {'hidden': [3, 3, 3]}, (2,), 2).shapes()  # one array, and several leaves of its shape
  assert mapping.proposals(contents(a=draw(3)), {}, twice) == {}
  square = networks.build('mlp', {'hidden': [3]}, (3,), 2).shapes()  # which way a square lies its shape does not say
  assert mapping.proposals(contents(a=draw(3, 3)), {}, square) == {}


# ------------------------------------------------------------------------------------------------------------ dtypes
@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_precisions_are_converted_and_the_report_says_so(dtype):
  arrays = {name: array.astype(dtype) for name, array in TORCH.items()}
  mapped = mapping.by_names(contents(**arrays), NAMES, MLP.shapes())
  kernel = _read(mapped)['head/kernel']
  assert kernel.dtype == np.float32
  np.testing.assert_array_equal(kernel, arrays['2.weight'].astype(np.float32).T)
  assert f'4 arrays are {np.dtype(dtype)} in the file, and are converted' in mapped.notes


def test_whole_numbers_are_no_weights():
  with pytest.raises(UserError, match=r'file.pth: 2.bias holds int64, which is no weight'):
    mapping.by_names(contents(**{**TORCH, '2.bias': np.zeros(2, int)}), NAMES, MLP.shapes())


# ---------------------------------------------------------------------------------------------------------- families
def test_a_file_of_no_family_is_refused_with_the_way_out():
  file = contents(**TORCH)
  assert mapping.recognise(file) is None
  message = str(mapping.unknown_file(file, MLP.shapes()))
  assert 'file.pth (PyTorch, 4 arrays: 0.weight, 0.bias, 2.weight, 2.bias' in message
  assert 'config.source.names=' in message and "('2\\\\.weight', 'head/kernel', 'linear')" in message


def test_a_file_of_ours_in_a_later_format_is_refused():
  said = {'transferlab': '2', 'names': 'ours', 'network': json.dumps({'name': 'mlp'}), 'preprocessing': '{}'}
  with pytest.raises(UserError, match='has format 2; this program reads formats up to 1'):
    mapping.recognise(contents(said, **{'params/head/kernel': draw(2, 2)}))


@pytest.mark.parametrize(
  'changes',
  [
    {'network': '{'},
    {'network': '[]'},
    {'transferlab': '"x"'},
    {'transferlab': '[' * 200_000},
    {'preprocessing': '{"kind": "image"}'},
    {'preprocessing': '7'},
  ],
)
def test_a_file_of_ours_that_says_nonsense_of_itself_is_refused(changes):
  said = {'transferlab': '1', 'names': 'ours', 'network': '{"name": "mlp"}', 'preprocessing': '{}', **changes}
  with pytest.raises(UserError, match=r'file\.pth: what it says of itself cannot be read'):
    mapping.recognise(contents(said, a=draw(2)))


@pytest.mark.parametrize('metadata', ['hello', '[1]', '[' * 200_000, '{"other": 1}', 7])
def test_metadata_of_others_are_theirs(metadata):
  assert mapping.recognise(contents({'__metadata__': metadata}, a=draw(2))) is None
