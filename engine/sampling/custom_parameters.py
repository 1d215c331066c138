"""The parameters of the strategy ``custom`` in the memory layout of the kernels."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence

from textmill.core.strategies import DecodingParameters
from textmill.engine.kernels.interface import CUSTOM_PARAMETERS
from textmill.engine.sampling.filter_table import excludes_top
from textmill.engine.sampling.token_records import SamplingState


class CustomRows:
    """A ``CustomParameters`` for each row of that strategy, as long as this object exists.

    Attributes:
        addresses: of all rows, 0 for those of other strategies.
    """

    def __init__(self, states: Sequence[SamplingState]) -> None:
        """Write them; arrays of ``states`` must outlive the use of the addresses."""
        self.addresses = [0] * len(states)
        rows = [i for i, state in enumerate(states) if state.parameters.strategy == "custom"]
        if not rows:
            return
        self._memory = ctypes.create_string_buffer(CUSTOM_PARAMETERS.size * len(rows))
        start = ctypes.addressof(self._memory)
        for place, row in enumerate(rows):
            offset = place * CUSTOM_PARAMETERS.size
            CUSTOM_PARAMETERS.pack_into(self._memory, offset, *_fields(states[row]))
            self.addresses[row] = start + offset


def needs_ids(parameters: DecodingParameters) -> bool:
    """Whether a penalty applies to the tokens of the text."""
    return parameters.repetition_penalty != 1.0 or (
        parameters.strategy == "custom"
        and (
            parameters.frequency_penalty != 0.0
            or parameters.presence_penalty != 0.0
            or parameters.dry_multiplier > 0.0
        )
    )


def _fields(state: SamplingState) -> tuple[float, ...]:
    own, rules = state.parameters, state.rules
    return (
        0 if rules is None else _address(rules.bias_ids),
        0 if rules is None else _address(rules.biases),
        0 if rules is None else _address(rules.breaker_ids),
        own.dry_multiplier,
        own.dry_base,
        own.typical_p,
        own.xtc_threshold,
        own.frequency_penalty,
        own.presence_penalty,
        own.top_n_sigma,
        0 if rules is None else len(rules.bias_ids),
        0 if rules is None else len(rules.breaker_ids),
        min(state.position, len(state.ids)) if needs_ids(own) else 0,
        own.dry_allowed_length,
        own.dry_range,
        excludes_top(state),
    )


def _address(numbers: array[int] | array[float]) -> int:
    return numbers.buffer_info()[0] if numbers else 0
