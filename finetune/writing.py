"""Texts written by the product's own engine, as visitors would get them.

Knows nothing of what is made of the texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from textmill.core.strategies import MAX_SEED, STRATEGIES_BY_NAME, DecodingParameters, StrategyName
from textmill.engine import EngineError, Generation, GenerationRequest, InferenceEngine
from textmill.engine.models.loading import LoadedModel
from textmill.finetune.errors import TrainingError

STOP_SECONDS = 60.0  # a step of the largest models that we serve takes a fraction of it


def decoding_parameters(
    strategy: StrategyName, max_new_tokens: int, seed: int
) -> DecodingParameters:
    """A strategy with the parameters that a request gets which names none."""
    defaults: dict[str, Any] = {p.name: p.default for p in STRATEGIES_BY_NAME[strategy].parameters}
    return DecodingParameters(strategy, max_new_tokens, seed, **defaults)


def write_texts(
    model: LoadedModel, prompts: Sequence[str], parameters: DecodingParameters, num_slots: int
) -> list[str]:
    """Continue prompts, several at once.

    Args:
        model: must have been loaded for ``num_slots`` texts at least.
        prompts: what to continue.
        parameters: the same for all, but for the seed: each prompt has one more than the last.
        num_slots: texts at once.

    Returns:
        A text a prompt, in order, without the prompt.

    Raises:
        TrainingError: a prompt could not be continued; the message counts from 1.
    """
    engine = InferenceEngine({model.name: model}, num_slots=num_slots)
    engine.start()
    try:
        generations = [
            _submit(engine, model.name, prompts, number, parameters)
            for number in range(len(prompts))
        ]
        return [
            _text(generation, number, len(prompts)) for number, generation in enumerate(generations)
        ]
    finally:
        engine.stop(STOP_SECONDS)


def _submit(
    engine: InferenceEngine,
    name: str,
    prompts: Sequence[str],
    number: int,
    parameters: DecodingParameters,
) -> Generation:
    seed = (parameters.seed + number) % (MAX_SEED + 1)
    job_id = f"evaluation-{number + 1}"
    request = GenerationRequest(job_id, name, prompts[number], replace(parameters, seed=seed))
    try:
        return engine.submit(request)
    except EngineError as error:
        raise _failure(number, len(prompts), error) from error


def _text(generation: Generation, number: int, num_prompts: int) -> str:
    try:
        result = generation.result()
    except EngineError as error:
        raise _failure(number, num_prompts, error) from error
    if result.error is not None:
        raise _failure(number, num_prompts, result.error) from result.error
    return result.text


def _failure(number: int, num_prompts: int, error: Exception) -> TrainingError:
    return TrainingError(
        f"Prompt {number + 1} of {num_prompts} could not be continued: {error}"
        " Set evaluation.texts to 0 to go on without texts."
    )
