"""Answers without training: the head that texts make, against live models of transformers with random weights."""

import csv
import json

import jax
import numpy as np
import peers
import pytest
from PIL import Image

from transferlab import config, experiment, paths, zero_shot
from transferlab.errors import UserError
from transferlab.preparation import prepare
from transferlab.settings import Run, Texts
from transferlab.weights import export, mapping, readers
from transferlab.weights.contents import Contents

pytestmark = pytest.mark.usefixtures('quick_compilation')
SMALL = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
IMAGES = {**SMALL, 'image_size': 16, 'patch_size': 8}
CLASSES = ['Cat', 'hot_dog', 'ice_cream']
TEMPLATES = ['a photo of a {}.', 'a drawing of the {}']
WORDS = ['a', 'photo', 'of', 'the', 'drawing', 'cat', 'hot', 'dog', 'ice', 'cream', '.']
MEAN, DEVIATION = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]


def _tokenizer(kind):
  """One of words that puts tokens around a text as CLIP's does, or one behind it as SigLIP's does."""
  from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

  special = ['<unk>', '<pad>', '</s>', '<|startoftext|>', '<|endoftext|>']
  numbers = {word: number for number, word in enumerate([*special[:3], *WORDS, *special[3:]])}
  made = Tokenizer(models.WordLevel(numbers, unk_token='<unk>'))
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  if kind == 'clip':  # texts for SigLIP are brought to lower case before
    made.normalizer = normalizers.Lowercase()
  around = '<|startoftext|> $A <|endoftext|>' if kind == 'clip' else '$A </s>'
  made.post_processor = processors.TemplateProcessing(
    around, special_tokens=[(word, numbers[word]) for word in special]
  )
  return made


def _model(kind):
  library, words = peers.transformers(), len(WORDS) + 5
  texts = {**SMALL, 'vocab_size': words, 'max_position_embeddings': 12}
  if kind == 'clip':
    texts |= {'eos_token_id': words - 1, 'bos_token_id': words - 2}
    sizes = library.CLIPConfig(text_config=texts, vision_config=IMAGES, projection_dim=12)
    return peers.torch_random(library.CLIPModel(sizes), scale=0.3)
  sizes = library.SiglipConfig(text_config={**texts, 'projection_size': 64}, vision_config=IMAGES)
  return peers.torch_random(library.SiglipModel(sizes), scale=0.3)


@pytest.fixture(scope='module', params=['clip', 'siglip'])
def towers(request, tmp_path_factory):
  """(kind, live model, the folder that it writes, with tokenizer and preprocessing)."""
  kind, place = request.param, tmp_path_factory.mktemp('towers')
  model = _model(kind)
  model.save_pretrained(place)
  _tokenizer(kind).save(str(place / 'tokenizer.json'))
  (place / 'tokenizer_config.json').write_text(json.dumps({'pad_token': '<pad>'}))
  record = dict(image_mean=MEAN, image_std=DEVIATION, size=16, crop_size=16, do_center_crop=True)
  (place / 'preprocessor_config.json').write_text(json.dumps(record))
  return kind, model, place


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """A folder of images of three classes: (its place, the images by the order of classes and names)."""
  place, random, images = tmp_path_factory.mktemp('photos'), np.random.default_rng(0), []
  for name in CLASSES:
    (place / name).mkdir()
    for number in range(4):
      images.append(random.integers(0, 256, (16, 16, 3)).astype(np.uint8))
      Image.fromarray(images[-1]).save(place / name / f'{number}.png')
  return place, np.stack(images)


def _run(photos, weights, **more):
  data = dict(name=f'folder:{photos}', test=1.0 / 3, validation=0.25, batch_size=4)
  source = dict(weights=str(weights), texts={'templates': TEMPLATES, **more.pop('texts', {})})
  values = dict(network=dict(name='vit'), source=source, target=dict(data=data), phases=[dict(steps=0)])
  return config.validate(Run, {**values, **more})


def _head(folder, texts, classes=CLASSES):
  contents = readers.read(str(folder))
  return zero_shot.head(zero_shot._tower(contents, 'texts'), contents, texts, classes, 'texts')


def _live(kind, model, images):
  """Logits [images, classes] of the live model's embeddings, with the mean of directions over templates."""
  torch = pytest.importorskip('torch')
  made = _tokenizer(kind)
  made.enable_padding(length=12 if kind == 'siglip' else None, pad_id=1 if kind == 'siglip' else len(WORDS) + 4)
  unit = lambda x: x / x.norm(dim=-1, keepdim=True)
  columns = []
  with torch.no_grad():
    vectors = lambda out: getattr(out, 'pooler_output', out)
    for name in CLASSES:
      texts = [template.replace('{}', name.replace('_', ' ').lower()) for template in TEMPLATES]
      ids = torch.tensor([encoding.ids for encoding in made.encode_batch(texts)])
      columns.append(unit(unit(vectors(model.get_text_features(ids)).double()).mean(dim=0)))
    x = (torch.tensor(images).double() / 255 - torch.tensor(MEAN)) / torch.tensor(DEVIATION)
    x = unit(vectors(model.get_image_features(x.permute(0, 3, 1, 2).float())).double())
    bias = model.logit_bias.double() if kind == 'siglip' else 0
    return (model.logit_scale.double().exp() * x @ torch.stack(columns).T + bias).numpy()


