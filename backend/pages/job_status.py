"""The state of a job, in phrases for the pages."""

from __future__ import annotations

from collections.abc import Sequence

from textmill.backend.pages.formats import fixed
from textmill.backend.pages.phrases import FINISH_SENTENCES, STATUS_LABELS, Phrase
from textmill.backend.response_models import JobView
from textmill.core.statuses import FINAL_STATUSES


def has_ended(job: JobView) -> bool:
    """Return whether a job is final."""
    return job["status"] in FINAL_STATUSES


def is_restarted(job: JobView) -> bool:
    """Return whether a worker was lost during this job, which has not ended."""
    num_lost = job["attempt"] - (job["status"] == "running")
    return not has_ended(job) and num_lost > 0


def queue_label(job: JobView) -> str:
    """Return the position of a queued job."""
    position = job["queue"]["position"] if job["queue"] else None
    return Phrase.NUMBER_IN_QUEUE.format(position=position) if position else Phrase.IN_QUEUE


def status_sentence(job: JobView) -> str:
    """Return the state of a job in a sentence."""
    if job["status"] == "running":
        return Phrase.CANCELING if job["cancel_requested"] else Phrase.GENERATING
    if job["status"] == "queued":
        return _queue_sentence(job)
    reason = job["finish_reason"]
    return FINISH_SENTENCES[reason] if reason else STATUS_LABELS[job["status"]]


def _queue_sentence(job: JobView) -> str:
    place = queue_label(job)
    queue = job["queue"]
    if queue is None or not queue["position"]:
        return place
    if queue["position"] == 1:
        place = Phrase.NEXT_IN_QUEUE
    if queue["eta_seconds"] is None:
        return place
    return Phrase.QUEUE_ESTIMATE.format(place=place, seconds=fixed(max(1, queue["eta_seconds"]), 0))


def ended_label(jobs: Sequence[JobView]) -> str:
    """Return how many of several jobs have ended."""
    ended, total = sum(map(has_ended, jobs)), len(jobs)
    return (Phrase.ALL_ENDED if ended == total else Phrase.SOME_ENDED).format(
        ended=ended, total=total
    )
