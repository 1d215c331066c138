"""The error tree of the product.

TextmillError
├── SettingsError            an invalid setting or models file: the start is refused
├── ClientError              something the client sent; carries its HTTP status
│   ├── BadRequest           400
│   ├── Unauthorized         401, no valid credentials
│   ├── Forbidden            403, the credentials do not allow this
│   ├── NotFound             404
│   ├── Conflict             409
│   ├── Misdirected          421, a host name that is not this service's
│   ├── ValidationFailed     422, names every bad field at once
│   │   └── PromptRefused    422, by the moderation
│   ├── Unstorable           422, the database cannot store a value
│   └── Unavailable          has a time after which to retry
│       ├── RateLimited      429
│       ├── QueueFull        503
│       ├── ModelUnserved    503
│       ├── DiskNearlyFull   503
│       ├── TooManyStreams   503
│       └── StorageUnavailable   503, the database is unreachable or busy
│           └── StorageRefused   503, until its operator has fixed it
└── (cli.exits, finetune.errors, engine.models.errors and engine.requests add theirs)

Every class has a stable ``code`` that scripts may match; the message says what to do.
Knows nothing of Flask: ``backend.errors`` turns these into problem documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class TextmillError(Exception):
    """Root of the product's own errors; ``str(error)`` is a sentence for people."""

    code = "internal"


class SettingsError(TextmillError):
    """A setting or the models file cannot be used; the message names it."""

    code = "bad_setting"


class ClientError(TextmillError):
    """The request cannot be served in this form."""

    code = "client_error"
    http_status = 400


class BadRequest(ClientError):
    """The request cannot be read at all."""

    code = "bad_request"


class Unauthorized(ClientError):
    """The request needs credentials, or its credentials are not valid."""

    code = "unauthorized"
    http_status = 401


class Forbidden(ClientError):
    """The credentials are valid but do not allow this."""

    code = "forbidden"
    http_status = 403


class Misdirected(ClientError):
    """The request names a host that is not this service's."""

    code = "misdirected"
    http_status = 421


class NotFound(ClientError):
    """Nothing is stored under that id."""

    code = "not_found"
    http_status = 404


class Conflict(ClientError):
    """The present state of the job does not allow this."""

    code = "conflict"
    http_status = 409


@dataclass(frozen=True, slots=True)
class FieldError:
    """One bad field: its path in the request (``variants.0.top_k``) and what to do about it."""

    field: str
    message: str


MAX_FIELD_ERRORS = 300  # more than a run of variants can have without unknown fields
MAX_FIELD_CHARACTERS = 200  # of a name, which the client chooses


def _shortened(error: FieldError) -> FieldError:
    if len(error.field) <= MAX_FIELD_CHARACTERS:
        return error
    return FieldError(f"{error.field[:MAX_FIELD_CHARACTERS]}…", error.message)


class ValidationFailed(ClientError):
    """One or more fields of the request are refused."""

    code = "invalid_request"
    http_status = 422

    def __init__(self, errors: Sequence[FieldError]) -> None:
        """``errors`` of a hostile body may be many; the first ``MAX_FIELD_ERRORS`` are kept."""
        self.errors = [_shortened(error) for error in errors[:MAX_FIELD_ERRORS]]
        names = ", ".join(error.field or "body" for error in self.errors)
        num_more = len(errors) - len(self.errors)
        more = f", and {num_more:,} more" if num_more else ""
        super().__init__(f"Some fields are invalid: {names}{more}.")


class PromptRefused(ValidationFailed):
    """The moderation refuses the prompt."""

    code = "prompt_refused"

    def __init__(self) -> None:
        message = "the operator's rules do not allow this prompt; change it"
        super().__init__([FieldError("prompt", message)])


class Unavailable(ClientError):
    """The request is valid but cannot be served now; it may be repeated later."""

    code = "unavailable"
    http_status = 503

    def __init__(self, message: str, *, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class Quota:
    """What is left of a budget in a window of time.

    Attributes:
        window: ``minute`` or ``day``.
        limit: tokens in the whole window.
        left: tokens that are left.
        seconds: until the window ends.
        is_shared: whether it belongs to an address, and not to one client.
    """

    window: str
    limit: int
    left: int
    seconds: int
    is_shared: bool = False


class RateLimited(Unavailable):
    """This client has too many jobs waiting, or has ordered too many tokens."""

    code = "rate_limited"
    http_status = 429

    def __init__(
        self, message: str, *, retry_after_seconds: int, quotas: Sequence[Quota] = ()
    ) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds)
        self.quotas = tuple(quotas)


class QueueFull(Unavailable):
    """The queue has reached its limit."""

    code = "queue_full"


class ModelUnserved(Unavailable):
    """No worker serves the model, and jobs do not wait for one."""

    code = "model_unserved"


class DiskNearlyFull(Unavailable):
    """The disk has too little room for new jobs."""

    code = "disk_nearly_full"


class TooManyStreams(Unavailable):
    """The limit of open event streams and long polls is reached."""

    code = "too_many_streams"


class Unstorable(ClientError):
    """The database cannot store a value of the request that validation accepted."""

    code = "unstorable"
    http_status = 422


class StorageUnavailable(Unavailable):
    """The database is unreachable or busy; the request may succeed in a moment."""

    code = "storage_unavailable"


class StorageRefused(StorageUnavailable):
    """The database answers but refuses: it is read-only, full, damaged or not migrated.

    A worker keeps its result and tries again, as with the base class.
    """

    code = "storage_refused"
