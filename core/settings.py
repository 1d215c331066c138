"""Settings, read once from the environment at an entry point and passed on as an argument.

``Settings`` defines the name, default and range of every setting. An unknown ``TEXTMILL_`` name or
an invalid value stops the start with a message that names it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from textmill.core.errors import SettingsError
from textmill.core.oidc_settings import check_oidc
from textmill.core.setting_values import (
    ORIGINS,
    AbsolutePath,
    DatabaseUrl,
    Host,
    HostNames,
    Kernels,
    Names,
    OidcIssuer,
    OidcScopes,
    OptionalSeconds,
    OptionalText,
    Origins,
    People,
    RedisUrl,
    Seconds,
    Secret,
    UnusableValueError,
    Whole,
    is_loopback,
)

PREFIX = "TEXTMILL_"
DEMO_REQUEST_TOKENS = 4096
DEMO_KEEP_DAYS = 30.0
OPEN_UNSERVED_SECONDS = 60.0

# Names that belong to the test suite and the benchmarks, never to the product.
_RESERVED_PREFIXES = ("TEXTMILL_TEST_", "TEXTMILL_BENCH_")


def _integer(default: int | None, minimum: int, maximum: int, name: str | None = None) -> Any:
    """A field that takes whole numbers; ``name`` is that of the variable, if it is another one."""
    expected = f"a whole number from {minimum} to {maximum}"
    alias = None if name is None else PREFIX + name
    return Field(default, ge=minimum, le=maximum, description=expected, validation_alias=alias)


def _seconds(default: float, minimum: float, maximum: float) -> Any:
    """A field that takes a time."""
    expected = f"a number of seconds from {minimum:g} to {maximum:g}"
    return Field(default, ge=minimum, le=maximum, description=expected)


def _optional_number(minimum: float, maximum: float, unit: str) -> Any:
    """A field that takes a time, without a default."""
    expected = f"a number of {unit} from {minimum:g} to {maximum:g}"
    return Field(None, ge=minimum, le=maximum, description=expected)


class Settings(BaseSettings):
    """All settings of one process; see the README for their meaning.

    The variable of a setting is ``TEXTMILL_`` and its name in capitals, unless an alias is given. A
    field's description completes the sentence "it must be …". Times are in seconds. ``redis_url``
    is ``None`` if ``up`` runs an embedded server, ``num_slots`` if the device decides; ``serve`` is
    empty if all models are served.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=PREFIX, validate_by_name=True
    )

    home: AbsolutePath = Field(
        default_factory=lambda: Path(".textmill").absolute(), description="a path"
    )
    host: Host = Field("127.0.0.1", description="a host name or an IP address")
    port: Whole = _integer(8000, 1, 65_535)
    # Who may ask, and what each sees: docs/security.md.
    access: Literal["local", "demo", "team"] = Field(
        "local", description="one of local, demo, team"
    )
    # Host names of requests, besides the loopback ones.
    allowed_hosts: HostNames = Field((), description="host names separated by commas")
    # Proxies in front, each of which appends an address to X-Forwarded-For.
    trusted_proxies: Whole = _integer(0, 0, 16)
    # Of one address, in the modes demo and team; 0 removes all limits of requests by address.
    requests_per_minute: Whole = _integer(600, 0, 1_000_000)
    # Sites that may show the pages in a frame.
    embed_origins: Origins = Field((), description=ORIGINS)
    # Sites whose scripts may use the API.
    cors_origins: Origins = Field((), description=ORIGINS)
    # Signs the visitors' tokens; by default a file in ``home``.
    secret: Secret = Field(None, description="at least 32 characters", repr=False)
    # Single sign-on, in the modes demo and team: docs/security.md.
    oidc_issuer: OidcIssuer = Field(
        None,
        description="an address such as https://login.example.org (http on loopback hosts only)",
    )
    oidc_client_id: OptionalText = Field(None, description="the client's id at the provider")
    oidc_client_secret: OptionalText = Field(
        None, description="the client's secret at the provider", repr=False
    )
    oidc_scopes: OidcScopes = Field(
        "openid profile email", description="scopes separated by spaces, with openid"
    )
    # Become admin: verified emails, or subjects, which the provider chooses.
    oidc_admins: People = Field((), description="emails or subjects separated by commas")
    # May sign in; empty: everybody whom the provider signs in.
    oidc_allowed: People = Field((), description="emails, @domains or groups separated by commas")
    database_url: DatabaseUrl = Field(
        default_factory=lambda values: f"sqlite:///{values['home']}/textmill.db",
        description="sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME",
    )
    redis_url: RedisUrl = Field(
        None, description="redis://HOST:PORT/NUMBER, rediss://… or unix://PATH"
    )
    models_path: AbsolutePath | None = Field(
        None, description="a path", validation_alias=PREFIX + "MODELS"
    )
    serve: Names = Field((), description="model names separated by commas")
    num_workers: Whole = _integer(1, 0, 64, "WORKERS")
    num_slots: Whole | None = _integer(None, 1, 1024, "SLOTS")
    # Bound on a worker's key-value cache; 0: half of the free memory.
    cache_mib: Whole = _integer(0, 0, 1 << 24)
    # "auto": compiled under ``home``; "off": PyTorch alone; or a folder.
    kernels: Kernels = Field("auto", description="auto, off or the path of a folder")
    # A lower set than the processor's best one, to compare them: engine.kernels.instruction_sets.
    kernels_isa: Literal[
        "auto",
        "avx512vnni",
        "avx512",
        "avxvnni",
        "avx2",
        "generic",
        "i8mm",
        "dotprod",
        "neon",
    ] = Field(
        "auto",
        description=(
            "auto, avx512vnni, avx512, avxvnni, avx2 or generic; on ARM auto, i8mm, dotprod or neon"
        ),
    )
    # "auto": where the compiled kernels compute and few sequences run; texts are the same.
    speculation: Literal["auto", "off"] = Field("auto", description="auto or off")
    max_queued: Whole = _integer(1000, 1, 10_000_000)
    max_queued_per_owner: Whole = _integer(0, 0, 10_000_000)  # 0: no limit per owner
    max_queued_per_model: Whole = _integer(0, 0, 10_000_000)  # 0: no limit per model
    # The budgets of the modes demo and team, in core.access.budgets; 0 is no limit. Visitors of one
    # address together have four times as much.
    visitor_tokens_per_minute: Whole = _integer(8_000, 0, 1_000_000_000)
    visitor_tokens_per_day: Whole = _integer(100_000, 0, 1_000_000_000)
    visitor_max_queued: Whole = _integer(8, 0, 10_000)
    visitor_max_active: Whole = _integer(16, 0, 10_000)
    visitor_max_stored_bytes: Whole = _integer(8 * 1024 * 1024, 0, 1 << 40)
    key_tokens_per_minute: Whole = _integer(0, 0, 1_000_000_000)
    key_tokens_per_day: Whole = _integer(0, 0, 1_000_000_000)
    key_max_queued: Whole = _integer(500, 0, 1_000_000)
    # How long a job is kept after it ended, in days; 0: for ever. Unset: 30 in the mode demo, else
    # for ever. Shared jobs are kept.
    keep_days: OptionalSeconds = _optional_number(0, 36_500, "days")
    # Room that the disk of a SQLite database must have for new jobs; 0: any.
    min_free_mib: Whole = _integer(64, 0, 1 << 24)
    # The price of one request; unset: 4096 in the mode demo, else no limit.
    max_tokens_per_request: Whole | None = _integer(None, 1, 1_000_000_000)
    # How long a job waits at most whose model no worker serves when it is sent; 0: it is refused.
    # Unset: the deadline in the mode local, else 60 s.
    unserved_seconds: OptionalSeconds = _optional_number(0, 31_536_000, "seconds")
    # Who is asked before a prompt is stored and before a text is shown: core.moderation.
    moderation: str | None = Field(
        None, description="words:PATH, an http or https address, or python:MODULE:FUNCTION"
    )
    # What passes if it cannot be asked; a service on a private address must be allowed.
    moderation_fails: Literal["closed", "open"] = Field("closed", description="closed or open")
    moderation_private: Literal["off", "on"] = Field("off", description="off or on")
    # A job that no worker could run for a day fails, with a reason.
    deadline_seconds: Seconds = _seconds(86_400.0, 1, 31_536_000)
    # Leaves 20 s of the 30 s in which `up` promises to stop.
    drain_seconds: Seconds = _seconds(10.0, 0, 3_600)
    # 0: off; worker number n listens on this port + n - 1.
    worker_metrics_port: Whole = _integer(0, 0, 65_535)
    # Event streams and long polls that the web process holds open at once, in all and of one
    # address: one visitor cannot use all of them.
    max_streams: Whole = _integer(4096, 1, 1_000_000)
    max_streams_per_visitor: Whole = _integer(2048, 1, 1_000_000)
    # What /v1/chat/completions does for a model without a chat template: an error, or one prompt of
    # all messages, joined by blank lines.
    chat_fallback: Literal["off", "plain"] = Field("off", description="off or plain")
    # Whether a completion of OpenAI's API is canceled when its client disconnects before the end.
    cancel_on_disconnect: Literal["on", "off"] = Field("on", description="on or off")
    # The same of one visitor or key, in the modes demo and team; 0: no limit of its own.
    max_streams_per_owner: Whole = _integer(256, 0, 1_000_000)
    # The key with which `textmill generate` asks a server in the modes demo and team.
    api_key: str | None = Field(None, description="an API key", repr=False)
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="one of debug, info, warning, error"
    )
    log_format: Literal["text", "json"] = Field("text", description="one of text, json")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take arguments alone; only ``from_environment`` reads an environment."""
        return (init_settings,)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Read the settings from a mapping like ``os.environ``.

        Raises:
            SettingsError: an unknown ``TEXTMILL_`` name, or an invalid value.
        """
        known = {variable_of(name): name for name in cls.model_fields}
        own = {
            name: text
            for name, text in environment.items()
            if name.startswith(PREFIX) and not name.startswith(_RESERVED_PREFIXES)
        }
        source = EnvSettingsSource(cls)
        source.env_vars = {name.lower(): text for name, text in own.items() if name in known}
        invalid: dict[str, object] = {}
        try:
            settings = cls(**source())
        except ValidationError as error:
            invalid = {
                str(item["loc"][0]): item.get("ctx", {}).get("error")
                for item in error.errors(include_input=False)
            }
        problem = _first_problem(own, known, invalid)
        if problem is not None:
            raise SettingsError(problem)
        check_access(settings)
        check_oidc(settings)
        return settings

    @property
    def request_tokens(self) -> int:
        """The most tokens that one request may order; 0: no limit."""
        if self.max_tokens_per_request is not None:
            return self.max_tokens_per_request
        return DEMO_REQUEST_TOKENS if self.access == "demo" else 0

    @property
    def unserved_limit(self) -> float:
        """How long a job waits for a worker of its model, in seconds."""
        if self.unserved_seconds is not None:
            return min(self.unserved_seconds, self.deadline_seconds)
        return (
            min(OPEN_UNSERVED_SECONDS, self.deadline_seconds)
            if self.is_open
            else self.deadline_seconds
        )

    @property
    def kept_days(self) -> float:
        """How long jobs are kept after their end, in days; 0: for ever."""
        if self.keep_days is not None:
            return self.keep_days
        return DEMO_KEEP_DAYS if self.access == "demo" else 0.0

    @property
    def is_open(self) -> bool:
        """Whether principals see only what is theirs: the modes demo and team."""
        return self.access != "local"

    def to_environment(self) -> dict[str, str]:
        """The settings as environment variables, for a child process."""
        result: dict[str, str] = {}
        for name, value in self:
            if value is None or value == ():
                continue
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            result[variable_of(name)] = text
        return result

    @property
    def kernel_dir(self) -> Path | None:
        """The folder of compiled kernels; ``None`` if PyTorch computes alone."""
        if self.kernels == "off":
            return None
        return self.home / "kernels" if self.kernels == "auto" else Path(self.kernels)

    @property
    def sqlite_file(self) -> Path | None:
        """The SQLite file; ``None`` on PostgreSQL."""
        return Path(self.database_url.removeprefix("sqlite:///")) if self.is_sqlite else None

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is a SQLite file."""
        return self.database_url.startswith("sqlite")


def check_access(settings: Settings) -> None:
    """Refuse settings that would let strangers see everything, or that serve no host name.

    Raises:
        SettingsError: the sentence names what to set.
    """
    if settings.is_open and not settings.allowed_hosts:
        raise SettingsError(
            f"TEXTMILL_ACCESS={settings.access} needs TEXTMILL_ALLOWED_HOSTS: the host names under"
            " which people reach this service, such as demo.example.org."
        )
    if not settings.is_open and not settings.allowed_hosts and not is_loopback(settings.host):
        raise SettingsError(
            f"TEXTMILL_HOST is {settings.host!r}, which others can reach, and TEXTMILL_ACCESS is"
            " local, in which everybody sees and deletes everything. Set TEXTMILL_ACCESS=demo for"
            " strangers on a public page or TEXTMILL_ACCESS=team for people with keys. If only this"
            " machine can reach that address, as in a container whose port is published on"
            " 127.0.0.1, set TEXTMILL_ALLOWED_HOSTS=127.0.0.1,localhost."
        )


def variable_of(name: str) -> str:
    """The environment variable of a field of ``Settings``."""
    alias = Settings.model_fields[name].validation_alias
    return alias if isinstance(alias, str) else PREFIX + name.upper()


def _first_problem(
    own: dict[str, str], known: dict[str, str], invalid: dict[str, object]
) -> str | None:
    """The message on the first variable that cannot be used.

    Args:
        own: the variables that begin with the prefix, and their text.
        known: variable → field.
        invalid: field or variable whose value is refused → the validator's exception, if any.
    """
    for name, text in own.items():
        if name not in known:
            return _unknown(name, list(known))
        for key in {name, known[name]} & invalid.keys():
            field = Settings.model_fields[known[name]]
            # A URL may contain a password, and this message is logged.
            is_secret = name.endswith("_URL") or not field.repr
            shown = "not one that can be used" if is_secret else repr(text)
            return _invalid(name, shown, field.description, invalid[key])
    return None


def _unknown(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]}?" if close else " The README lists the settings."
    return f"{name} is not a setting of Textmill.{hint}"


def _invalid(name: str, shown: str, expected: str | None, error: object) -> str:
    reason = f" {error}" if isinstance(error, UnusableValueError) else ""
    return f"{name} is {shown}; it must be {expected}.{reason}"
