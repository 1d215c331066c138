"""The engine: continuous batching on one thread. Knows nothing of Celery, SQL or HTTP."""

from worker.engine.loop import Engine
from worker.engine.requests import (
    Delta,
    EngineError,
    Generation,
    GenerationRequest,
    GenerationResult,
)
from worker.engine.statistics import EngineStatistics

__all__ = [
    "Delta",
    "Engine",
    "EngineError",
    "EngineStatistics",
    "Generation",
    "GenerationRequest",
    "GenerationResult",
]
