"""BERT, DistilBERT, RoBERTa, GPT-2 and LLaMA against live models of transformers: outputs, gradients, texts that go on,
names, tokenizers, and the way back.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

import transferlab
from transferlab import commands, config, paths, sampling
from transferlab.data import tokens
from transferlab.errors import UserError
from transferlab.networks import network as networks
from transferlab.preparation import prepare, start
from transferlab.settings import Run
from transferlab.weights import export, inputs, mapping, readers

pytestmark = pytest.mark.usefixtures('quick_compilation')
# Class of transformers, and options of its config.
MODELS = {
  'bert': ('BertForSequenceClassification', {}),
  'bert, relu, large epsilon': ('BertForSequenceClassification', {'hidden_act': 'relu', 'layer_norm_eps': 0.1}),
  'bert without a head': ('BertModel', {}),
  'bert for pretraining': ('BertForPreTraining', {}),
  'roberta': ('RobertaForSequenceClassification', {}),
  'roberta without a head': ('RobertaModel', {}),
  'roberta for pretraining': ('RobertaForMaskedLM', {}),
  'distilbert': ('DistilBertForSequenceClassification', {}),
  'distilbert for pretraining': ('DistilBertForMaskedLM', {}),
  'gpt2': ('GPT2LMHeadModel', {}),
  'gpt2 as a classifier': ('GPT2ForSequenceClassification', {}),
  'gpt2 without a head': ('GPT2Model', {}),
  'llama': ('LlamaForCausalLM', {}),
  'llama, tied, large epsilon': ('LlamaForCausalLM', {'tie_word_embeddings': True, 'rms_norm_eps': 0.1}),
  'llama for longer texts': (
    'LlamaForCausalLM',
    {'rope_parameters': {'rope_theta': 100.0, 'rope_type': 'linear', 'factor': 2.0}},
  ),
  'llama 3.1': (
    'LlamaForCausalLM',
    {
      'rope_parameters': {
        'rope_theta': 100.0,
        'rope_type': 'llama3',
        'factor': 4.0,
        'low_freq_factor': 1.0,
        'high_freq_factor': 4.0,
        'original_max_position_embeddings': 32,
      }
    },
  ),
  'llama as a classifier': ('LlamaForSequenceClassification', {}),
  'llama without a head': ('LlamaModel', {}),
}
HEADED = [name for name in MODELS if name.split(' without')[0].split(' for pre')[0] == name]
LENGTHS = (9, 4, 7)


def _tokens(seed=0):
  random = np.random.default_rng(seed)
  return np.array([[*random.integers(3, 40, n), *[-1] * (9 - n)] for n in LENGTHS], np.int32)


def _saved(name, folder):
  model = peers.text_model(MODELS[name][0], **MODELS[name][1])
  model.save_pretrained(folder)
  return model


def _opened(path):
  """(what is recognised, our network of it, its variables)."""
  found = mapping.recognise(readers.read(str(path)))
  assert found is not None
  leaves = lambda tree: paths.unflatten({path: np.asarray(leaf) for path, leaf in paths.flatten(tree).items()})
  network = networks.build(found.origin.network, found.options, (9,), found.outputs or 3)
  return found, network, {kind: leaves(tree) for kind, tree in found.mapped.variables.items()}


def _close(found, expected, share=1e-4):
  found, expected = np.asarray(found), np.asarray(expected)
  assert found.shape == expected.shape
  assert np.abs(expected).max() > 1e-3
  assert np.abs(found - expected).max() < share * np.abs(expected).max()


# One model of each family; variants of heads and options are among the long tests.
USUAL = ('bert', 'roberta', 'distilbert', 'gpt2', 'llama')
QUICK = [
  name if name in (*USUAL, 'llama 3.1', 'llama for longer texts') else pytest.param(name, marks=pytest.mark.long)
  for name in MODELS
]


@pytest.mark.parametrize('name', QUICK)
def test_every_stage_and_the_logits_are_those_of_transformers(name, tmp_path):
  torch = pytest.importorskip('torch')
  model, x = _saved(name, tmp_path), _tokens()
  found, network, variables = _opened(tmp_path)
  stop = None if found.outputs else network.stages[-1]
  ours = jax.jit(lambda variables, x: network.apply(variables, x, stop=stop)[0])(variables, x)
  with torch.no_grad():
    theirs = peers.text_run(model, x, output_hidden_states=True)
  stages = [stage for stage in network.stages if stage == 'embed' or stage.startswith('block')]
  if 'norm' in network.stages:  # the last of their hidden states is that behind the last normalisation
    stages = [*stages[:-1], 'norm']
  assert len(stages) == len(theirs.hidden_states) == 3
  for stage, state in zip(stages, theirs.hidden_states):
    _close(np.asarray(ours[stage]['x'])[x >= 0], state.numpy()[x >= 0])
  assert (found.outputs is None) == (name not in HEADED and 'gpt2' not in name)
  if name in HEADED:
    real = x >= 0 if theirs.logits.ndim == 3 else slice(None)
    _close(np.asarray(ours['head'])[real], theirs.logits.numpy()[real])
  if name == 'bert without a head':
    _close(ours['pool'], theirs.pooler_output.numpy())


@pytest.mark.parametrize(
  'name', [pytest.param(name, marks=pytest.mark.long) if name in ('roberta', 'distilbert') else name for name in USUAL]
)
def test_gradients_are_those_of_pytorch(name, tmp_path):
  torch = pytest.importorskip('torch')
  model, x = _saved(name, tmp_path), _tokens()
  found, network, variables = _opened(tmp_path)
  weights = np.random.default_rng(1).normal(size=(3, 9, 40) if network.cache else (3, 3)).astype(np.float32)
  weights = np.where((x >= 0)[..., None], weights, 0) if network.cache else weights

  def loss(params):
    return (network.apply({'params': params, 'stats': {}}, x)[0]['head'] * weights).sum()

  ours = paths.flatten(jax.jit(jax.grad(loss))(variables['params']))
  (peers.text_run(model, x).logits * torch.tensor(weights)).sum().backward()
  table = found.origin.table(found.options)
  theirs = {key: value.grad.numpy() for key, value in model.named_parameters() if value.grad is not None}
  from transferlab.weights import layouts

  assert set(ours) == set(table)
  largest = max(np.abs(slope).max() for slope in ours.values())
  for path, (theirname, layout) in table.items():
    difference = np.abs(np.asarray(ours[path]) - layouts.ours(theirs[theirname], layout)).max()
    assert difference < 1e-4 * largest, path


@pytest.mark.parametrize('name', ['gpt2', 'llama', pytest.param('llama, tied, large epsilon', marks=pytest.mark.long)])
def test_texts_go_on_greedily_as_in_transformers(name, tmp_path):
  torch = pytest.importorskip('torch')
  model = _saved(name, tmp_path)
  _, network, variables = _opened(tmp_path)
  prompt = np.array([5, 9, 30, 7])
  ours = sampling.sample(network, variables, prompt, sampling.Sampling(length=12, temperature=0.0))
  with torch.no_grad():
    options = dict(max_new_tokens=12, min_new_tokens=12, do_sample=False, eos_token_id=None)
    theirs = model.generate(input_ids=torch.tensor(prompt[None]), attention_mask=torch.ones(1, 4, dtype=int), **options)
  assert ours.tolist() == theirs[0, 4:].tolist()


# --------------------------------------------------------------------------------------------------------------- names
def _rewritten(folder, change, **settings):
  """The weights in a folder under other names, as an old file of torch's; and config.json with other settings."""
  torch = pytest.importorskip('torch')
  from safetensors.torch import load_file

  arrays = load_file(folder / 'model.safetensors')
  (folder / 'model.safetensors').unlink()
  torch.save(change(arrays), folder / 'pytorch_model.bin')
  stated = {**json.loads((folder / 'config.json').read_text()), **settings}
  (folder / 'config.json').write_text(json.dumps(stated))


