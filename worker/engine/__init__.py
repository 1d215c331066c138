"""The engine: continuous batching on one thread. Knows nothing of Celery, SQL or HTTP."""

from worker.engine.loop import Engine, EngineStatistics
from worker.engine.requests import (
    Delta,
    EngineError,
    Generation,
    GenerationRequest,
    GenerationResult,
)

__all__ = [
    "Delta",
    "Engine",
    "EngineError",
    "EngineStatistics",
    "Generation",
    "GenerationRequest",
    "GenerationResult",
]
