"""Vision transformers against live models of torchvision, timm and transformers with random weights.

Logits and the output of every block agree within 1e-4 of the largest value. Files are written by the origin's own
means, and what we export is loaded by it.
"""

import functools
import json
import re

import jax
import numpy as np
import peers
import pytest

from transferlab import paths
from transferlab.errors import UserError
from transferlab.networks import layers
from transferlab.networks import network as networks
from transferlab.weights import export, layouts, mapping, readers
from transferlab.weights.names import vit

pytestmark = pytest.mark.usefixtures('quick_compilation')
RANDOM = np.random.default_rng(0)
RECORD = {'kind': 'image', 'shift': [0.0] * 3, 'scale': [1.0] * 3, 'columns': [], 'input_shape': [32, 32, 3]}
SMALL = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96, image_size=32)


# ------------------------------------------------------------------------------------------------------- peers
def _torchvision(patch=8):
  return peers.torchvision().VisionTransformer(32, patch, 2, 2, 128, 96, num_classes=5)


def _timm(**options):
  peers.torchvision()
  module = pytest.importorskip('timm.models.vision_transformer')
  settings = dict(img_size=32, patch_size=8, embed_dim=128, depth=2, num_heads=2, mlp_ratio=0.75, num_classes=5)
  return module.VisionTransformer(**{**settings, **options})


def _transformers(kind, config, **options):
  library = peers.transformers()
  return getattr(library, kind)(getattr(library, config)(**{**SMALL, 'patch_size': 8, 'num_labels': 5, **options}))


def _features(model):
  return model.pooler_output if hasattr(model, 'pooler_output') else model.logits


# origin and case -> (model, options to be recognised beside the sizes, blocks' modules, the answer of its output)
CASES = {
  ('torchvision', ''): (_torchvision, {}, lambda m: m.encoder.layers, lambda out: out),
  ('torchvision', 'patches of 16'): (lambda: _torchvision(16), {}, lambda m: m.encoder.layers, lambda out: out),
  ('timm', ''): (_timm, {}, lambda m: m.blocks, lambda out: out),
  ('timm', 'registers and their positions'): (
    lambda: _timm(reg_tokens=4, init_values=1e-3),
    dict(registers=4, placed='all', layer_scale=1.0),
    lambda m: m.blocks,
    lambda out: out,
  ),
  ('timm', 'mean'): (
    lambda: _timm(global_pool='avg', no_embed_class=True),
    dict(placed='patches', pool='mean_norm'),
    lambda m: m.blocks,
    lambda out: out,
  ),
  ('timm', 'attention'): (
    lambda: _timm(global_pool='map', class_token=False),
    dict(class_token=False, pool='attention'),
    lambda m: m.blocks,
    lambda out: out,
  ),
  ('transformers', ''): (
    lambda: _transformers('ViTForImageClassification', 'ViTConfig'),
    dict(epsilon=1e-12),
    lambda m: m.vit.layers,
    _features,
  ),
  ('transformers', 'without a head'): (
    lambda: _transformers('ViTModel', 'ViTConfig'),
    dict(epsilon=1e-12),
    lambda m: m.layers,
    None,
  ),
  ('dinov2', ''): (
    lambda: _transformers('Dinov2ForImageClassification', 'Dinov2Config', mlp_ratio=1),
    dict(pool='class_mean', layer_scale=1.0),
    lambda m: m.dinov2.encoder.layer,
    _features,
  ),
  ('dinov2_registers', ''): (
    lambda: _transformers('Dinov2WithRegistersForImageClassification', 'Dinov2WithRegistersConfig', mlp_ratio=1),
    dict(pool='class_mean', layer_scale=1.0, registers=4),
    lambda m: m.dinov2_with_registers.encoder.layer,
    _features,
  ),
  ('clip', ''): (
    lambda: _transformers('CLIPVisionModelWithProjection', 'CLIPVisionConfig', projection_dim=12),
    dict(projection=12, embed_norm=True, patch_bias=False, epsilon=1e-5, activation='quick_gelu'),
    lambda m: m.vision_model.encoder.layers,
    lambda out: out.image_embeds,
  ),
  ('siglip', ''): (
    lambda: _transformers('SiglipVisionModel', 'SiglipVisionConfig'),
    dict(class_token=False, pool='attention', activation='gelu_tanh'),
    lambda m: m.encoder.layers,
    lambda out: out.pooler_output,
  ),
}


@functools.cache
def _live(case):
  return peers.torch_random(CASES[case][0]())


def _saved(model, folder):
  """The file that the origin writes."""
  torch = pytest.importorskip('torch')
  if hasattr(model, 'save_pretrained'):
    model.save_pretrained(folder)
    return folder
  torch.save(model.state_dict(), folder / 'a.pth')
  return folder / 'a.pth'