def test_layer_norms_of_old_files_and_counts_that_are_no_weights(tmp_path):
  torch = pytest.importorskip('torch')
  _saved('bert', tmp_path / 'new')
  _saved('bert', tmp_path / 'old')

  def old(arrays):
    renamed = lambda name: name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace(
      'LayerNorm.bias', 'LayerNorm.beta'
    )
    return {'bert.embeddings.position_ids': torch.arange(20)[None]} | {renamed(n): v for n, v in arrays.items()}

  _rewritten(tmp_path / 'old', old)
  (found, _, variables), (_, _, expected) = _opened(tmp_path / 'old'), _opened(tmp_path / 'new')
  jax.tree.map(np.testing.assert_array_equal, variables, expected)
  assert any('carry nothing of use' in note for note in found.mapped.notes)


def test_heads_and_masks_that_old_files_of_gpt2_hold_again_are_passed_over(tmp_path):
  torch = pytest.importorskip('torch')
  _saved('gpt2', tmp_path)
  mask = {f'transformer.h.{n}.attn.bias': torch.ones(1, 1, 20, 20).tril() for n in range(2)}
  _rewritten(tmp_path, lambda arrays: {**arrays, **mask, 'lm_head.weight': arrays['transformer.wte.weight']})
  found, _, _ = _opened(tmp_path)
  assert found.outputs == 40 and found.options['tied'] and not found.mapped.unmapped


