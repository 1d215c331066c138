"""The statuses of a job, and which of them are final."""

from __future__ import annotations

from typing import Literal, get_args

FinalStatus = Literal["succeeded", "failed", "canceled"]
Status = Literal["queued", "running", "succeeded", "failed", "canceled"]
FINAL_STATUSES: tuple[str, ...] = get_args(FinalStatus)
STATUSES: tuple[str, ...] = get_args(Status)
