"""The models file: which models are served, and their sources.

Reads and checks the TOML only; ``engine.models`` loads the weights.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from textmill.core.catalog.sources import parse_source
from textmill.core.errors import SettingsError
from textmill.core.paths import expand_home
from textmill.core.settings import Settings

DEFAULT_PATH = Path(__file__).with_name("default_models.toml")
OWN_FILE = "models.toml"  # in the state folder; `textmill register` creates it
FINETUNE_FILE = "finetune.json"  # in a model's folder: the record of its fine-tuning
DTYPES = ("auto", "float32", "bfloat16", "int8")
MAX_FILE_BYTES = 1 << 20  # about 5,000 models; a larger file is not a models file
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEYS = {"name", "source", "adapter", "dtype", "default", "description"}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model to serve.

    Attributes:
        name: as in requests and in the web form.
        source: a Hub id, an absolute folder, an absolute ``.gguf`` file, or ``package:NAME``.
        adapter: absolute path of a PEFT folder that is merged at load, or ``None``.
        dtype: one of ``DTYPES``.
        is_default: whether requests without a model get this one.
        description: one line for visitors.
    """

    name: str
    source: str
    adapter: str | None
    dtype: str
    is_default: bool
    description: str


@dataclass(frozen=True, slots=True)
class Catalog:
    """The models of one models file, in its order."""

    models: tuple[ModelSpec, ...]

    def __iter__(self) -> Iterator[ModelSpec]:
        return iter(self.models)

    @property
    def names(self) -> tuple[str, ...]:
        """The models' names, in the file's order."""
        return tuple(model.name for model in self.models)

    @property
    def default(self) -> ModelSpec:
        """The model of requests that name none."""
        return next((model for model in self.models if model.is_default), self.models[0])

    def served(self, names: tuple[str, ...]) -> Catalog:
        """The part of the catalogue that ``TEXTMILL_SERVE`` names; all of it when that is empty.

        Raises:
            SettingsError: the models file has no model with one of the names.
        """
        for name in names:
            if name not in self.names:
                raise SettingsError(
                    f"TEXTMILL_SERVE names the model {name!r}, which is not in the models file;"
                    f" the file has {', '.join(self.names)}."
                )
        if not names:
            return self
        return Catalog(tuple(model for model in self.models if model.name in names))


def models_file(settings: Settings) -> Path:
    """The models file: the one of the settings, else of the state folder, else the packaged one.

    If the state folder's file exists but cannot be read, that is an error; there is no silent
    fallback.
    """
    if settings.models_path is not None:
        return settings.models_path
    own = settings.home / OWN_FILE
    return own if os.path.lexists(own) else DEFAULT_PATH


def load_catalog(settings: Settings) -> Catalog:
    """Read the models file of the settings.

    Raises:
        SettingsError: as ``read_catalog``.
    """
    return read_catalog(models_file(settings))


def read_catalog(path: Path) -> Catalog:
    """Read a models file.

    Raises:
        SettingsError: the file is missing or unreadable, is not TOML, or has an invalid entry.
    """
    try:
        text = _content(path).decode("utf-8")
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise SettingsError(f"The models file {path} is not valid TOML: {error}.") from error
        reason = getattr(error, "strerror", None) or str(error)
        raise SettingsError(
            f"The models file {path}: {reason}. Set TEXTMILL_MODELS to use another file."
        ) from error
    return parse_catalog(text, path)


def _content(path: Path) -> bytes:
    """The bytes of a regular file of bounded size; reading a pipe or a device might never end."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if stat.S_ISDIR(os.fstat(file.fileno()).st_mode):
            raise IsADirectoryError(None, "Is a directory")
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(None, "It is not a regular file")
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise OSError(None, f"It has more than {MAX_FILE_BYTES:,} bytes")
    return content


def parse_catalog(text: str, path: Path) -> Catalog:
    """Parse the text of a models file; relative paths in it refer to the folder of ``path``.

    Raises:
        SettingsError: it is not TOML, or has an invalid entry.
    """
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SettingsError(f"The models file {path} is not valid TOML: {error}.") from error
    entries = document.get("models")
    if not isinstance(entries, list) or not entries or set(document) != {"models"}:
        raise SettingsError(f"The models file {path} must contain only [[models]] tables.")
    models = tuple(_model(entry, index, path) for index, entry in enumerate(entries, 1))
    _check_together(models, path)
    return Catalog(models)


def _model(entry: object, index: int, path: Path) -> ModelSpec:
    where = f"The models file {path}, model {index}"
    if not isinstance(entry, dict):
        raise SettingsError(f"{where}: it must be a table.")
    unknown = sorted(set(entry) - _KEYS)
    if unknown:
        raise SettingsError(f"{where}: unknown key {unknown[0]!r}; known: {sorted(_KEYS)}.")
    name = _text(entry, "name", where)
    if not _NAME.fullmatch(name):
        raise SettingsError(f"{where}: name {name!r} must be 1 to 64 of A-Z a-z 0-9 . _ -")
    dtype = _text(entry, "dtype", where, "auto")
    if dtype not in DTYPES:
        raise SettingsError(f"{where}: dtype {dtype!r} must be one of {', '.join(DTYPES)}.")
    is_default = entry.get("default", False)
    if not isinstance(is_default, bool):
        raise SettingsError(f"{where}: default must be true or false.")
    adapter = _text(entry, "adapter", where, "") or None
    source = _text(entry, "source", where)
    try:
        source = _resolved(source, path.parent)
        if adapter is not None:
            adapter = str((path.parent / expand_home(adapter)).absolute())
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from error
    return ModelSpec(
        name=name,
        source=source,
        adapter=adapter,
        dtype=dtype,
        is_default=is_default,
        description=_text(entry, "description", where, ""),
    )


def _text(entry: dict[str, object], key: str, where: str, default: str | None = None) -> str:
    value = entry.get(key, default)
    if not isinstance(value, str) or (default is None and not value.strip()):
        raise SettingsError(f"{where}: {key} must be given as text.")
    return value


def _resolved(text: str, folder: Path) -> str:
    """The source with its path, if it is one, made absolute."""
    source = parse_source(text, folder)
    return str(Path(source.value).absolute()) if source.kind == "path" else text


def _check_together(models: tuple[ModelSpec, ...], path: Path) -> None:
    names = [model.name for model in models]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SettingsError(f"The models file {path} has two models named {twice[0]!r}.")
    if sum(model.is_default for model in models) > 1:
        raise SettingsError(f"The models file {path} marks more than one model as default.")
