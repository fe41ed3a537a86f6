"""Weights by their name on the Hugging Face hub: which file of a repository, fetched or out of the cache.

Uses the network, through huggingface_hub where it is installed. What is in the files is readers.py's affair.
"""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

from transferlab.errors import UserError, nearest
from transferlab.weights import folders, shards

PREFIX = 'hf:'
FORM = 'hf:ORG/NAME, hf:ORG/NAME@REVISION or hf:ORG/NAME/FILE'
# Seconds for the first answer. The library's own listing retries for half a minute where there is no network.
PATIENCE = 10


@dataclasses.dataclass(frozen=True)
class Spec:
  """`hf:REPOSITORY[@REVISION][/FILE]`, taken apart."""

  repository: str
  revision: str | None = None
  file: str | None = None


@dataclasses.dataclass(frozen=True)
class Fetched:
  """A file of the hub on this disk, with its shards beside it.

  Attributes:
    revision: the commit it is of.
    metadata: the repository's records: {'config': …}.
  """

  path: Path
  revision: str
  metadata: dict[str, Any]
  notes: tuple[str, ...] = ()


def parse(spec: str) -> Spec:
  """Takes a specification apart; revisions may be branches, tags, commits, or 'refs/pr/NUMBER'.

  Raises:
    UserError: another form.
  """
  name = r'[\w.-]+'
  match = re.fullmatch(rf'{PREFIX}({name}/{name})(?:@(refs/\w+/[^/@]+|[^/@]+))?(?:/(.+))?', spec)
  if not match or '..' in (match[3] or '').split('/'):
    raise UserError(f'{spec!r} is no file of the hub; the form is {FORM}')
  return Spec(match[1], match[2], match[3])


def fetch(spec: str) -> Fetched:
  """The weights of a repository: the file that is named, or the one that `folders` chooses.

  Without network, or with HF_HUB_OFFLINE=1, what the cache holds is read.

  Raises:
    UserError: huggingface_hub is not installed, no such repository, revision or file, no access, no network.
  """
  asked = parse(spec)
  library = _library()
  files, revision, notes = _listing(library, asked, spec)
  file = asked.file or _chosen(files, asked)
  if file not in files:
    near = ', '.join(nearest(file, files)) or 'it is empty'
    raise UserError(f'{spec}: there is no file {file!r} in {asked.repository}; nearest: {near}')
  fetched = _download(library, asked, revision, file, spec)
  if file.endswith(shards.SUFFIX):
    for shard in shards.names(fetched):
      _download(library, asked, revision, str(Path(file).with_name(shard)), spec)
  reading = lambda record: _download(library, asked, revision, record, spec).read_bytes()
  metadata, damaged = folders.records({record: functools.partial(reading, record) for record in files})
  return Fetched(fetched, revision, metadata, (f'{file} of revision {revision}', *notes, *damaged))


def _library() -> Any:
  try:
    import huggingface_hub
  except ImportError:
    raise UserError("weights of the hub need huggingface_hub: pip install 'transferlab[hf]'") from None
  return huggingface_hub


def _listing(library: Any, asked: Spec, spec: str) -> tuple[list[str], str, list[str]]:
  """(files of the repository, commit, notes), from the hub or else from the cache."""
  try:
    info = library.HfApi().model_info(asked.repository, revision=asked.revision, timeout=PATIENCE)
    return [sibling.rfilename for sibling in info.siblings or []], info.sha, []
  except Exception as error:  # its own errors, and those of whatever HTTP library it uses
    refusal = _refusal(error, asked, spec)
    if refusal is not None:
      raise refusal from None
    reason = _reason(error)
  try:
    folder = Path(library.snapshot_download(asked.repository, revision=asked.revision, local_files_only=True))
  except Exception:
    raise UserError(f'{spec}: the hub cannot be reached ({reason}), and the cache does not hold it') from None
  files = sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())
  return files, folder.name, [f'read from the cache: the hub cannot be reached ({reason})']


def _chosen(files: list[str], asked: Spec) -> str:
  """The weights on the uppermost level, or else below it."""
  found = folders.weights_among([file for file in files if '/' not in file]) or folders.weights_among(files)
  if len(found) == 1:
    return found[0]
  if found:
    shown = ', '.join(found[:8])
    raise UserError(f'hf:{asked.repository} holds several files of weights: {shown}; name one: {FORM}')
  shown = ', '.join(files[:12]) or 'nothing'
  raise UserError(f'hf:{asked.repository} holds no weights of a known name, but {shown}; name a file: {FORM}')


def _download(library: Any, asked: Spec, revision: str, file: str, spec: str) -> Path:
  """One file, from the cache where it is there."""
  try:
    return Path(library.hf_hub_download(asked.repository, file, revision=revision, local_files_only=True))
  except Exception:
    pass  # it is not there yet; or what is wrong shows again below
  try:
    return Path(library.hf_hub_download(asked.repository, file, revision=revision, etag_timeout=PATIENCE))
  except Exception as error:  # as above
    refusal = _refusal(error, asked, spec)
    if refusal is not None:
      raise refusal from None
    reason = _reason(error)
    raise UserError(f'{spec}: {file} is not in the cache, and the hub cannot be reached ({reason})') from None


def _refusal(error: Exception, asked: Spec, spec: str) -> UserError | None:
  """What the hub's answer says to the user; None where it did not answer, or broke off."""
  from huggingface_hub import errors

  if isinstance(error, errors.GatedRepoError):
    page = f'https://huggingface.co/{asked.repository}'
    return UserError(f'{spec}: {asked.repository} is gated; ask for access at {page} and log in with `hf auth login`')
  if isinstance(error, errors.RepositoryNotFoundError):
    return UserError(f'{spec}: the hub has no {asked.repository}, or it is private: then log in with `hf auth login`')
  if isinstance(error, errors.RevisionNotFoundError):
    return UserError(f'{spec}: {asked.repository} has no revision {asked.revision!r}')
  if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
    return UserError(f'{spec}: {asked.repository} has no such file ({_reason(error)})')
  status = getattr(getattr(error, 'response', None), 'status_code', None)
  if isinstance(status, int) and 400 <= status < 500 and status not in (408, 429):
    return UserError(f'{spec}: the hub refuses ({_reason(error)})')
  return None


def _reason(error: Exception) -> str:
  lines = [line for line in str(error).splitlines() if line.strip()]
  return f'{type(error).__name__}: {lines[0][:200]}' if lines else type(error).__name__