def _theirs(model, blocks, answer, x):
  """(what each block gives, the answer), as NumPy."""
  torch = pytest.importorskip('torch')
  seen = []
  first = lambda out: out[0] if isinstance(out, tuple) else out
  hooks = [block.register_forward_hook(lambda _, __, out: seen.append(first(out).numpy())) for block in blocks(model)]
  with torch.no_grad():
    out = model(torch.tensor(np.moveaxis(x, -1, 1).copy()))
  for hook in hooks:
    hook.remove()
  return seen, None if answer is None else answer(out).numpy()


def _ours(found, shape):
  variables = {
    kind: paths.unflatten({path: np.asarray(leaf) for path, leaf in paths.flatten(tree).items()})
    for kind, tree in found.mapped.variables.items()
  }
  return networks.build(found.origin.network, found.options, shape, found.outputs or 1), variables


def _run(network, variables, x):
  stop = None if 'head' in variables['params'] else 'head'
  forward = jax.jit(layers.unlooped(lambda variables, x: network.apply(variables, x, stop=stop)[0]))
  with jax.default_matmul_precision('highest'):
    return forward(variables, x)


def _close(found, expected, share=1e-4):
  assert found.shape == expected.shape
  assert np.abs(expected[0] - expected[1]).max() > 0.01 * np.abs(expected).max()  # it looks at the image
  assert np.abs(np.asarray(found) - expected).max() < share * np.abs(expected).max()


def _images(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


# One case of each origin, and timm's ways to pool, which no other has.
LONG = [('torchvision', 'patches of 16'), ('timm', ''), ('transformers', 'without a head')]
QUICK = [pytest.param(case, marks=pytest.mark.long) if case in LONG else case for case in CASES]


@pytest.mark.parametrize('case', QUICK, ids=lambda case: '-'.join(case))
def test_every_block_and_the_answer_are_what_the_origin_gives(case, tmp_path):
  _, options, blocks, answer = CASES[case]
  model, x = _live(case), _images(2, 32, 32, 3)
  found = mapping.recognise(readers.read(str(_saved(model, tmp_path))))
  assert (found.origin.network, found.origin.name) == ('vit', case[0])
  assert {name: found.options.get(name) for name in options} == options
  network, variables = _ours(found, x.shape[1:])
  outputs = _run(network, variables, x)
  seen, expected = _theirs(model, blocks, answer, x)
  assert len(seen) == 2
  for number, value in enumerate(seen, 1):
    _close(outputs[f'block{number}'], value)
  if expected is not None:
    last = {'clip': 'project', 'siglip': 'pool'}.get(case[0], 'pool' if answer is None or not found.outputs else 'head')
    _close(outputs[last], expected)


@pytest.mark.parametrize('case', QUICK, ids=lambda case: '-'.join(case))
def test_what_is_exported_is_loaded_by_the_origin_to_the_bit(case, tmp_path):
  torch = pytest.importorskip('torch')
  model = _live(case)
  (tmp_path / 'theirs').mkdir()
  found = mapping.recognise(readers.read(str(_saved(model, tmp_path / 'theirs'))))
  _, variables = _ours(found, (32, 32, 3))
  export.write(tmp_path / 'model.safetensors', variables, 'vit', found.options, RECORD, case[0])
  fresh = CASES[case][0]()
  if hasattr(fresh, 'save_pretrained'):
    fresh.config.save_pretrained(tmp_path)
    fresh, said = type(fresh).from_pretrained(tmp_path, output_loading_info=True)
    assert not said['unexpected_keys'] and not {name for name in said['missing_keys'] if not found.origin.skips(name)}
  else:
    fresh.load_state_dict({name: torch.tensor(value) for name, value in readers.read(str(tmp_path)).items()})
  expected = model.state_dict()
  for name, value in fresh.state_dict().items():
    assert found.origin.skips(name) or torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
  ('name', 'options'),
  [
    ('augreg', {}),
    ('big_vision', dict(placed='patches')),
    ('big_vision', dict(placed='patches', class_token=False, pool='mean')),
    ('big_vision', dict(placed='patches', class_token=False, pool='attention')),
  ],
  ids=lambda value: value if isinstance(value, str) else value.get('pool', 'class'),
)
def test_npz_files_of_jax_give_what_timm_makes_of_them(name, options, tmp_path):
  """timm has the exact GELU for most of these; here it is told the one that the files were trained with."""
  peers.torchvision()
  module = pytest.importorskip('timm.models.vision_transformer')
  options = dict(width=128, depth=2, heads=2, hidden=96, patch=8, activation='gelu_tanh', **options)
  network = networks.build('vit', options, (32, 32, 3), 5)
  random = np.random.default_rng(3)
  drawn = {path: random.normal(0, 0.2, leaf.shape) for path, leaf in paths.flatten(network.shapes()['params']).items()}
  variables = {'params': paths.unflatten({path: np.float32(value) for path, value in drawn.items()}), 'stats': {}}
  export.write(tmp_path / 'a.npz', variables, 'vit', options, RECORD, name)
  with np.load(tmp_path / 'a.npz') as file:
    prefix = 'params/' if name == 'big_vision' else ''
    np.savez(tmp_path / 'b.npz', **{f'{prefix}{key}': file[key] for key in file if not key.startswith('__')})
  pool = {'mean': 'avg', 'attention': 'map'}.get(options.get('pool'), 'token')
  settings = dict(class_token=pool == 'token', no_embed_class='placed' in options, act_layer='gelu_tanh')
  model = _timm(global_pool=pool, fc_norm=False, **settings).eval()
  module._load_weights(model, str(tmp_path / 'b.npz'))
  found = mapping.recognise(readers.read(str(tmp_path / 'b.npz')))
  assert (found.origin.name, found.outputs, found.preprocessing['input_shape']) == (name, 5, [32, 32, 3])
  assert {key: found.options.get(key) for key in options} == options
  x = _images(2, 32, 32, 3)
  outputs = _run(*_ours(found, (32, 32, 3)), x)
  seen, expected = _theirs(model, lambda m: m.blocks, lambda out: out, x)
  _close(outputs['block2'], seen[1])
  _close(outputs['head'], expected)


