"""Settings, read once from the environment at an entry point and passed on as an argument.

Every setting's name, default and range stands in ``_FIELDS``; an unknown ``TEXTMILL_`` name or a
bad value stops the start with a sentence that names it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import urlsplit

from textmill.core.errors import SettingsError

PREFIX = "TEXTMILL_"

# Names that belong to the test suite and the benchmarks, never to the product.
_RESERVED_PREFIXES = ("TEXTMILL_TEST_", "TEXTMILL_BENCH_")


def _integer(minimum: int, maximum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = int(text.strip(), 10)
        if not minimum <= number <= maximum:
            raise ValueError
        return number

    parse.__doc__ = f"a whole number from {minimum} to {maximum}"
    return parse


def _seconds(minimum: float, maximum: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        number = float(text.strip())
        if not minimum <= number <= maximum:
            raise ValueError
        return number

    parse.__doc__ = f"a number of seconds from {minimum:g} to {maximum:g}"
    return parse


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError
        return text

    parse.__doc__ = "one of " + ", ".join(allowed)
    return parse


def _host(text: str) -> str:
    """a host name or an IP address"""  # noqa: D403, D415 - shown inside a sentence
    if not text or any(character.isspace() or character in "/@" for character in text):
        raise ValueError
    return text


def _path(text: str) -> Path:
    """a path"""  # noqa: D403, D415 - shown inside a sentence
    if not text or "\0" in text:
        raise ValueError
    return Path(text).expanduser().absolute()


def _database_url(text: str) -> str:
    """sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME"""  # noqa: D415 - shown inside a sentence
    if text.startswith(("postgresql://", "postgres://")):
        text = "postgresql+psycopg://" + text.split("://", 1)[1]
    if text.startswith("sqlite:///") and len(text) > len("sqlite:///"):
        return text
    if text.startswith("postgresql+psycopg://"):
        return text
    raise ValueError


def _redis_url(text: str) -> str:
    """redis://HOST:PORT/NUMBER, rediss://… or unix://PATH"""  # noqa: D415 - shown inside a sentence
    parts = urlsplit(text)
    if parts.scheme not in {"redis", "rediss", "unix"} or not (parts.netloc or parts.path):
        raise ValueError
    return text


def _kernels(text: str) -> str:
    """auto, off or the path of a folder"""  # noqa: D415 - shown inside a sentence
    return text if text in ("auto", "off") else str(_path(text))


def _names(text: str) -> tuple[str, ...]:
    """model names with commas between"""  # noqa: D403, D415 - shown inside a sentence
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise ValueError
    return names


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of one process; see the README for their meaning.

    Times are in seconds. ``redis_url`` is ``None`` where ``up`` runs an embedded server;
    ``num_slots`` is ``None`` where the device decides; ``serve`` is empty where all models are.
    """

    home: Path
    database_url: str
    host: str = "127.0.0.1"
    port: int = 8000
    redis_url: str | None = None
    models_path: Path | None = None
    serve: tuple[str, ...] = ()
    num_workers: int = 1
    num_slots: int | None = None
    cache_mib: int = 0  # bound on a worker's key-value cache; 0: half of the memory that is free
    kernels: str = "auto"  # "auto": compiled under ``home``; "off": PyTorch alone; or a folder
    max_queued: int = 1000
    max_queued_per_owner: int = 0  # 0: no limit of its own
    deadline_seconds: float = 86_400.0  # a job nobody could run for a day is failed, with a reason
    drain_seconds: float = 10.0  # leaves 20 s of the 30 s in which `up` promises to stop
    worker_metrics_port: int = 0  # 0: off; worker number n listens on this port + n - 1
    max_streams: int = 4096  # event streams and waits that the web process holds open at once
    max_streams_per_visitor: int = 2048  # of one address: one visitor cannot take all
    log_level: str = "info"
    log_format: str = "text"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Read the settings from a mapping like ``os.environ``.

        Raises:
            SettingsError: an unknown ``TEXTMILL_`` name, or a value that cannot be used.
        """
        known = {PREFIX + spec: (attribute, parse) for spec, (attribute, parse) in _FIELDS.items()}
        values: dict[str, object] = {}
        for name, text in environment.items():
            if not name.startswith(PREFIX) or name.startswith(_RESERVED_PREFIXES):
                continue
            if name not in known:
                raise SettingsError(_unknown(name, list(known)))
            attribute, parse = known[name]
            try:
                values[attribute] = parse(text)
            except (ValueError, OverflowError):
                wanted = (parse.__doc__ or "something else").strip()
                # A URL may hold a password, and this sentence goes into logs.
                shown = "not one that can be used" if name.endswith("_URL") else repr(text)
                raise SettingsError(f"{name} is {shown}; it must be {wanted}.") from None
        home = values.setdefault("home", Path(".textmill").absolute())
        values.setdefault("database_url", f"sqlite:///{home}/textmill.db")
        return cls(**values)  # type: ignore[arg-type]

    def to_environment(self) -> dict[str, str]:
        """The settings as environment variables, for a child process."""
        names = {attribute: PREFIX + name for name, (attribute, _) in _FIELDS.items()}
        result: dict[str, str] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if value is None or value == ():
                continue
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            result[names[item.name]] = text
        return result

    @property
    def kernel_dir(self) -> Path | None:
        """Where compiled kernels are kept; ``None`` where PyTorch is to compute alone."""
        if self.kernels == "off":
            return None
        return self.home / "kernels" if self.kernels == "auto" else Path(self.kernels)

    @property
    def sqlite_file(self) -> Path | None:
        """The SQLite file; ``None`` on PostgreSQL."""
        return Path(self.database_url.removeprefix("sqlite:///")) if self.is_sqlite else None

    @property
    def is_sqlite(self) -> bool:
        """Whether the texts are kept in a SQLite file."""
        return self.database_url.startswith("sqlite")


def _unknown(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]}?" if close else " The README lists the settings."
    return f"{name} is not a setting of Textmill.{hint}"


_FIELDS: dict[str, tuple[str, Callable[[str], object]]] = {
    "HOME": ("home", _path),
    "HOST": ("host", _host),
    "PORT": ("port", _integer(1, 65_535)),
    "DATABASE_URL": ("database_url", _database_url),
    "REDIS_URL": ("redis_url", _redis_url),
    "MODELS": ("models_path", _path),
    "SERVE": ("serve", _names),
    "WORKERS": ("num_workers", _integer(0, 64)),
    "SLOTS": ("num_slots", _integer(1, 1024)),
    "CACHE_MIB": ("cache_mib", _integer(0, 1 << 24)),
    "KERNELS": ("kernels", _kernels),
    "MAX_QUEUED": ("max_queued", _integer(1, 10_000_000)),
    "MAX_QUEUED_PER_OWNER": ("max_queued_per_owner", _integer(0, 10_000_000)),
    "DEADLINE_SECONDS": ("deadline_seconds", _seconds(1, 31_536_000)),
    "DRAIN_SECONDS": ("drain_seconds", _seconds(0, 3_600)),
    "WORKER_METRICS_PORT": ("worker_metrics_port", _integer(0, 65_535)),
    "MAX_STREAMS": ("max_streams", _integer(1, 1_000_000)),
    "MAX_STREAMS_PER_VISITOR": ("max_streams_per_visitor", _integer(1, 1_000_000)),
    "LOG_LEVEL": ("log_level", _choice("debug", "info", "warning", "error")),
    "LOG_FORMAT": ("log_format", _choice("text", "json")),
}
