"""Converts the strategies of ``core.strategies`` to documents."""

from __future__ import annotations

from textmill.backend.response_models import ParameterView, StrategyView
from textmill.core.strategies import (
    MAX_NEW_TOKENS,
    MAX_SEED,
    MAX_STOP_STRINGS,
    STRATEGIES,
)
from textmill.core.strategy_specs import CollectionSpec, StrategySpec

_COMMON: tuple[ParameterView, ...] = (
    {
        "name": "max_new_tokens",
        "type": "integer",
        "default": MAX_NEW_TOKENS.default,
        "minimum": 1,
        "maximum": None,
        "exclusive_minimum": False,
        "title": MAX_NEW_TOKENS.title,
        "description": MAX_NEW_TOKENS.description,
    },
    {
        "name": "seed",
        "type": "integer",
        "default": None,
        "minimum": 0,
        "maximum": MAX_SEED,
        "exclusive_minimum": False,
        "title": "Seed",
        "description": "The same seed gives the same text. Without one, a random seed is stored.",
    },
    {
        "name": "stop",
        "type": "array",
        "default": [],
        "minimum": None,
        "maximum": MAX_STOP_STRINGS,
        "exclusive_minimum": False,
        "title": "Stop at",
        "description": "The text ends before any of these strings.",
    },
)


def strategy_views() -> list[StrategyView]:
    """Present all strategies."""
    return [strategy_view(spec) for spec in STRATEGIES]


def strategy_view(spec: StrategySpec) -> StrategyView:
    """Present a strategy with its own parameters and the common ones."""
    own: list[ParameterView] = [
        {
            "name": parameter.name,
            "type": parameter.type,
            "default": parameter.default,
            "minimum": parameter.minimum,
            "maximum": parameter.maximum,
            "exclusive_minimum": parameter.exclusive_minimum,
            "title": parameter.title,
            "description": parameter.description,
        }
        for parameter in spec.parameters
    ]
    own += [_collection_view(collection) for collection in spec.collections]
    return {
        "name": spec.name,
        "title": spec.title,
        "description": spec.description,
        "parameters": [*own, *_COMMON],
    }


def _collection_view(collection: CollectionSpec) -> ParameterView:
    """Present a list or an object; its maximum is that of its entries."""
    return {
        "name": collection.name,
        "type": collection.type,
        "default": collection.default_json(),
        "minimum": None,
        "maximum": collection.max_items,
        "exclusive_minimum": False,
        "title": collection.title,
        "description": collection.description,
    }