def test_gradients_are_those_of_pytorch():
  torch = pytest.importorskip('torch')
  model, x = _live(('timm', 'registers and their positions')), _images(2, 32, 32, 3)
  weights = RANDOM.normal(size=(2, 5)).astype(np.float32)
  model.zero_grad()
  (model(torch.tensor(np.moveaxis(x, -1, 1).copy())) * torch.tensor(weights)).sum().backward()
  named = dict(model.named_parameters())
  options = dict(width=128, depth=2, heads=2, hidden=96, patch=8, registers=4, placed='all', layer_scale=1.0)
  network, table = networks.build('vit', options, (32, 32, 3), 5), vit.table(vit.TIMM, options)
  ours = lambda pick: {path: layouts.ours(pick(named[name]).numpy(), layout) for path, (name, layout) in table.items()}
  params = paths.unflatten(ours(lambda value: value.detach()))
  loss = lambda params: (network.apply({'params': params, 'stats': {}}, x)[0]['head'] * weights).sum()
  found = paths.flatten(jax.jit(jax.grad(loss))(params))
  for path, expected in ours(lambda value: value.grad).items():
    largest = np.abs(expected).max()
    # Keys' biases move every attention weight of a query alike, and so none of them: their gradient is rounding.
    limit = 1e-4 * largest if 'key/bias' not in path else 1e-4
    assert np.abs(np.asarray(found[path]) - expected).max() <= limit, path


@pytest.mark.parametrize(
  ('changed', 'names', 'message'),
  [
    (dict(activation='gelu_tanh'), 'torchvision', "activation='gelu'"),
    (dict(epsilon=1e-5), 'torchvision', 'epsilon=1e-06'),
    (dict(registers=2), 'torchvision', 'no name for embed/registers'),
    (dict(), 'augreg', "activation='gelu_tanh'"),
    (dict(), 'clip', 'clip has no name|clip has no network'),
  ],
)
def test_a_network_that_the_origin_would_compute_otherwise_is_not_written(changed, names, message, tmp_path):
  options = dict(width=128, depth=1, heads=2, hidden=96, patch=8, **changed)
  network = networks.build('vit', options, (32, 32, 3), 5)
  variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), network.shapes())
  with pytest.raises(UserError, match=message):
    export.write(tmp_path / 'a.safetensors', variables, 'vit', options, RECORD, names)


def test_without_a_config_the_number_of_heads_is_said_to_be_assumed(tmp_path):
  found = mapping.recognise(readers.read(str(_saved(_live(('torchvision', '')), tmp_path))))
  assert any('64 features each are assumed' in note for note in found.mapped.notes)
  model = _transformers('ViTForImageClassification', 'ViTConfig', num_attention_heads=4, hidden_act='gelu_new')
  found = mapping.recognise(readers.read(str(_saved(model, tmp_path))))
  assert (found.options['heads'], found.options['activation']) == (4, 'gelu_tanh')
  assert not any('assumed' in note for note in found.mapped.notes)


