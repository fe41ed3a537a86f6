"""Half of MNIST's digits to the other half: a network of 128 hidden units learns 0-4, then the same network 5-9.

The textbook example of transfer by weights: all of them are given to the same network (ten outputs, of which each half
uses five), which goes on to learn classes that it never saw from 20 examples of each. `mnist_halves.py:squared` does it
with plain gradient descent on squared errors.

python -m transferlab.main --config=configs/mnist_halves.py
Seen (seed 0, two CPU cores): test accuracy .878, 'squared' .871; 11 s, of which 5 pretrain. From scratch is no worse:
experiments/mnist_halves.md.
Data: tfds:mnist, prepared where TFDS_DATA_DIR says (TFDS fetches it where there is none; that needs TensorFlow once).
"""

import ml_collections


def get_config(arg: str = ''):
  """Adam on cross-entropy; 'squared': gradient descent on squared errors; 'smoke': a run of seconds."""
  smoke, squared = arg == 'smoke', arg == 'squared'
  data = dict(name='tfds:mnist', relabel=False, validation=0.1, batch_size=128)
  method = dict(optimizer='sgd', learning_rate=0.5) if squared else dict(optimizer='adam', learning_rate=1e-3)

  config = ml_collections.ConfigDict()
  config.seed = 0
  config.network = dict(name='mlp', hidden=[128])
  config.source = dict(
    data=dict(data, classes=[0, 1, 2, 3, 4]),
    phases=[dict(method, steps=20) if smoke else dict(method, epochs=5)],
  )
  config.target = dict(data=dict(data, classes=[5, 6, 7, 8, 9], validation=20, shots=20))
  config.transplant = [('.*', 'copy')]
  config.phases = [dict(method, train='.*', steps=20 if smoke else 200)]
  if squared:
    config.objective = [dict(term='squared_error')]
    config.source.objective = [dict(term='squared_error')]
  config.evaluation = dict(every=20)
  return config
