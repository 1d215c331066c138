"""The strategy ``custom``: all filters and penalties together, each off by default.

``docs/decisions/0027-combined-filters.md`` gives their order and the reasons for it.
"""

from __future__ import annotations

from textmill.core.strategy_specs import (
    REPETITION_PENALTY,
    CollectionSpec,
    ParameterSpec,
    StrategySpec,
    temperature,
)

MAX_BIASES = 300  # as in OpenAI's API
MAX_BIAS = 100.0
MAX_BREAKERS = 32  # each is compared with every repetition's token
MAX_BREAKER_CHARACTERS = 64
MAX_DRY_RANGE = 131_072  # tokens; as long as the longest usual contexts

_FILTERS = (
    ParameterSpec(
        name="top_k",
        type="integer",
        default=0,
        minimum=0,
        maximum=None,
        title="Top-k",
        description="How many of the likeliest tokens may be drawn. 0 is off.",
    ),
    ParameterSpec(
        name="top_p",
        type="number",
        default=1.0,
        minimum=0.0,
        maximum=1.0,
        exclusive_minimum=True,
        title="Top-p",
        description="The probability that the smallest set of likely tokens reaches. 1 is off.",
    ),
    ParameterSpec(
        name="min_p",
        type="number",
        default=0.0,
        minimum=0.0,
        maximum=1.0,
        title="Min-p",
        description="The lowest probability, as a share of the likeliest token's. 0 is off.",
    ),
    ParameterSpec(
        name="typical_p",
        type="number",
        default=1.0,
        minimum=0.0,
        maximum=1.0,
        exclusive_minimum=True,
        title="Typical mass",
        description="The probability that the set of typical tokens reaches. 1 is off.",
        is_folded=True,
    ),
    ParameterSpec(
        name="top_n_sigma",
        type="number",
        default=0.0,
        minimum=0.0,
        maximum=10.0,
        title="Top-nσ",
        description="Keeps tokens within n standard deviations of the highest logit. 0 is off.",
        is_folded=True,
    ),
    ParameterSpec(
        name="xtc_probability",
        type="number",
        default=0.0,
        minimum=0.0,
        maximum=1.0,
        title="XTC probability",
        description="How often XTC excludes all likely tokens but the least likely. 0 is off.",
        is_folded=True,
    ),
    ParameterSpec(
        name="xtc_threshold",
        type="number",
        default=0.1,
        minimum=0.0,
        maximum=1.0,
        exclusive_minimum=True,
        title="XTC threshold",
        description="The probability from which XTC counts a token as likely.",
        is_folded=True,
    ),
)
_PENALTIES = (
    REPETITION_PENALTY,
    ParameterSpec(
        name="frequency_penalty",
        type="number",
        default=0.0,
        minimum=-2.0,
        maximum=2.0,
        title="Frequency penalty",
        description="Subtracted from a token's logit each time that the new text contains it.",
        is_folded=True,
    ),
    ParameterSpec(
        name="presence_penalty",
        type="number",
        default=0.0,
        minimum=-2.0,
        maximum=2.0,
        title="Presence penalty",
        description="Subtracted once from the logits of tokens that the new text contains.",
        is_folded=True,
    ),
)
_DRY = (
    ParameterSpec(
        name="dry_multiplier",
        type="number",
        default=0.0,
        minimum=0.0,
        maximum=10.0,
        title="DRY multiplier",
        description="Subtracted from tokens that would continue a repetition. 0 is off.",
        is_folded=True,
    ),
    ParameterSpec(
        name="dry_base",
        type="number",
        default=1.75,
        minimum=1.0,
        maximum=4.0,
        title="DRY base",
        description="The factor of DRY's penalty for each further repeated token.",
        is_folded=True,
    ),
    ParameterSpec(
        name="dry_allowed_length",
        type="integer",
        default=2,
        minimum=1,
        maximum=50,
        title="DRY allowed length",
        description="The repeated tokens from which DRY penalizes the next one.",
        is_folded=True,
    ),
    ParameterSpec(
        name="dry_range",
        type="integer",
        default=0,
        minimum=0,
        maximum=MAX_DRY_RANGE,
        title="DRY range",
        description="The number of last tokens that DRY reads. 0 is all.",
        is_folded=True,
    ),
)
LOGIT_BIAS = CollectionSpec(
    name="logit_bias",
    type="object",
    default=(),
    max_items=MAX_BIASES,
    title="Logit bias",
    description=(
        f"Numbers from -{MAX_BIAS:g} to {MAX_BIAS:g} that are added to logits, by token id."
    ),
)
DRY_SEQUENCE_BREAKERS = CollectionSpec(
    name="dry_sequence_breakers",
    type="array",
    default=("\n", ":", '"', "*"),
    max_items=MAX_BREAKERS,
    title="DRY sequence breakers",
    description=(
        "No repetition continues across the tokens of these strings. Of a string of several"
        " tokens, the last one counts."
    ),
)
CUSTOM = StrategySpec(
    name="custom",
    title="Custom",
    description="Draws with any filters and penalties together; each is off by default.",
    parameters=(temperature(1.0), *_FILTERS, *_PENALTIES, *_DRY),
    collections=(LOGIT_BIAS, DRY_SEQUENCE_BREAKERS),
)