def _small(**options):
  options = {**dict(width=128, depth=1, heads=2, hidden=96, patch=8), **options}
  network = networks.build('vit', options, (32, 32, 3), 5)
  return options, jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), network.shapes())


@pytest.mark.parametrize(
  ('changed', 'names', 'message'),
  [
    (dict(pool='mean'), 'torchvision', "pool='class'"),
    (dict(pool='mean'), 'transformers', "pool='class'"),
    (dict(pool='class_mean'), 'timm', 'timm has no network'),
    (dict(class_token=False, pool='mean'), 'torchvision', 'torchvision has no network'),
    (dict(activation='silu'), 'timm', "activation='gelu'"),
  ],
)
def test_pooling_that_an_origin_does_not_have_is_not_written(changed, names, message, tmp_path):
  options, variables = _small(**changed)
  with pytest.raises(UserError, match=message):
    export.write(tmp_path / 'a.safetensors', variables, 'vit', options, RECORD, names)


TIMM_CONFIGS = {
  "global_pool='max'": dict(architecture='vit_small', global_pool='max'),
  'model_args has block_fn': dict(architecture='vit_small', model_args=dict(block_fn='ResPostBlock')),
  'model_args has fc_norm': dict(architecture='vit_small', model_args=dict(fc_norm=False, global_pool='avg')),
}


@pytest.mark.parametrize('message', TIMM_CONFIGS)
def test_models_of_timm_that_compute_otherwise_under_the_same_names_are_refused(message, tmp_path):
  save_file = pytest.importorskip('safetensors.torch').save_file
  save_file(_live(('timm', '')).state_dict(), tmp_path / 'model.safetensors')
  (tmp_path / 'config.json').write_text(json.dumps(TIMM_CONFIGS[message]))
  with pytest.raises(UserError, match=re.escape(message)):
    mapping.recognise(readers.read(str(tmp_path)))
  known = dict(architecture='vit_base_patch32_siglip_256', model_args=dict(num_heads=4, embed_dim=128))
  (tmp_path / 'config.json').write_text(json.dumps(known))
  found = mapping.recognise(readers.read(str(tmp_path)))
  assert (found.options['heads'], found.options['activation']) == (4, 'gelu_tanh')


def test_another_kind_of_model_or_activation_in_the_config_is_refused(tmp_path):
  folder = _saved(_live(('transformers', '')), tmp_path)
  config = json.loads((folder / 'config.json').read_text())
  for change, message in (
    (dict(model_type='ijepa'), "model_type='ijepa' has the names of vit, deit"),
    (dict(hidden_act='gelu_fast'), "activation 'gelu_fast'; nearest: gelu"),
  ):
    (folder / 'config.json').write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=message):
      mapping.recognise(readers.read(str(folder)))


def _shapes(width, hidden, heads):
  """Of timm's names: parts of one array add up."""
  leaves = paths.flatten(
    networks.build('vit', dict(width=width, depth=1, heads=heads, hidden=hidden), (32, 32, 3), 2).shapes()['params']
  )
  found = {}
  for path, (name, layout) in vit.table(vit.TIMM, dict(depth=1)).items():
    shape = jax.eval_shape(functools.partial(layouts.theirs, layout=layout), leaves[path]).shape
    if (part := layouts.part(layout)) and name in found:
      axis = part.axis
      shape = (*shape[:axis], shape[axis] + found[name][axis], *shape[axis + 1 :])
    found[name] = shape
  return found


@pytest.mark.parametrize(
  ('width', 'hidden', 'heads'), [(1280, 5120, 16), (1152, 4304, 16), (1024, 4096, 16), (192, 768, 3)]
)
def test_heads_of_published_widths_are_known(width, hidden, heads):
  found = next(origin for origin in vit.ORIGINS if origin.name == 'timm').options(_shapes(width, hidden, heads))
  assert found['heads'] == heads


def test_positions_that_fit_in_two_ways_are_not_guessed():
  """Places less those of tokens before the patches are a square."""
  prefix = functools.partial(vit._prefix, vit.TIMM)
  given = {'cls_token': (1, 1, 8), 'reg_token': (1, 4, 8)}
  assert prefix(given, (1, 30, 8)) == {'registers': 4, 'placed': 'all'}
  assert prefix(given, (1, 26, 8)) == {'registers': 4}
  assert prefix(given, (1, 25, 8)) == {'registers': 4, 'placed': 'patches'}
  assert prefix({**given, 'reg_token': (1, 3, 8)}, (1, 4, 8)) == {'registers': 3, 'placed': 'patches'}
  assert prefix({**given, 'reg_token': (1, 3, 8)}, (1, 5, 8)) is None  # 1 + 4, or 4 + 1
  assert prefix(given, (1, 12, 8)) is None
