"""A trained run in the hand: weights, preprocessing and predictions, without the command line. Reads a run's folder."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np

from transferlab import config, experiment, folder, results
from transferlab.data import encoding, preprocessing, tokens
from transferlab.data.examples import matched
from transferlab.data.settings import TABLES, Data
from transferlab.data.sources import READ, centred
from transferlab.data.sources import load as load_data
from transferlab.errors import UserError
from transferlab.preparation import Prepared, network_of, prepare
from transferlab.pretrained import Weights
from transferlab.settings import Run


@dataclasses.dataclass(frozen=True)
class Model:
  """A trained network with the preprocessing that belongs to it."""

  prepared: Prepared
  variables: dict[str, Any]

  @property
  def classes(self) -> tuple[str, ...]:
    """Names of the classes; empty for regression."""
    return self.prepared.loaded.info.classes

  def outputs(self, x: Any) -> Any:
    """The head's outputs on raw inputs: logits [examples, classes] or predictions [examples, targets].

    Of several tasks a dict of these, without auxiliary ones.

    Args:
      x: inputs as the data set gives them, not preprocessed: [examples, *input shape]. Images of one channel may lack
        the channel axis. Texts: strings. Tables: a list of dicts, a dict of columns or a data frame.

    Raises:
      UserError: inputs of another shape, with other columns, or with NaN.
    """
    record = self.prepared.record
    if 'tokens' in record or 'bag' in record:
      return self._of_texts(x)
    if record['columns'] and (hasattr(x, 'keys') or (isinstance(x, list) and x and isinstance(x[0], dict))):
      x = encoding.of_records(x, record.get('encoding') or encoding.plain(record['columns']))
    x, shape = np.asarray(x), tuple(record['input_shape'])
    if x.shape[1:] == shape[:-1] and shape[-1] == 1:
      x = x[..., None]
    if x.ndim == 4 and x.shape[1] >= shape[0] and x.shape[2] >= shape[1]:
      x = centred(x, self.prepared.loaded.crop)
    if x.shape[1:] != shape:
      raise UserError(f'inputs of shape {list(x.shape[1:])}; the network was trained on {list(shape)}')
    if x.dtype.kind == 'f' and not np.isfinite(x).all():
      raise UserError('inputs hold NaN or infinity')
    found, auxiliary = results.outputs_on(self.prepared, self.variables, x), self.prepared.loaded.info.auxiliary
    return {task: own for task, own in found.items() if task not in auxiliary} if auxiliary else found

  def _of_texts(self, texts: Any) -> Any:
    info = self.prepared.loaded.info
    if hasattr(texts, 'keys'):
      if len(info.columns) != 1 or info.columns[0] not in texts:
        raise UserError(f'texts are needed, or a table with the column {", ".join(info.columns) or "of texts"}')
      texts = texts[info.columns[0]]
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts:
      raise UserError('there are no texts')
    if info.task == 'next_token':
      raise UserError('a language model has an answer at every place of a text; see evaluate and generate')
    if strange := [text for text in texts if not isinstance(text, str)]:
      raise UserError(f'the network was trained on texts, and {strange[0]!r} is none')
    x = preprocessing.encoded(np.array(texts, object), info, self.prepared.record)
    return results.outputs_on(self.prepared, self.variables, x)

  def generate(self, prompt: str = '', **how: Any) -> str:
    """How a language model goes on with a text.

    Args:
      prompt: '' begins anew, as behind the end of a text.
      how: what `sampling.Sampling` has: length, temperature, top_k, top_p, seed.

    Raises:
      UserError: the network is no language model, or there is no such option.
    """
    import jax.numpy as jnp

    from transferlab import sampling

    record = self.prepared.record
    if self.prepared.loaded.info.task != 'next_token':
      raise UserError("only a language model, of data with task='next_token', goes on with a text")
    settings = config.validate(sampling.Sampling, how, 'sampling')
    end = tokens.end_of(record['tokens'])
    (numbers, _, _) = next(tokens.located([prompt], record['tokens']))
    added = sampling.sample(self.prepared.network, self.variables, jnp.array([end, *numbers], jnp.int32), settings)
    # Lines end as texts do: where the model has learnt from lines, an end reads as one.
    first, *others = np.split(np.asarray(added), np.flatnonzero(np.asarray(added) == end))
    # With the prompt, so that spaces stand between words there too.
    begun, whole = tokens.decode(numbers, record['tokens']), tokens.decode([*numbers, *first], record['tokens'])
    parts = [whole.removeprefix(begun), *(tokens.decode(part[part != end], record['tokens']) for part in others)]
    return '\n'.join(parts)

  def probabilities(self, x: Any) -> np.ndarray:
    """[examples, classes]. Raises `UserError` for regression, and for several tasks."""
    info = self.prepared.loaded.info
    if info.task == 'regression' or info.tasks:
      raise UserError('probabilities are for a single classification task')
    return results.probabilities(self.outputs(x), info.task)

  def predict(self, x: Any) -> Any:
    """The number of the likeliest class [examples]; for regression the predictions [examples, targets].

    Of several tasks a dict of these, without auxiliary ones.
    """
    info, outputs = self.prepared.loaded.info, self.outputs(x)
    if info.tasks:
      return {task: _predicted(own, info.tasks[task].task) for task, own in outputs.items()}
    return _predicted(outputs, info.task)

  def evaluate(self, data: Data, split: str = 'test') -> dict[str, Any]:
    """Metrics on a split of some data set."""
    x, label, _, info = self._data(data, split)
    outputs = results.outputs_on(self.prepared, self.variables, x)
    return results.measure(self.prepared.run.evaluation.metrics, outputs, label, info)

  def write_predictions(self, data: Data, split: str, path: Path) -> int:
    """A CSV row per example of the split; returns how many."""
    if self.prepared.loaded.info.task == 'next_token':
      raise UserError('a language model has an answer at every place of a text; see --evaluate and --sample')
    x, label, ids, info = self._data(data, split)
    results.write_predictions(path, results.outputs_on(self.prepared, self.variables, x), ids, info, label)
    return len(ids)

  def _data(self, data: Data, split: str) -> tuple[np.ndarray, Any, np.ndarray, Any]:
    mine, loaded = self.prepared.loaded.info, load_data(data, self.prepared.seed)
    if split != 'all' and split not in loaded.splits:
      raise UserError(f'{data.name} has no split {split!r} here; there are {", ".join([*loaded.splits, "all"])}')
    if (loaded.info.task == 'next_token') != (mine.task == 'next_token'):
      way = "; data of texts are for a language model with task='next_token' and tokens"
      raise UserError(f'{data.name} is for {loaded.info.task}, the run for {mine.task}{way}')
    rows = np.arange(len(loaded.examples)) if split == 'all' else loaded.splits[split]
    x, label, ids = loaded.evaluated(rows, self.prepared.record, self.prepared.window)
    return x, matched(label, loaded.info, mine, data.name), ids, mine


def _predicted(outputs: Any, task: str) -> np.ndarray:
  return np.asarray(outputs) if task == 'regression' else results.probabilities(outputs, task).argmax(axis=1)


def without_tasks(variables: Any, tasks: Any, head: str = 'head') -> Any:
  """The variables without the heads of these tasks."""
  return {
    kind: {
      stage: {name: leaf for name, leaf in own.items() if stage != head or name not in tasks}
      for stage, own in tree.items()
    }
    for kind, tree in variables.items()
  }


def load(workdir: Any, which: str = 'selected') -> Model:
  """See `transferlab.load`."""
  from transferlab import checkpoints

  place = folder_of(Path(workdir).expanduser(), which)
  if (place / 'config.json').is_file() and (baseline := experiment.load_run(place).baseline) is not None:
    kind = 'a baseline' if baseline.stage is None else 'a probe'
    raise UserError(f'{place} is {kind}: only its results and predictions are kept, and nothing can be loaded from it')
  path = checkpoints.find(str(place))
  prepared = prepare(_without_source(experiment.load_run(place)))
  record = checkpoints.progress(path)['preprocessing']
  weights = Weights(checkpoints.weights(path, which), record, str(path))
  network = network_of(prepared.run, prepared.loaded, record)  # its tokens may be those of a source
  return Model(dataclasses.replace(prepared, record=record, network=network), weights.variables)


def folder_of(place: Path, which: str) -> Path:
  """Where a run's weights stand: the candidate's folder where it chose among several.

  Raises:
    UserError: `which` is neither 'selected' nor 'last'.
  """
  if which not in ('selected', 'last'):
    raise UserError(f"which is 'selected' or 'last', not {which!r}")
  return folder.chosen(place)


def _without_source(run: Run) -> Run:
  """A finished run does without its source, which may be gone, and without all that looked at it in training."""
  # Rates and decay too: their rules may name parameters of terms.
  untrained: dict[str, Any] = {'objective': None, 'transform': [], 'learning_rate': 1e-3, 'weight_decay': 0.0}
  phases = [phase.model_copy(update=untrained) for phase in run.phases]
  evaluation = run.evaluation.model_copy(update={'forgotten': False})
  without: dict[str, Any] = {
    'source': None,
    'teachers': {},
    'transplant': None,
    'objective': None,
    'balancing': None,
    'phases': phases,
    'evaluation': evaluation,
    'target': run.target.model_copy(update={'data': run.target.data.model_copy(update={'labelled': True})}),
  }
  return run.model_copy(update=without)


def data_spec(text: str, like: Data) -> tuple[Data, str]:
  """`NAME[,key=value…][,split=NAME]` as data and a split: 'digits,half=0,split=test', 'npz:new.npz,split=all'.

  Args:
    like: the run's data, which say how data of the same kind are read: labels, columns, sizes of images.

  Raises:
    UserError: a key that data do not have.
  """
  name, *pairs = re.split(r',(?=\s*\w+\s*=)', text)
  kinds = [each.partition(':')[0] for each in (name, like.name)]
  kinds = ['table' if kind in TABLES else kind for kind in kinds]
  odd = name.rpartition(',')
  if odd[1] and '}' not in odd[2]:
    raise UserError(f'{text!r}: {odd[2]!r} is not key=value')
  values: dict[str, Any] = {'name': name}
  if kinds[0] == kinds[1]:
    values |= like.model_dump(include=like.model_fields_set & {*READ, 'task'} - {'name'})
  for pair in pairs:
    key, _, value = pair.partition('=')
    values[key.strip()] = config.literal(value)
  split = values.pop('split', 'test')
  return config.validate(Data, values, 'data'), str(split)