def test_a_run_of_no_steps_answers_as_the_live_model_does(towers, photos, tmp_path):
  kind, model, folder = towers
  run = _run(photos[0], folder)
  done = experiment.run(run, tmp_path / 'run')
  assert done['best']['step'] == 0 and done['best']['value'] == done['selected']['validation']['accuracy']
  prepared = prepare(run)
  variables = jax.tree.map(np.asarray, experiment.start(prepared, prepared.weights).variables)
  x = prepared.loaded.arrays(np.arange(12), prepared.record)['x']
  x = (np.asarray(x) - np.array(prepared.record['shift'])) / np.array(prepared.record['scale'])
  with jax.default_matmul_precision('highest'):
    outputs, _ = prepared.network.apply(variables, x.astype(np.float32))
  theirs = _live(kind, model, photos[1])
  np.testing.assert_allclose(outputs['head'], theirs, atol=1e-4 * np.abs(theirs).max())
  np.testing.assert_allclose(np.linalg.norm(outputs['normalise'], axis=-1), 1, rtol=1e-5)
  powers = np.exp(theirs - theirs.max(axis=1, keepdims=True))
  with (tmp_path / 'run' / 'predictions' / 'test.csv').open() as file:
    rows = list(csv.DictReader(file))
  for row in rows:
    shares = powers[int(row['id'])] / powers[int(row['id'])].sum()
    np.testing.assert_allclose([float(row[name]) for name in CLASSES], shares, atol=1e-3)


def test_a_text_tower_answers_as_the_live_one_and_is_written_back(towers, tmp_path):
  torch = pytest.importorskip('torch')
  kind, model, folder = towers
  found = mapping.recognise(readers.read(str(folder)), 'decoder')
  assert (found.origin.network, found.origin.name, found.outputs) == ('decoder', kind, 12 if kind == 'clip' else 64)
  ids = np.random.default_rng(0).integers(3, len(WORDS) + 3, (5, 12))
  ids[:, -1] = len(WORDS) + 4
  ids[2, 7:] = len(WORDS) + 4
  ours = np.where(np.arange(12) > np.array([11, 11, 7, 11, 11])[:, None], -1, ids) if kind == 'clip' else ids
  given = zero_shot._answers(found, ours.astype(np.int32))
  with torch.no_grad():
    theirs = model.get_text_features(torch.tensor(ids))
  theirs = getattr(theirs, 'pooler_output', theirs).numpy()
  np.testing.assert_allclose(given, theirs, atol=1e-4 * np.abs(theirs).max())
  variables = jax.tree.map(np.asarray, found.mapped.variables, is_leaf=lambda leaf: isinstance(leaf, mapping.Leaf))
  record = {'kind': 'text', 'shift': [], 'scale': [], 'columns': [], 'input_shape': [12]}
  export.write(tmp_path / 'a.safetensors', variables, 'decoder', found.options, record, kind)
  back, whole = readers.read(str(tmp_path / 'a.safetensors')), model.state_dict()
  assert back.tensors and all(np.array_equal(back[name], whole[name].numpy()) for name in back)
  left = [name for name in whole if name.startswith('text') and name not in back.tensors]
  assert all('position_ids' in name for name in left)


def test_the_head_starts_training_and_its_images_learn(towers, photos, tmp_path):
  _, _, folder = towers
  phase = dict(steps=6, train='head', optimizer='sgd', learning_rate=1e-2)
  done = experiment.run(_run(photos[0], folder, phases=[phase]), tmp_path / 'run')
  begun = experiment.run(_run(photos[0], folder), tmp_path / 'begun')
  assert done['last']['train']['log_loss'] < begun['last']['train']['log_loss']
  assert begun['trained_parameters'] == 0 < done['trained_parameters']
  report = (tmp_path / 'run' / 'transplant.json').read_text()
  assert 'a photo of a Cat.' in report


def test_it_is_a_teacher_of_other_networks(towers, photos, tmp_path):
  _, _, folder = towers
  teacher = dict(weights=str(folder), texts=dict(templates=TEMPLATES))
  run = dict(
    network=dict(name='mlp', hidden=[8]),
    target=dict(data=dict(name=f'folder:{photos[0]}', test=1.0 / 3, batch_size=4)),
    teachers=dict(tower=teacher),
    phases=[dict(steps=2)],
    objective=[dict(term='kd', teacher='tower')],
  )
  done = experiment.run(config.validate(Run, run), tmp_path / 'run')
  alone = experiment.run(_run(photos[0], folder, target=run['target']), tmp_path / 'alone')
  assert done['teachers']['tower']['test']['log_loss'] == pytest.approx(alone['last']['test']['log_loss'], rel=1e-5)


