"""Files that the program knows nothing of, mapped by a line of `names` for each layer: the logits are the peer's."""

import numpy as np
import peers
import pytest

import transferlab

pytestmark = pytest.mark.usefixtures('quick_compilation')


def _run(tmp_path, weights, names):
  """Our network with these weights, by a run whose phase moves nothing."""
  data = dict(name=f'npz:{tmp_path / "data.npz"}', batch_size=8, validation=None, test=0.5)
  run = dict(
    network=dict(name='mlp', hidden=[128, 64]),
    source=dict(weights=str(weights), names=names),
    transplant=[('.*', 'copy')],
    target=dict(data=data),
    phases=[dict(steps=1, learning_rate=0.0)],
  )
  transferlab.run(run, tmp_path / 'run')
  return transferlab.load(tmp_path / 'run')


@pytest.fixture
def inputs(tmp_path):
  """Images in 0 … 1, which are fed as they are."""
  random = np.random.default_rng(0)
  x, y = random.random((40, 6, 5, 1), np.float32), np.arange(40) % 4
  x[0, 0, 0], x[1, 0, 0] = 0, 1
  np.savez(tmp_path / 'data.npz', x=x, y=y)
  return x


def test_a_torch_sequential_gives_its_logits(tmp_path, inputs):
  torch = pytest.importorskip('torch')
  nn = torch.nn
  model = nn.Sequential(nn.Flatten(), nn.Linear(30, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 4))
  torch.save(model, tmp_path / 'whole.pt')
  names = [('1', 'layer1/linear', 'linear'), ('3', 'layer2/linear', 'linear'), ('5', 'head', 'linear')]
  found = _run(tmp_path, tmp_path / 'whole.pt', names).outputs(inputs)
  with torch.no_grad():
    expected = model(torch.from_numpy(inputs)).numpy()
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_keras_dense_128_64_gives_its_logits(tmp_path, inputs):
  module = peers.keras()
  module.backend.clear_session()
  layers = [module.layers.Dense(size, activation=kind) for size, kind in ((128, 'relu'), (64, 'relu'), (4, None))]
  model = module.Sequential([module.Input((6, 5, 1)), module.layers.Flatten(), *layers])
  model.save(tmp_path / 'dense.h5')
  names = [('dense', 'layer1/linear', 'same'), ('dense_1', 'layer2/linear', 'same'), ('dense_2', 'head', 'same')]
  found = _run(tmp_path, tmp_path / 'dense.h5', names).outputs(inputs)
  np.testing.assert_allclose(found, np.asarray(model(inputs)), atol=1e-6)