def test_parts_that_ours_does_not_have_are_named(tmp_path):
  _saved('bert for pretraining', tmp_path)
  notes = _opened(tmp_path)[0].mapped.notes
  assert any('7 arrays are of parts that the network does not have: cls.predictions.bias' in note for note in notes)


@pytest.mark.parametrize('family', ['Bert', 'Roberta', 'DistilBert'])
def test_a_classifier_of_tokens_gives_its_encoder_and_not_its_head(family, tmp_path):
  peers.text_model(f'{family}ForTokenClassification').save_pretrained(tmp_path)
  found, _, variables = _opened(tmp_path)
  assert found.outputs is None and found.options['pooler'] == 'none' and 'head' not in variables['params']
  assert any('2 arrays are of parts that the network does not have: classifier' in note for note in found.mapped.notes)


def test_without_its_config_heads_of_64_features_are_assumed_and_the_report_says_so(tmp_path):
  model = peers.text_model('BertForSequenceClassification', hidden_size=128, num_attention_heads=2)
  model.save_pretrained(tmp_path)
  (tmp_path / 'config.json').unlink()
  found, network, variables = _opened(tmp_path)
  assert found.options['heads'] == 2 and any('heads of 64 features' in note for note in found.mapped.notes)
  torch, x = pytest.importorskip('torch'), _tokens()
  with torch.no_grad():
    _close(network.apply(variables, x)[0]['head'], peers.text_run(model, x).logits.numpy())


@pytest.mark.parametrize(
  ('name', 'settings', 'message'),
  [
    ('llama', {'model_type': 'gemma'}, "model_type='gemma' has the names of llama, mistral, and computes otherwise"),
    ('llama', {'rope_parameters': {'rope_type': 'yarn'}}, "rotary positions of rope_type='yarn'"),
    (
      'llama',
      {'rope_parameters': {'rope_type': 'llama3', 'factor': 2.0}},
      'without numbers low_freq_factor, ',
    ),
    ('llama', {'head_dim': 16}, 'head_dim=16, and 4 heads of this network have 8 features'),
    ('bert', {'hidden_act': 'mish'}, "activation 'mish'; nearest: "),
    ('gpt2', {'scale_attn_by_inverse_layer_idx': True}, 'attention is scaled by 1 / √'),
    ('gpt2', {'tie_word_embeddings': False}, 'tie_word_embeddings=False'),
  ],
)
def test_what_would_compute_otherwise_is_refused(name, settings, message, tmp_path):
  _saved(name, tmp_path)
  _rewritten(tmp_path, dict, **settings)
  with pytest.raises(UserError, match=message):
    mapping.recognise(readers.read(str(tmp_path)))


# -------------------------------------------------------------------------------------------------------- the way back
@pytest.mark.parametrize('name', ['bert', 'roberta', 'distilbert', 'gpt2', 'gpt2 as a classifier', 'llama',
                                  'llama, tied, large epsilon', 'llama as a classifier'])  # fmt: skip
def test_what_is_written_is_bit_by_bit_what_transformers_wrote_and_loads_there(name, tmp_path):
  model = _saved(name, tmp_path)
  from safetensors.torch import load_file

  found, _, variables = _opened(tmp_path)
  file = tmp_path / 'a.safetensors'
  notes = export.write(file, variables, found.origin.network, found.options, {}, 'transformers')
  written, given = load_file(file), load_file(tmp_path / 'model.safetensors')
  assert set(written) == set(given)
  for key, value in given.items():
    assert written[key].numpy().tobytes() == value.numpy().tobytes(), key
  assert any('heads=4, epsilon=' in note for note in notes)
  stated = type(model).from_pretrained(tmp_path).state_dict()
  (tmp_path / 'model.safetensors').unlink()
  file.rename(tmp_path / 'model.safetensors')
  again, said = type(model).from_pretrained(tmp_path, output_loading_info=True)
  assert not any(said[kind] for kind in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
  assert all((again.state_dict()[key] == value).all() for key, value in stated.items())


def test_networks_that_transformers_does_not_have_are_refused(tmp_path):
  options = {'vocabulary': 5, 'width': 8, 'depth': 1, 'heads': 2, 'hidden': 8, 'positions': 6, 'pooler': 'relu'}
  network = networks.build('bert', options, (4,), 2)
  variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), network.shapes())
  with pytest.raises(UserError, match="has pooler='tanh', and this one 'relu'"):
    export.write(tmp_path / 'a.safetensors', variables, 'bert', options, {}, 'transformers')


