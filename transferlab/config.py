"""What a config may say, and how it is read: the machinery behind every schema. Reads config files.

A schema is a frozen pydantic model with a documented field for every key; it lives with what it describes
(`Data` in data/sources.py, `Phase` in training/phases.py, `Run` in experiment.py). Here: reading a config file,
overrides from the command line, errors as one message with the nearest valid key, the canonical form that
identifies a run, and the text of --help_config. Imports neither jax nor any part of the program that does,
so that a mistyped key is answered at once.
"""

import ast
import copy
import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import pydantic

from transferlab.errors import UserError, nearest, unknown


class Schema(pydantic.BaseModel):
  """Base of all schemas: frozen, strict about types, no unknown keys, no NaN or infinity."""

  model_config = pydantic.ConfigDict(extra='forbid', frozen=True, strict=True, allow_inf_nan=False)


# A field that does not determine results (cadence of logging, paths, device counts): outside a run's identity.
OUTSIDE: dict[str, Any] = {'identity': False}
# A field that came after runs had been made without it: outside at its default, so that these keep their identity.
LATER: dict[str, Any] = {'identity': 'unless default'}
# Steps and sizes are 32-bit numbers on the device.
LARGEST = 2**31 - 1
Positive = Annotated[int, pydantic.Field(gt=0, le=LARGEST)]
Rate = Annotated[float, pydantic.Field(ge=0, le=1e38)]  # float32
NonNegative = Annotated[int, pydantic.Field(ge=0, le=LARGEST)]
Fraction = Annotated[float, pydantic.Field(gt=0, lt=1)]
Share = Annotated[float, pydantic.Field(ge=0, lt=1)]
Seed = Annotated[int, pydantic.Field(ge=0, lt=2**32)]  # what a key of jax's holds
AnySchema = TypeVar('AnySchema', bound=Schema)


def tuples(value: Any) -> Any:
  """Lists of pairs as lists of tuples, which is how strict validation wants rules."""
  if isinstance(value, list):
    return [tuple(item) if isinstance(item, list) else item for item in value]
  return value


def read(spec: str) -> tuple[dict[str, Any], str]:
  """The config that `FILE.py` or `FILE.py:ARGUMENT` returns, as plain dicts, and the file's docstring.

  Raises:
    UserError: no such file, the file fails, or it has no `get_config`.
  """
  path, _, argument = spec.partition(':')
  file = Path(path)
  if not file.is_file():
    folders = (file if file.is_dir() else file.parent, Path('configs'))
    choices = next((found for found in (sorted(map(str, folder.glob('*.py'))) for folder in folders) if found), [])
    raise UserError(f'no config file {path!r}; nearest: {", ".join(nearest(path, choices)) or "none"}')
  module_spec = importlib.util.spec_from_file_location(f'transferlab_config_{file.stem}', file)
  if module_spec is None or module_spec.loader is None:
    raise UserError(f'{path} is not a Python file')
  module = importlib.util.module_from_spec(module_spec)
  bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
  try:
    module_spec.loader.exec_module(module)
    if not hasattr(module, 'get_config'):
      raise UserError(f'{path} defines no function get_config(arg)')
    config = plain(module.get_config(argument))
  except UserError:
    raise
  except (Exception, SystemExit) as error:
    raise UserError(f'{path} failed with {type(error).__name__}: {error}') from error
  finally:
    sys.dont_write_bytecode = bytecode
  if not isinstance(config, dict):
    raise UserError(f'{path}: get_config returned {type(config).__name__}, not a config')
  return config, module.__doc__ or ''


def plain(value: Any) -> Any:
  """ConfigDicts, tuples and NumPy scalars as dicts, lists and Python numbers."""
  if hasattr(value, 'to_dict'):
    value = value.to_dict()
  if isinstance(value, Mapping):
    return {str(key): plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain(item) for item in value]
  if type(value).__module__ == 'numpy' and hasattr(value, 'tolist'):
    return value.tolist()
  return value


def literal(text: str) -> Any:
  """An override's value: a Python literal where it is one (`None`, `0.1`, `[1, 2]`), else the text itself."""
  try:
    return plain(ast.literal_eval(text))
  except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
    return {'true': True, 'false': False}.get(text, text)


