"""The Prometheus metrics of the web process: its requests, and the queue in the database."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from flask import Response, g, request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from textmill.backend.services.container import Services
from textmill.backend.streams.responses import is_placeholder
from textmill.core.errors import ClientError
from textmill.core.problems import KINDS

_SECONDS = (0.002, 0.005, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)


class WebMetrics:
    """The metrics of the web process, in a registry of its own."""

    def __init__(self, services: Services) -> None:
        """Register the metrics; the queue is read at every scrape."""
        self.registry = CollectorRegistry()
        self._seconds = Histogram(
            "textmill_http_request_seconds",
            "Time to the first byte of the response, by route",
            ["method", "route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._answers = Counter(
            "textmill_http_answers_total",
            "Responses by route and status",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.registry.register(_Queue(services))

    def add_gauge(self, name: str, text: str, count: Callable[[], int]) -> None:
        """Add a number that is read at every scrape."""
        Gauge(name, text, registry=self.registry).set_function(count)

    def observe(self, response: Response) -> Response:
        """Count a response; all addresses without a route count as one."""
        if is_placeholder():
            return response
        route = str(request.url_rule) if request.url_rule else "none"
        method = request.method if request.url_rule else "any"
        self._answers.labels(method, route, str(response.status_code)).inc()
        started = g.get("started")
        if started is not None:
            self._seconds.labels(method, route).observe(time.perf_counter() - started)
        return response


class _Queue(Collector):
    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the state of the queue, or ``textmill_database_up 0`` alone."""
        up = GaugeMetricFamily("textmill_database_up", "Whether the database answered this scrape")
        try:
            queue = self._services.queue.state()
            failures = self._services.queue.failures()
        except ClientError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        numbers = {
            "textmill_queue_depth": ("Queued jobs", queue["depth"]),
            "textmill_jobs_running": ("Running jobs", queue["running"]),
            "textmill_workers": ("Workers seen within 30 s", len(queue["workers"])),
            "textmill_redis_up": ("Whether Redis answered", int(queue["redis"] == "ok")),
            "textmill_recent_tokens_per_second": (
                "Completion tokens per second in the last five minutes",
                queue["throughput"]["tokens_per_second"],
            ),
            "textmill_recent_waiting_seconds": (
                "Median wait of the jobs of the last five minutes",
                queue["waiting"]["median_seconds"] or 0.0,
            ),
        }
        for name, (text, value) in numbers.items():
            yield GaugeMetricFamily(name, text, value=value)
        left_out = GaugeMetricFamily(
            "textmill_problems",
            "Models, models files and workers that are left out",
            labels=["kind"],
        )
        for kind in KINDS:
            left_out.add_metric([kind], sum(p["kind"] == kind for p in queue["problems"]))
        yield left_out
        failed = GaugeMetricFamily(
            "textmill_recent_failures", "Jobs that failed in the last five minutes", labels=["code"]
        )
        for code, count in failures.items():
            failed.add_metric([code], count)
        yield failed
