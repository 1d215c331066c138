"""A worker's metrics for Prometheus, served on a separate port if the settings name one."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from textmill.core.jobs.records import JobRecord
from textmill.core.jobs.store import Outcome
from textmill.engine import GenerationResult, InferenceEngine

_WAITS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)  # seconds
_RATES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # tokens per second


class WorkerMetrics:
    """The counters of one worker process, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self._waiting = Histogram(
            "textmill_job_waiting_seconds",
            "From a job's creation to its claim",
            buckets=_WAITS,
            registry=r,
        )
        self._first_token = Histogram(
            "textmill_job_first_token_seconds",
            "From a job's creation to its first token",
            buckets=_WAITS,
            registry=r,
        )
        self._rate = Histogram(
            "textmill_job_tokens_per_second",
            "Completion tokens a second of one job",
            buckets=_RATES,
            registry=r,
        )
        self._tokens = Counter(
            "textmill_completion_tokens_total", "Completion tokens written", ["model"], registry=r
        )
        self._ended = Counter(
            "textmill_jobs_ended_total", "Jobs ended", ["model", "status"], registry=r
        )
        self._failures = Counter(
            "textmill_job_failures_total", "Jobs failed, by code", ["code"], registry=r
        )

    def watch(self, engine: InferenceEngine) -> None:
        """Export the engine's figures at every scrape."""
        self.registry.register(_EngineMetrics(engine))

    def claimed(self, job: JobRecord) -> None:
        """Count a claimed job."""
        if job.started_at is not None:
            self._waiting.observe(max(0, job.started_at - job.created_at) / 1000)

    def ended(self, job: JobRecord, outcome: Outcome, result: GenerationResult) -> None:
        """Count a job whose end was written."""
        self._ended.labels(job.model, outcome.status).inc()
        self._tokens.labels(job.model).inc(outcome.num_completion_tokens)
        if outcome.error_code is not None:
            self._failures.labels(outcome.error_code).inc()
        if outcome.first_token_seconds is not None and job.started_at is not None:
            waited = max(0, job.started_at - job.created_at) / 1000
            self._first_token.observe(waited + outcome.first_token_seconds)
        if result.decode_seconds > 0 and outcome.num_completion_tokens > 1:
            self._rate.observe(outcome.num_completion_tokens / result.decode_seconds)


class _EngineMetrics(Collector):
    """The engine's figures at the time of a scrape."""

    def __init__(self, engine: InferenceEngine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """Yield one sample of each figure."""
        engine, seen = self._engine, self._engine.statistics()
        gauges = {
            "active_sequences": ("Sequences being decoded", engine.num_active),
            "waiting_sequences": ("Sequences not yet admitted", engine.num_waiting),
            "slots": ("Sequences that fit at once", engine.num_slots),
            "batch_occupancy": (
                "Mean share of the slots in use, over the last seconds",
                seen.mean_occupancy,
            ),
            "tokens_per_second": (
                "Completion tokens a second, over the last seconds",
                seen.tokens_per_second,
            ),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"textmill_engine_{name}", text, value=value)
        counters = {
            "steps": ("Steps the engine has made", engine.step_count),
            "draft_tokens": ("Tokens guessed ahead", seen.num_drafted),
            "accepted_draft_tokens": (
                "Tokens guessed ahead that were drawn, and so saved a step",
                seen.num_accepted,
            ),
        }
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(f"textmill_engine_{name}_total", text, value=value)