# ----------------------------------------------------------------------------------------------------------- tokenizers
WORDS = ['the', 'cat', 'sat', 'on', 'a', 'mat', 'and', 'dog', 'ran', 'by', 'old', 'house']


def _wordpiece(folder):
  """BERT's tokenizer.json with few words."""
  from tokenizers.implementations import BertWordPieceTokenizer

  special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
  numbers = {word: number for number, word in enumerate([*special, *WORDS])}
  made = BertWordPieceTokenizer(numbers)
  made.enable_truncation(5)
  made.enable_padding()
  made.save(str(folder / 'tokenizer.json'))


def _byte_level(folder):
  """GPT-2's tokenizer.json, of bytes alone."""
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers

  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
  made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
  made.add_special_tokens(['<|endoftext|>'])
  made.save(str(folder / 'tokenizer.json'))


def _reviews(folder, count=60):
  random = np.random.default_rng(0)
  texts = [' '.join(random.choice(WORDS, random.integers(2, 9))) for _ in range(count)]
  rows = [f'{int("cat" in text.split())}\t{text}' for text in texts]
  (folder / 'labelled.tsv').write_text('label\ttext\n' + '\n'.join(rows) + '\n')
  (folder / 'plain.txt').write_text('\n'.join(texts) + '\n')


def _classifier(folder, **changes):
  data = {'name': f'tsv:{folder}/labelled.tsv', 'tokens': {'length': 8}, 'batch_size': 10, 'validation': 0.2}
  return config.validate(
    Run,
    {
      'network': {'name': 'bert'},
      'source': {'weights': str(folder)},
      'target': {'data': data},
      'phases': [{'steps': 4, 'optimizer': 'adamw', 'learning_rate': 1e-3}],
      'evaluation': {'every': 4},
      **changes,
    },
  )


def test_the_tokenizer_beside_the_weights_reads_the_targets_texts(tmp_path):
  _saved('bert', tmp_path)
  _wordpiece(tmp_path)
  _reviews(tmp_path)
  prepared = prepare(_classifier(tmp_path))
  record = prepared.record['tokens']
  assert record['length'] == 8
  x = tokens.encode(['the cat sat', 'a zebra ' + 'on ' * 20], record)
  names = tokens.vocabulary(record)
  assert [names[number] for number in x[0] if number >= 0] == ['[CLS]', 'the', 'cat', 'sat', '[SEP]']
  assert [names[number] for number in x[1]] == ['[CLS]', 'a', '[UNK]', *['on'] * 4, '[SEP]']
  # Rows beyond the tokens that there are go with the others.
  assert len(names) == 40 and names[-1] == ''
  begun = start(prepared, prepared.weights).variables['params']['embed']['embedding']
  np.testing.assert_array_equal(begun, _opened(tmp_path)[2]['params']['embed']['embedding'])
  assert prepared.record['input_shape'] == [8]


def test_a_tokenizer_that_does_not_fit_the_weights_is_not_used():
  assert inputs.of_texts({'version': '1.0'}, 40, 8)[0] is None
  assert 'is not used' in inputs.of_texts({'version': '1.0'}, 40, 8)[1][0]


def test_a_tokenizer_of_more_tokens_than_rows_is_not_used(tmp_path):
  _wordpiece(tmp_path)
  record, said = inputs.of_texts(json.loads((tmp_path / 'tokenizer.json').read_text()), 12, 8)
  assert record is None and 'it has 17 tokens, they 12' in said[0]


