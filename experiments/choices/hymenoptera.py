"""What experiments/hymenoptera.py leaves unsaid, chosen within its training photos: image size and weight decay.

python experiments/choices/hymenoptera.py --folder=DIR FILE …

For every file of weights and every size, features are pooled once, and scikit-learn's logistic regression on them is
cross-validated within DIR/train: four folds, five times over. Prints a table of accuracies by C.
"""

import sys

import jax
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import RepeatedStratifiedKFold, cross_val_score

from transferlab import config, paths
from transferlab.data import preprocessing
from transferlab.data.settings import Data
from transferlab.data.sources import load
from transferlab.networks import layers
from transferlab.networks import network as networks
from transferlab.weights import mapping, readers

SIZES = {
  '256, centre 224': dict(resize=dict(size=256), augment=dict(crop=224)),
  '224': dict(resize=dict(size=224)),
  '224, squeezed': dict(resize=dict(size=224, mode='exact')),
  '227': dict(resize=dict(size=227)),
}
GRID = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


def features(file: str, data: Data) -> tuple[np.ndarray, np.ndarray]:
  """Pooled features [photos, channels] of the training photos, and their labels."""
  found = mapping.recognise(readers.read(file))
  assert found is not None and found.preprocessing is not None
  loaded = load(data, 0)
  x, label, _ = loaded.evaluated('train', loaded.preprocessing)
  network = networks.build(found.origin.network, found.options, x.shape[1:], 2)
  variables = {
    kind: paths.unflatten({path: np.asarray(leaf) for path, leaf in paths.flatten(tree).items()})
    for kind, tree in found.mapped.variables.items()
  }
  pooled = jax.jit(layers.unlooped(lambda variables, x: network.apply(variables, x, stop='head')[0]['pool']))
  record, batches = found.preprocessing, np.array_split(np.asarray(x), 4)
  return np.concatenate(
    [pooled(variables, preprocessing.apply(batch, record['shift'], record['scale'])) for batch in batches]
  ), label


def main() -> None:
  """Prints the table."""
  folder = next(a.partition('=')[2] for a in sys.argv[1:] if a.startswith('--folder='))
  files = [a for a in sys.argv[1:] if not a.startswith('--')]
  print('| weights | size | ' + ' | '.join(f'C = {c:g}' for c in GRID) + ' |')
  print('|---|---|' + '---:|' * len(GRID))
  folds = RepeatedStratifiedKFold(n_splits=4, n_repeats=5, random_state=0)
  for file in files:
    for name, size in SIZES.items():
      x, label = features(file, config.validate(Data, {'name': f'folder:{folder}', **size}))
      scores = [cross_val_score(LogisticRegression(C=c, max_iter=3000), x, label, cv=folds).mean() for c in GRID]
      print(f'| {file.rpartition("/")[2]} | {name} | ' + ' | '.join(f'{score:.3f}' for score in scores) + ' |')


if __name__ == '__main__':
  main()
