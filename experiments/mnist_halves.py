"""Half of MNIST's digits to the other half, with Adam on cross-entropy and with gradient descent on squared errors.

TFDS_DATA_DIR=... python -m transferlab.main --config=experiments/mnist_halves.py

A 784-128-10 network learns 0-4 from all of their images; then the same network, with all its weights, learns 5-9 from
20 images of each. Data: tfds:mnist.
"""

import ml_collections


def get_config(arg: str = ''):
  """Copy against from scratch, in two ways of training, and two classical methods; 'smoke': a run of seconds."""
  smoke = arg == 'smoke'
  steps = 20 if smoke else 200
  data = dict(name='tfds:mnist', relabel=False, batch_size=128)
  adam, descent = dict(optimizer='adam'), dict(optimizer='sgd')
  squared = [dict(term='squared_error')]
  source = [dict(train='.*', steps=20) if smoke else dict(train='.*', epochs=5)]

  def trained(method: dict, pretrained: dict | None, objective: list | None, rates: list) -> dict:
    extra = (
      {} if pretrained is None else {'source.phases': [{**source[0], **pretrained}], 'source.objective': objective}
    )
    return {
      **({'source': None, 'transplant': None} if pretrained is None else extra),
      'objective': objective,
      'phases': [dict(method, train='.*', steps=steps)],
      'choose': {'phases.0.learning_rate': rates},
    }

  config = ml_collections.ConfigDict(convert_dict=False)
  config.base = dict(
    network=dict(name='mlp', hidden=[128]),
    source=dict(data=dict(data, classes=[0, 1, 2, 3, 4])),
    target=dict(data=dict(data, classes=[5, 6, 7, 8, 9], validation=20, shots=20)),
    transplant=[('.*', 'copy')],
    evaluation=dict(every=20),
  )
  fast, slow = [3e-4, 1e-3, 3e-3], [0.1, 0.3, 1.0]
  plain = {'network': None, 'source': None, 'transplant': None}
  config.axes = dict(
    method={
      'from scratch': trained(adam, None, None, fast),
      'all weights, fine-tuned': trained(adam, dict(adam, learning_rate=1e-3), None, fast),
      'from scratch, squared error': trained(descent, None, squared, slow),
      'all weights, squared error': trained(descent, dict(descent, learning_rate=0.5), squared, slow),
      'logistic regression': {
        **plain, 'baseline': dict(name='logistic_regression'), 'choose': {'baseline.C': [0.01, 0.1, 1.0]},
      },
      'nearest neighbours': {
        **plain, 'baseline': dict(name='nearest_neighbours'), 'choose': {'baseline.neighbours': [1, 3, 5]},
      },
    },
    seed=[0] if smoke else [0, 1, 2, 3, 4],
  )  # fmt: skip
  config.table = dict(baseline='from scratch')
  return config