def test_another_vocabulary_and_longer_texts_take_rows_by_token_and_positions_by_interpolation(tmp_path):
  _saved('bert', tmp_path)
  _wordpiece(tmp_path)
  _reviews(tmp_path)
  target = {'data': {'name': f'tsv:{tmp_path}/labelled.tsv', 'tokens': {'length': 30}, 'validation': 0.2}}
  rules = [('embed/positions', 'positions:linear'), ('embed', 'tokens'), ('head', 'init'), ('.*', 'copy')]
  network = {'name': 'bert', 'positions': 39}
  run = _classifier(tmp_path, target={**target, 'preprocessing': 'refit'}, transplant=rules, network=network)
  prepared = prepare(run)
  begun = start(prepared, prepared.weights).variables['params']['embed']
  given = _opened(tmp_path)[2]['params']['embed']
  names = tokens.vocabulary(prepared.record['tokens'])
  np.testing.assert_array_equal(begun['embedding'][names.index('cat')], given['embedding'][6])
  np.testing.assert_allclose(begun['positions'][::2], given['positions'], atol=1e-6)
  np.testing.assert_allclose(begun['positions'][1], given['positions'][:2].mean(axis=0), atol=1e-6)
  np.testing.assert_array_equal(begun['norm']['scale'], given['norm']['scale'])
  actions = {origin.path: (origin.action, origin.way) for origin in prepared.plan.origins}
  assert actions['embed/positions'] == ('positions', 'linear') and actions['embed/kinds'] == ('copy', '')
  longer = _classifier(tmp_path, target={'data': {**target['data'], 'tokens': {'length': 30}}})
  with pytest.raises(UserError, match=r'texts of 30 tokens, and it has 20 positions; nearest: data\.tokens\.length=20'):
    prepare(longer)


@pytest.mark.parametrize(
  'name', [pytest.param(name, marks=pytest.mark.long) for name in ('roberta', 'distilbert', 'gpt2 as a classifier')]
)
def test_a_pretrained_network_becomes_a_classifier_that_predicts(name, tmp_path):
  _saved(name, tmp_path)
  _wordpiece(tmp_path)
  _reviews(tmp_path)
  network = {'name': 'decoder' if 'gpt2' in name else 'bert'}
  done = transferlab.run(config.resolved(_classifier(tmp_path, network=network)), tmp_path / 'run')
  assert done['status'] == 'done'
  model = transferlab.load(tmp_path / 'run')
  both = model.outputs(['the cat sat on a mat', 'a dog'])
  np.testing.assert_allclose(both[1:], model.outputs(['a dog']), atol=1e-5)
  assert set(model.predict(['the cat', 'old'])) <= {0, 1}


@pytest.mark.long
def test_a_language_model_learns_on_and_becomes_a_classifier(tmp_path):
  model = peers.text_model('GPT2LMHeadModel', vocab_size=257, n_positions=40)
  model.save_pretrained(tmp_path)
  _byte_level(tmp_path)
  _reviews(tmp_path)
  data = {'name': f'text:{tmp_path}/plain.txt', 'tokens': {'length': 16}, 'batch_size': 4, 'validation': 0.2}
  run = _classifier(
    tmp_path, network={'name': 'decoder'}, target={'data': data}, transplant=[('.*', 'copy')],
    phases=[{'steps': 6, 'optimizer': 'adam', 'learning_rate': 1e-3}],
  )  # fmt: skip
  done = transferlab.run(config.resolved(run), tmp_path / 'run')
  assert done['selected']['test']['perplexity'] > 1
  text = commands.sample(tmp_path / 'run', 'the cat', 'length=9,temperature=0')
  assert text.startswith('the cat') and len(text) > len('the cat')
  with pytest.raises(UserError, match='40 positions; nearest: length=32'):
    commands.sample(tmp_path / 'run', 'the cat', 'length=90')
  commands.export(tmp_path / 'run', f'{tmp_path}/a.safetensors,names=transformers')
  again, network, variables = _opened(tmp_path / 'a.safetensors')
  assert again.preprocessing['tokens']['tokenizer'] == prepare(run).record['tokens']['tokenizer']
  trained = transferlab.load(tmp_path / 'run').variables
  jax.tree.map(np.testing.assert_array_equal, variables, jax.tree.map(np.asarray, trained))
  shown = '\n'.join(commands.inspect(str(tmp_path / 'a.safetensors')))
  assert 'a tokenizer of 257 tokens' in shown and 'block1/attention/key/bias  (o -> o, part=o:1/3); ' in shown
  network = {'name': 'decoder', 'pool': 'last'}
  then = _classifier(tmp_path, network=network, source={'weights': str(tmp_path / 'run')})
  prepared = prepare(then)
  assert {origin.path for origin in prepared.plan.origins if origin.action == 'init'} == {'head/kernel'}
  assert jnp.isfinite(prepared.network.apply(start(prepared, prepared.weights).variables, _tokens())[0]['head']).all()