def override(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
  """A copy of the config with the dotted key set; numbers index lists, absent dicts are made.

  Raises:
    UserError: the key leads through something that is neither dict nor list, or past the end of a list.
  """
  config = copy.deepcopy(config)
  node: Any = config
  *parents, last = key.split('.')
  for depth, name in enumerate(parents):
    where = '.'.join(parents[: depth + 1])
    if isinstance(node, list):
      node = node[_index(node, name, where)]
    elif isinstance(node, dict):
      if node.get(name) is None:
        node[name] = {}
      node = node[name]
    if not isinstance(node, (dict, list)):
      raise UserError(f'--config.{key}: {where} is {node!r}, which has no keys')
  if isinstance(node, list):
    node[_index(node, last, key)] = value
  else:
    node[last] = value
  return config


def _index(items: list[Any], name: str, where: str) -> int:
  if not re.fullmatch('-?[0-9]+', name) or not -len(items) <= int(name) < len(items):
    raise UserError(f'--config.{where}: {name!r} is no index into a list of {len(items)}')
  return int(name)


def validate(schema: type[AnySchema], values: Any, where: str = 'config') -> AnySchema:
  """The values as an instance of the schema.

  Raises:
    UserError: one message with a line per problem: the key, what is wrong, and the nearest valid key.
  """
  check_plain(values, where)
  try:
    return schema.model_validate(values)
  except pydantic.ValidationError as error:
    lines = dict.fromkeys(_explain(schema, problem, where) for problem in error.errors())
    raise UserError('\n'.join(lines)) from None


def check_plain(value: Any, where: str) -> None:
  """Checks what schemas leave open (options, overrides of axes): it has to survive as JSON.

  Raises:
    UserError: NaN, infinity, or something that is neither number, string, list nor dict.
  """
  if isinstance(value, Mapping):
    for key, item in value.items():
      check_plain(item, f'{where}.{key}')
  elif isinstance(value, (list, tuple)):
    for number, item in enumerate(value):
      check_plain(item, f'{where}.{number}')
  elif isinstance(value, float) and not math.isfinite(value):
    raise UserError(f'{where}: {value} is not a finite number')
  elif value is not None and not isinstance(value, (str, int, float, Schema)):
    raise UserError(f'{where}: {value!r} is a {type(value).__name__}; configs hold numbers, strings, lists and dicts')


def _explain(schema: type[Schema], problem: Any, where: str) -> str:
  # Where a value may have several forms, pydantic adds the form's name, which is no key.
  forms = ('str', 'int', 'float', 'bool')
  location = [part for part in problem['loc'] if isinstance(part, int) or (part.isidentifier() and part not in forms)]
  key = '.'.join([where, *map(str, location)])
  kind, given = problem['type'], problem.get('input')
  if kind == 'extra_forbidden':
    parent = _schema_at(schema, problem['loc'][:-1])
    choices = list(parent.model_fields) if parent else []
    return f'{key}: no such key; nearest: {", ".join(nearest(str(problem["loc"][-1]), choices))}'
  if kind == 'missing':
    return f'{key}: is missing'
  message = problem['msg'].removeprefix('Value error, ')
  shown = '' if isinstance(given, Mapping) and kind == 'value_error' else f', not {given!r}'
  return f'{key}: {message[0].lower()}{message[1:]}{shown}'[:400]


def _schema_at(schema: type[Schema] | None, location: Sequence[Any]) -> type[Schema] | None:
  for part in location:
    if schema is None:
      return None
    if isinstance(part, str) and part in schema.model_fields:
      schema = next(_schemas(schema.model_fields[part].annotation), None)
  return schema


def _schemas(annotation: Any) -> Iterator[type[Schema]]:
  if isinstance(annotation, type) and issubclass(annotation, Schema):
    yield annotation
  for inner in get_args(annotation):
    yield from _schemas(inner)


def named(kind: str, name: str, table: Mapping[str, str]) -> Callable[..., Any]:
  """The function behind a name: a key of `table`, which says its module, or `module.path.function` of one's own.

  Raises:
    UserError: there is none; the nearest of the table is named.
  """
  module, _, attribute = name.rpartition('.')
  try:
    found = getattr(importlib.import_module(module or table[name]), attribute)
  except (KeyError, ImportError, AttributeError):
    raise unknown(kind, name, table) from None
  if not callable(found):
    raise unknown(kind, name, table)
  return found


def check_options(function: Any, options: Mapping[str, Any], where: str) -> dict[str, Any]:
  """The options of a network, term or the like, checked against the keyword-only arguments of its function.

  Raises:
    UserError: an option the function does not take, or a value of another type than it says.
  """
  fields: dict[str, Any] = {}
  for name, parameter in inspect.signature(function).parameters.items():
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
      default = ... if parameter.default is inspect.Parameter.empty else parameter.default
      fields[name] = (parameter.annotation, default)
  schema = pydantic.create_model(function.__name__, __base__=Schema, **fields)
  checked = validate(schema, dict(options), where)
  return {name: getattr(checked, name) for name in fields}


def resolved(config: Schema) -> dict[str, Any]:
  """All values, defaults included, ready for JSON."""
  return config.model_dump(mode='json')


def identity(config: Schema) -> dict[str, Any]:
  """The values that determine a run's results: `resolved` without the fields marked `OUTSIDE` (or `LATER`)."""
  values: dict[str, Any] = {}
  for name, field in type(config).model_fields.items():
    marked = field.json_schema_extra.get('identity') if isinstance(field.json_schema_extra, dict) else None
    value = getattr(config, name)
    if marked is False or (marked == 'unless default' and value == field.default):
      continue
    if isinstance(value, Schema):
      values[name] = identity(value)
    elif isinstance(value, list) and value and all(isinstance(item, Schema) for item in value):
      values[name] = [identity(item) for item in value]
    elif isinstance(value, dict) and value and all(isinstance(item, Schema) for item in value.values()):
      values[name] = {key: identity(item) for key, item in value.items()}
    else:
      values[name] = _as_json(value)
  # Keys beside the fields: the arguments of a network's function.
  return {**values, **{name: _as_json(value) for name, value in (config.model_extra or {}).items()}}


def _as_json(value: Any) -> Any:
  return json.loads(json.dumps(pydantic.TypeAdapter(Any).dump_python(value, mode='json')))


def digest(values: Any) -> str:
  """Sixteen hexadecimal digits that change when any of the values changes."""
  text = json.dumps(values, sort_keys=True, separators=(',', ':'), allow_nan=False)
  return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def differences(old: Any, new: Any, where: str = 'config') -> list[str]:
  """One line for each value in which two resolved configs differ."""
  if isinstance(old, dict) and isinstance(new, dict):
    keys = list(dict.fromkeys([*old, *new]))
    return [line for key in keys for line in differences(old.get(key), new.get(key), f'{where}.{key}')]
  if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
    return [line for i, pair in enumerate(zip(old, new)) for line in differences(*pair, f'{where}.{i}')]
  if old == new or (isinstance(old, float) and isinstance(new, float) and math.isclose(old, new, rel_tol=0)):
    return []
  return [f'{where}: {old!r} there, {new!r} here']


def document(schema: type[Schema], where: str = 'config', seen: tuple[type, ...] = ()) -> str:
  """Every key of the schema with its type, default and meaning: the text of --help_config."""
  lines: list[str] = []
  for name, field in schema.model_fields.items():
    default = 'required' if field.is_required() else f'default {field.get_default(call_default_factory=True)!r}'
    lines.append(f'{where}.{name}  ({_type_name(field.annotation)}; {default})')
    if field.description:
      lines.append(f'    {field.description}')
    for inner in _schemas(field.annotation):
      if inner not in (*seen, schema):
        sequence = '.0' if get_origin(field.annotation) is list else ''
        lines.append(document(inner, f'{where}.{name}{sequence}', (*seen, schema)))
  return '\n'.join(lines)


def _type_name(annotation: Any) -> str:
  origin, arguments = get_origin(annotation), get_args(annotation)
  if origin is Annotated:
    return _type_name(arguments[0])
  if origin in (Union, types.UnionType):
    return ' or '.join(dict.fromkeys(_type_name(argument) for argument in arguments))
  if origin is not None and arguments and not isinstance(arguments[0], str):
    inner = ', '.join('…' if argument is Ellipsis else _type_name(argument) for argument in arguments)
    return f'{getattr(origin, "__name__", origin)}[{inner}]'
  if arguments:
    return ' | '.join(repr(argument) for argument in arguments)
  return 'None' if annotation is type(None) else getattr(annotation, '__name__', str(annotation))
