"""Losses of distillation side by side: cross-entropy on labels, and one of twelve others beside it.

python -m transferlab.main --config=experiments/distillation_losses.py

The CPU profile is a check of ordering only: a published ResNet-20 teaches a ResNet-8 on 5,000 images of CIFAR-10, 600
steps, two seeds. ':full' is the protocol of RepDistiller (Tian et al. 2020), for a GPU: CIFAR-100, ResNet-56 to
ResNet-20, 240 epochs of all training images, batches of 64, SGD at 0.05 divided by ten after 150, 180 and 210 epochs,
three seeds, the last step measured. Published for it, best on test: teacher 72.34, labels 69.06, KD 70.66, FitNets
69.21, AT 70.55, SP 69.67, VID 70.38, RKD 69.61, PKT 70.34, NST 69.60, CRD 71.16, DKD 71.97; ':full' was not run here.

Weights are that codebase's (DKD's its authors'), in the units of the terms here: hint and variational add over places
and channels where it averages, pkt over neighbours. Data: tfds:cifar10, tfds:cifar100. Weights of the teacher:
resnet20-12fca82f.th of akamaster/pytorch_resnet_cifar10, in weights/; others with
--config.base.teachers.large.weights=FILE.
"""

import ml_collections

LABELS = dict(term='cross_entropy')
# Height, width and channels of the three groups of blocks.
GROUPS = ((32, 32, 16), (16, 16, 32), (8, 8, 64))


def losses(student: list[str], teacher: list[str], memory: int) -> dict[str, list[dict]]:
  """The terms of each row, for the last blocks of each network's groups; `memory` are CRD's negatives."""
  both, sizes = dict(zip(student, teacher)), [height * width * channels for height, width, channels in GROUPS]
  middle, last = {student[1]: teacher[1]}, {student[2]: teacher[2]}
  vid = [
    dict(term='variational', name=f'variational_{mine}', stages={mine: theirs}, weight=1 / size)
    for (mine, theirs), size in zip(both.items(), sizes)
  ]
  return {
    'labels': [LABELS, dict(term='kd', weight=0.0)],  # compared with the teacher, and not taught
    'KD': [dict(LABELS, weight=0.1), dict(term='kd', temperature=4.0, weight=0.9)],
    'KD, standardised': [dict(LABELS, weight=0.1), dict(term='kd', temperature=2.0, standardize=True, weight=9.0)],
    'DKD': [LABELS, dict(term='dkd', alpha=1.0, beta=2.0, temperature=4.0, schedule=dict(warmup=1 / 12))],
    'DIST': [LABELS, dict(term='dist', temperature=4.0, weight=1 / 16)],
    'FitNets': [LABELS, dict(term='hint', stages=middle, weight=100 * 2 / sizes[1])],
    'AT': [LABELS, dict(term='attention_transfer', stages=both, squared=True, weight=1000.0)],
    'NST': [LABELS, dict(term='nst', stages=both, weight=50.0)],
    'VID': [LABELS, *vid],
    'SP': [LABELS, dict(term='similarity_preserving', stages=last, weight=3000.0)],
    'RKD': [LABELS, dict(term='relational', stages=last)],
    'PKT': [LABELS, dict(term='pkt', stages=last, weight=30000 / 64)],
    'CRD': [LABELS, dict(term='contrastive', stage=last, negatives=memory, weight=0.8)],
  }


def get_config(arg: str = ''):
  """Thirteen rows; 'smoke': three of them in seconds; 'full': as the docstring says."""
  smoke, full = arg == 'smoke', arg == 'full'
  data = dict(name='tfds:cifar100' if full else 'tfds:cifar10', batch_size=64, statistics='cifar10')
  if full:
    data |= dict(augment=dict(shift=4, flip=True))
  else:
    data |= dict(augment=dict(flip=True, views=2), fraction=0.004 if smoke else 0.1)
  schedule = dict(name='step', at=[150 / 240, 180 / 240, 210 / 240])
  method = dict(optimizer='momentum', learning_rate=0.05, weight_decay=5e-4, schedule=schedule)
  length = dict(epochs=240) if full else dict(steps=3 if smoke else 600)
  blocks = (['block3', 'block6', 'block9'], ['block9', 'block18', 'block27'])
  blocks = blocks if full else (['block1', 'block2', 'block3'], blocks[0])

  config = ml_collections.ConfigDict(convert_dict=False)  # axes have dotted keys
  published = dict(weights='weights/resnet20-12fca82f.th')
  pretrained = dict(data=data, network=dict(name='resnet', depth=56), phases=[dict(method, **length)])
  config.base = dict(
    network=dict(name='resnet', depth=20 if full else 8),
    target=dict(data=data),
    teachers=dict(large=pretrained if full else published),
    phases=[dict(method, **length)],
    evaluation=dict(batch_size=500, every=100_000),
  )
  rows = losses(*blocks, memory=16_384 if full else 1024)
  if smoke:
    rows = {name: rows[name] for name in ('labels', 'KD', 'CRD')}
  config.axes = dict(loss={name: {'objective': terms} for name, terms in rows.items()})
  config.axes |= dict(seed=[0] if smoke else [0, 1, 2] if full else [0, 1])
  config.table = dict(rows='loss', baseline='labels', which='last', also=['test:agreement', 'test:calibration_error'])
  return config
