"""What experiments/hymenoptera.py leaves unsaid, chosen within its training photos: image size and weight decay.

python experiments/choices/hymenoptera.py --folder=DIR FILE …

For every file of weights and every size, features are pooled once, and scikit-learn's logistic regression on them is
cross-validated within DIR/train: four folds, five times over. Prints a table of accuracies by C.
"""

import sys

import jax
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import RepeatedStratifiedKFold

from transferlab import config, paths
from transferlab.data import preprocessing
from transferlab.data.settings import Data
from transferlab.data.sources import load
from transferlab.networks import layers
from transferlab.networks import network as networks
from transferlab.weights import mapping, readers

SIZES = (192, 227, 256, 288, 320)  # of the shorter side, and the square at its centre
GRID = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)


def features(file: str, data: Data) -> tuple[np.ndarray, np.ndarray]:
  """Pooled features [2, photos, channels] of the training photos as they are and mirrored, and their labels."""
  found = mapping.recognise(readers.read(file))
  assert found is not None and found.preprocessing is not None
  loaded = load(data, 0)
  x, label, _ = loaded.evaluated('train', loaded.preprocessing)
  x = np.asarray(x)
  network = networks.build(found.origin.network, found.options, x.shape[1:], 2)
  variables = {
    kind: paths.unflatten({path: np.asarray(leaf) for path, leaf in paths.flatten(tree).items()})
    for kind, tree in found.mapped.variables.items()
  }
  pooled = jax.jit(layers.unlooped(lambda variables, x: network.apply(variables, x, stop='head')[0]['pool']))
  record = found.preprocessing

  def of(images: np.ndarray) -> np.ndarray:
    parts = np.array_split(preprocessing.apply(images, record['shift'], record['scale']), 4)
    return np.concatenate([pooled(variables, part) for part in parts])

  return np.stack([of(x), of(x[:, :, ::-1])]), label


def accuracy(x: np.ndarray, label: np.ndarray, c: float) -> float:
  """The mean over folds; the mirrored photos train with the others, and are not tested on."""
  folds = RepeatedStratifiedKFold(n_splits=4, n_repeats=5, random_state=0).split(x[0], label)
  scores = []
  for train, test in folds:
    model = LogisticRegression(C=c, max_iter=3000).fit(np.concatenate(x[:, train]), np.tile(label[train], 2))
    scores.append(model.score(x[0][test], label[test]))
  return float(np.mean(scores))


def main() -> None:
  """Prints the table."""
  folder = next(a.partition('=')[2] for a in sys.argv[1:] if a.startswith('--folder='))
  print('| weights | size | ' + ' | '.join(f'C = {c:g}' for c in GRID) + ' |')
  print('|---|---:|' + '---:|' * len(GRID))
  for file in (a for a in sys.argv[1:] if not a.startswith('--')):
    for size in SIZES:
      data = config.validate(Data, {'name': f'folder:{folder}', 'resize': {'size': size}})
      x, label = features(file, data)
      scores = ' | '.join(f'{accuracy(x, label, c):.3f}' for c in GRID)
      print(f'| {file.rpartition("/")[2]} | {size} | {scores} |', flush=True)


if __name__ == '__main__':
  main()
