"""The engine: continuous batching on one thread. Knows nothing of Celery, SQL or HTTP."""

from textmill.engine.loop import InferenceEngine
from textmill.engine.requests import (
    Delta,
    EngineError,
    Generation,
    GenerationRequest,
    GenerationResult,
)
from textmill.engine.statistics import EngineStatistics

__all__ = [
    "Delta",
    "EngineError",
    "EngineStatistics",
    "Generation",
    "GenerationRequest",
    "GenerationResult",
    "InferenceEngine",
]
