"""Parity with torchvision, PyTorch, timm, Keras and transformers where none is installed: answers are stored.

tests/make_parity.py wrote them. Files in their formats are made here, read, recognised and run.
"""

import json
from pathlib import Path

import jax
import numpy as np
import peers
import pytest
from safetensors.numpy import save_file

from transferlab import paths
from transferlab.networks import network as networks
from transferlab.weights import keras_export, mapping, readers

STORED = json.loads((Path(__file__).parents[1] / 'fixtures' / 'parity.json').read_text())
pytestmark = pytest.mark.usefixtures('quick_compilation')


def _written(case, folder):
  arrays = {name: peers.value_of(name, shape) for name, shape in case['shapes'].items()}
  if case['origin'] != 'keras':
    save_file(arrays, folder / 'a.safetensors')
    return folder / 'a.safetensors'
  layers: dict = {}
  for name, array in arrays.items():
    layer, _, weight = name.rpartition('/')
    layers.setdefault(layer, []).append((weight, array))
  keras_export.write(folder / 'a.h5', list(layers.items()))
  return folder / 'a.h5'


@pytest.mark.parametrize('case', STORED, ids=lambda case: f'{case["network"]}-{case["origin"]}-{case["side"]}')
def test_answers_are_those_that_the_peer_gave(case, tmp_path):
  found = mapping.recognise(readers.read(str(_written(case, tmp_path))))
  assert (found.origin.network, found.origin.name) == (case['network'], case['origin'])
  texts = case['network'] in ('bert', 'decoder')
  image, expected = (peers.tokens_of if texts else peers.image_of)(case['side']), np.array(case['answer'])
  network = networks.build(case['network'], found.options, image.shape[1:], len(expected))
  variables = {
    kind: paths.unflatten({path: np.asarray(leaf) for path, leaf in paths.flatten(tree).items()})
    for kind, tree in found.mapped.variables.items()
  }
  answer = np.asarray(jax.jit(network.apply)(variables, image)[0]['head'])[0]
  answer = answer[-1] if answer.ndim == 2 else answer  # of a language model what follows the text
  assert np.abs(answer - expected).max() < 1e-4 * np.abs(expected).max()
  assert expected.std() > 1e-3 * np.abs(expected).max()  # or anything would do