def test_names_replace_those_of_the_data_and_templates_are_averaged_as_directions(towers):
  _, _, folder = towers
  head = lambda names, templates, classes: _head(folder, Texts(templates=templates, names=names), classes)
  plain = np.asarray(head(None, ['a photo of a {}.'], CLASSES)['kernel'])
  named = np.asarray(head(['cat', 'hot dog', 'ice cream'], ['a photo of a {}.'], ['0', '1', '2'])['kernel'])
  np.testing.assert_array_equal(plain, named)
  other = np.asarray(head(None, ['the {}'], CLASSES)['kernel'])
  both = np.asarray(head(None, ['a photo of a {}.', 'the {}'], CLASSES)['kernel'])
  scale = np.linalg.norm(plain, axis=0)
  want = plain / scale + other / scale
  np.testing.assert_allclose(both, want / np.linalg.norm(want, axis=0) * scale, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(texts=dict(names=['cat'])), 'names: 1 names, and the data have 3 classes'),
    (dict(transplant=[('head', 'init'), ('.*', 'copy')]), 'config.transplant does not take it'),
    (dict(network=dict(name='decoder')), 'is no image tower'),
    (dict(texts=dict(names=['cat', 'cat', 'dog'])), 'a name of its own'),
  ],
)
def test_mistakes_are_named(towers, photos, change, message):
  with pytest.raises(UserError, match=message):
    prepare(_run(photos[0], towers[2], **change))


def test_a_template_has_one_place():
  for template in ('a photo', '{} and {}'):
    with pytest.raises(ValueError, match='should have one'):
      Texts(templates=[template])


def test_unlabelled_images_are_enough(towers, photos):
  data = dict(name=f'folder:{photos[0]}', test=1.0 / 3, batch_size=4, labelled=False)
  assert prepare(_run(photos[0], towers[2], target=dict(data=data))).trained_parameters() == 0


def test_runs_of_other_texts_are_other_runs_and_are_known_without_reading_them(towers, photos, monkeypatch):
  monkeypatch.setattr(zero_shot, '_answers', lambda *given: pytest.fail('texts were read'))
  identity = lambda templates: prepare(_run(photos[0], towers[2], texts=dict(templates=templates))).identity
  assert identity(['a photo of a {}.']) == identity(['a photo of a {}.']) != identity(['the {}'])


@pytest.mark.parametrize(
  'settings, number',
  [
    ({'pad_token': '</s>'}, 2),
    ({'pad_token': {'content': '<pad>'}}, 1),
    ({'pad_token': ['</s>']}, None),
    ({}, None),
    ({'pad_token': 'unheard'}, None),
    ({'pad_token': '</s>', 'padding_side': 'left'}, 2),
  ],
)
def test_siglips_padding_is_what_its_records_say_and_never_guessed(settings, number):
  record, contents = {'tokenizer': _tokenizer('siglip').to_str()}, Contents('a', 'safetensors', {})
  filled = lambda: zero_shot._filled(np.array([[5, 6, -1, -1]]), contents, settings, record, 'texts')
  if number is None:
    with pytest.raises(UserError, match=r'put its tokenizer_config\.json beside it'):
      filled()
  else:
    left = settings.get('padding_side') == 'left'
    assert filled().tolist() == [[number, number, 5, 6] if left else [5, 6, number, number]]


def test_the_first_siglip_reads_no_punctuation():
  assert zero_shot._as_trained('A photo, of  a Cat.', 'SiglipTokenizerFast') == 'a photo of a cat'
  assert zero_shot._as_trained('A photo, of  a Cat.', 'GemmaTokenizer') == 'a photo, of a cat.'


def test_a_text_that_is_too_long_is_named(towers):
  texts = Texts(templates=['a photo of the {} ' + 'dog ' * 12])
  with pytest.raises(UserError, match='more tokens than the 12'):
    _head(towers[2], texts)


def test_without_a_tokenizer_or_a_text_tower_there_is_no_head(towers, photos, tmp_path):
  model = towers[1]
  model.save_pretrained(tmp_path / 'whole')
  with pytest.raises(UserError, match=r'tokenizer\.json'):
    prepare(_run(photos[0], tmp_path / 'whole'))
  model.vision_model.save_pretrained(tmp_path / 'images')
  with pytest.raises(UserError, match='no text tower'):
    prepare(_run(photos[0], tmp_path / 'images'))


def test_its_leaves_are_read_once_they_are_asked_for(towers, monkeypatch):
  calls = []
  answers = zero_shot._answers
  monkeypatch.setattr(zero_shot, '_answers', lambda *given: calls.append(given) or answers(*given))
  texts = Texts(templates=['the photo of the {}'])
  leaves, others = (_head(towers[2], texts) for _ in range(2))
  assert not calls and leaves['kernel'].shape[1] == 3
  assert np.array_equal(np.asarray(leaves['kernel']), np.asarray(others['kernel'])) and len(calls) == 1
  assert paths.flatten({'head': leaves}).keys() == {'head/kernel', 'head/bias'}
