"""The body of a request to share a job or a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from textmill.backend.field_errors import field_errors
from textmill.core.errors import FieldError, ValidationFailed

MAX_SHARE_DAYS = 3_650


class ShareRequest(BaseModel):
    """The body of ``POST /jobs/{job_id}/share`` and ``POST /runs/{run_id}/share``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    expires_days: Annotated[
        float | None,
        Field(gt=0, le=MAX_SHARE_DAYS, description="Time until the link ends; null: never."),
    ] = None
    index: Annotated[
        bool | None, Field(description="Whether search engines may show the page.")
    ] = None


def parse_share_request(payload: object) -> ShareRequest:
    """Validate the body of a request to share.

    Raises:
        ValidationFailed: names every invalid field.
    """
    if not isinstance(payload, Mapping):
        raise ValidationFailed([FieldError("", "the body must be a JSON object")])
    try:
        return ShareRequest.model_validate(dict(payload))
    except ValidationError as error:
        raise ValidationFailed(field_errors(error)) from None
