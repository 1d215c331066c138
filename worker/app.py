"""The program ``textmill worker``: settings → models → engine → warm-up → tickets."""

from __future__ import annotations

import os
import sys
import warnings

import structlog
from celery.exceptions import CPendingDeprecationWarning
from prometheus_client import start_http_server

from textmill.core.errors import SettingsError, StorageUnavailable
from textmill.core.logs import configure_logs
from textmill.core.redaction import reason_of
from textmill.core.settings import Settings
from textmill.engine import EngineError
from textmill.engine.models.errors import ModelLoadError
from textmill.worker.intervals import Intervals
from textmill.worker.model_loading import load_models
from textmill.worker.process import EX_SOFTWARE, WorkerProcess
from textmill.worker.stop_signal import StopSignal

# sysexits.h
EX_CONFIG = 78  # a restart alone does not help: the models or the settings must change
EX_TEMPFAIL = 75  # a regular stop; start again at once, because the models changed
log = structlog.get_logger(__name__)


def main(settings: Settings, intervals: Intervals | None = None) -> int:
    """Run a worker until SIGTERM.

    Args:
        settings: of the process.
        intervals: for tests, which cannot wait until a lease of 30 s runs out.

    Returns:
        The exit code: 0 after a clean stop, ``EX_CONFIG`` if a restart cannot help,
        ``EX_SOFTWARE`` if the start failed, ``EX_TEMPFAIL`` if the models file requires a restart.
    """
    configure_logs(settings)
    # Celery warns of pickle when run as root, and of a default that we set; neither applies.
    warnings.filterwarnings("ignore", message="You're running the worker with superuser")
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)
    stop_signal = StopSignal()
    try:
        process = WorkerProcess(settings, load_models(settings), stop_signal, intervals)
        process.start()
    except (SettingsError, ModelLoadError) as error:
        # The supervisor shows this line as the reason why the worker is not running.
        sys.stderr.write(f"textmill: {error}\n")
        return EX_CONFIG
    except (StorageUnavailable, EngineError) as error:
        log.error(
            "worker_cannot_start", reason=str(error), cause=reason_of(error.__cause__ or error)
        )
        return EX_SOFTWARE
    if settings.worker_metrics_port:
        start_http_server(
            settings.worker_metrics_port, addr=settings.host, registry=process.metrics.registry
        )
    try:
        process.run()
    finally:
        process.stop()
    status = EX_TEMPFAIL if process.is_outdated else 0
    if process.model_watch.is_loading:  # a thread inside torch would disturb the interpreter's exit
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status
