"""Every count and index that reaches the kernels: larger steps are split, others refused."""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kernels import library
from tests.tiny_models import NATIVE_FAMILIES, tiny_model
from tests.unit.engine.models.test_decoder import PlainEntry, TensorRunner, native_from, random_ids
from textmill.core.strategies import DecodingParameters
from textmill.engine import kernels
from textmill.engine.kernels.interface import SAMPLING_PARAMETERS, TRACE
from textmill.engine.kernels.status import Status, check_load, check_step, reason_of
from textmill.engine.models import native_runtime as native
from textmill.engine.models.errors import KernelRefusal, ModelUnusable
from textmill.engine.models.native_runtime import MAX_STEP_TOKENS
from textmill.engine.sampling.native_sampler import KernelSampler
from textmill.engine.sampling.token_records import SamplingState

MAX_SLOTS = 1024  # the most that TEXTMILL_SLOTS allows
VOCABULARY = 400
BOUNDARIES = (511, 512, 513, 600, 1024)


def test_logits_in_all_slots_that_a_setting_allows_are_those_of_a_sequence_alone() -> None:
    """Bit for bit, below and above the size of the kernels' buffers."""
    for is_int8 in (False, True):
        decoder = native_from(tiny_model("llama"), is_int8=is_int8, num_slots=MAX_SLOTS)
        runner = TensorRunner(decoder, prefix_bytes=0)
        prompts = [random_ids(3 + slot % 3, seed=slot) for slot in range(MAX_SLOTS)]
        alone = {}
        for slot in {0, 1, *(b - 1 for b in BOUNDARIES), 300, 510, 513}:
            row = PlainEntry(prompts[slot], 7)
            runner.prefill([(row, len(row.ids) - 1)])
            alone[slot] = runner.decode([row])[0].clone()
        for count in BOUNDARIES:
            rows = [PlainEntry(prompts[slot], slot) for slot in range(count)]
            runner.prefill([(row, len(row.ids) - 1) for row in rows])  # some 2,000 rows at once
            logits = runner.decode(rows)
            assert logits.shape == (count, VOCABULARY)
            for slot, wanted in alone.items():
                if slot < count:
                    assert torch.equal(logits[slot], wanted), (is_int8, count, slot)


def test_a_long_sequences_logits_do_not_share_memory_with_many_slots() -> None:
    """With more slots than tokens of a step, each part of a sequence would fill the same buffer."""
    folder = tiny_model("llama", context_length=MAX_STEP_TOKENS + 200)
    ids = random_ids(MAX_STEP_TOKENS + 150, seed=1)
    few, many = (
        TensorRunner(native_from(folder, is_int8=False, num_slots=number), prefix_bytes=0)
        for number in (2, MAX_SLOTS)
    )
    wanted = few.score(ids)
    found = many.score(ids)
    many.score(random_ids(9, seed=2))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("tokens", "positions", "slots", "wanted", "reason"),
    [
        ([5, -1], [0, 1], [0, 0], [0], "vocabulary"),
        ([5, VOCABULARY], [0, 1], [0, 0], [0], "vocabulary"),
        ([5, 6], [0, -1], [0, 0], [0], "position"),
        ([5, 6], [0, 256], [0, 0], [0], "position"),
        ([5, 6], [0, 300], [0, 1], [0], "position"),  # the cache would have room for it
        ([5, 6], [0, 1], [0, -1], [0], "slot"),
        ([5, 6], [0, 1], [0, 9], [0], "slot"),
        ([5, 6], [1, 0], [3, 3], [0], "order"),
        ([5, 6], [1, 1], [3, 3], [0], "order"),
        ([5, 6], [0, 1], [0, 0], [2], "wanted"),
        ([5, 6], [0, 1], [0, 0], [-1], "wanted"),
        ([5, 6], [0, 1], [0, 0], [0, 1, 1], "tokens"),
        ([], [], [], [0], "wanted"),
    ],
)
@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_a_step_that_names_what_does_not_exist_is_refused_and_the_next_one_works(
    family: str,
    tokens: list[int],
    positions: list[int],
    slots: list[int],
    wanted: list[int],
    reason: str,
) -> None:
    decoder = native_from(tiny_model(family), is_int8=True)
    good = decoder.forward([5, 6], [0, 1], [0, 0], [1]).clone()
    with pytest.raises(KernelRefusal, match=reason):
        decoder.forward(tokens, positions, slots, wanted)
    assert torch.equal(decoder.forward([5, 6], [0, 1], [0, 0], [1]), good)


@pytest.mark.parametrize("wanted", [[5, 1100], [600, 5], [-1], [1099, 1100]])
def test_a_step_in_parts_refuses_the_same(wanted: list[int]) -> None:
    decoder = native_from(tiny_model("llama"), is_int8=False, num_slots=MAX_SLOTS)
    count = 1100
    places = [row // MAX_SLOTS for row in range(count)]
    slots = [row % MAX_SLOTS for row in range(count)]
    with pytest.raises(KernelRefusal):
        decoder.forward([5] * count, places, slots, wanted)
    found = decoder.forward([5] * count, places, slots, [3, 511, 512, 1099]).clone()
    whole = decoder.forward([5] * count, places, slots, range(count))
    assert torch.equal(found, whole[[3, 511, 512, 1099]])


def test_a_step_may_be_empty() -> None:
    decoder = native_from(tiny_model("llama"), is_int8=False)
    assert decoder.forward([], [], [], []).shape == (0, VOCABULARY)
    runner = TensorRunner(decoder, prefix_bytes=0)
    row = PlainEntry([5, 6, 7], 1)
    runner.prefill([])
    runner.prefill([(row, 0)])
    assert row.num_cached == 0


def sampler() -> KernelSampler:
    return KernelSampler(native_from(tiny_model("llama"), is_int8=False, num_threads=2).sample)


def state(ids: list[int], **changes: Any) -> SamplingState:
    parameters = {"strategy": "sampling", "max_new_tokens": 9, "seed": 0, **changes}
    return SamplingState(DecodingParameters(**parameters), ids, 0)


@pytest.mark.parametrize("ids", [[-1], [VOCABULARY], [3, 2**31 - 1]])
def test_a_penalty_for_a_token_that_does_not_exist_is_refused(ids: list[int]) -> None:
    own = sampler()
    logits = torch.zeros(3, VOCABULARY)
    rows = [state([1]), state(ids, repetition_penalty=1.2), state([2])]
    with pytest.raises(KernelRefusal, match="vocabulary"):
        own.sample(logits.numpy(), rows, str)
    assert len(own.sample(logits.numpy(), [state([1])] * 3, str)) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": float("nan")},
        {"strategy": "top_p", "top_p": 0.0},
        {"strategy": "min_p", "min_p": 1.5},
        {"strategy": "top_k", "top_k": -3},
        {"repetition_penalty": 0.0},
    ],
)
def test_a_parameter_outside_of_its_range_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(KernelRefusal, match="parameter"):
        sampler().sample(np.zeros((1, VOCABULARY), np.float32), [state([1], **changes)], str)


@pytest.mark.parametrize(
    "logits",
    [
        torch.zeros(2, VOCABULARY),
        torch.zeros(1, VOCABULARY - 1),
        torch.zeros(1, VOCABULARY, dtype=torch.float64),
        torch.zeros(VOCABULARY, 1).T.expand(1, VOCABULARY)[:, ::1].as_strided((1, 400), (1, 0)),
    ],
    ids=["rows", "vocabulary", "type", "layout"],
)
def test_logits_of_another_shape_are_refused(logits: Tensor) -> None:
    with pytest.raises(KernelRefusal, match="shape"):
        sampler().sample(logits.numpy(), [state([1])], str)


def test_room_for_tokens_draws_and_traces_is_checked() -> None:
    decoder = native_from(tiny_model("llama"), is_int8=False)
    logits, tokens = torch.zeros(2, VOCABULARY), (ctypes.c_int32 * 2)()
    with pytest.raises(KernelRefusal):
        decoder.sample(logits, bytes(SAMPLING_PARAMETERS.size), tokens, None)
    short = ctypes.create_string_buffer(2 * TRACE.size - 1)
    with pytest.raises(KernelRefusal):
        decoder.sample(logits, bytes(2 * SAMPLING_PARAMETERS.size), tokens, short)


@pytest.mark.parametrize("slot", [-1, 9, 10])
def test_a_slot_that_the_cache_does_not_have_is_refused(slot: int) -> None:
    decoder = native_from(tiny_model("llama"), is_int8=False)
    cache = decoder.cache
    cache.values[:] = 1.0
    kept = cache.snapshot(0, 20)
    for call in (
        lambda: cache.release(slot),
        lambda: cache.wipe(slot, 20),
        lambda: cache.copy(0, slot, 0, 20),
        lambda: cache.copy(slot, 0, 0, 20),
        lambda: cache.snapshot(slot, 20),
        lambda: cache.restore(slot, kept, 20),
    ):
        with pytest.raises(IndexError, match="9 slots"):
            call()
    assert cache.values.all()


# ---- weights ---------------------------------------------------------------------------------


def spoiled(folder: Path, change: Callable[[Any], None]) -> Callable[[], object]:
    """Load weights that were changed after the checks of the files."""

    def load() -> object:
        original = native.NativeDecoder._load

        def load_changed(self: Any, weights: Any, *arguments: Any) -> None:
            weights.layers = list(weights.layers)
            change(weights)
            original(self, weights, *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native.NativeDecoder, "_load", load_changed)
            return native_from(folder, is_int8=True)

    return load


def narrower(weights: Any) -> None:
    weight, bias = weights.layers[1].qkv
    weights.layers[1].qkv = weight[:-1].copy(), bias


def shorter_norm(weights: Any) -> None:
    weights.layers[0].norm2 = weights.layers[0].norm2[0][:-8].copy(), None


def short_head(weights: Any) -> None:
    weights.head = weights.head[0][:-5].copy(), None


def flat_weight(weights: Any) -> None:
    weights.layers[0].out = weights.layers[0].out[0].flatten(), None


def one_layer_less(weights: Any) -> None:
    weights.layers.pop()


def one_layer_more(weights: Any) -> None:
    weights.layers.append(weights.layers[0])


@pytest.mark.parametrize(
    "change", [narrower, shorter_norm, short_head, flat_weight, one_layer_less, one_layer_more]
)
def test_weights_of_another_shape_are_refused_before_they_are_read(
    change: Callable[[Any], None],
) -> None:
    with pytest.raises(ModelUnusable, match="cannot load the model"):
        spoiled(tiny_model("llama"), change)()


class Failing:
    """The library, with one function that returns an error."""

    def __init__(self, name: str, code: int = Status.NO_MEMORY) -> None:
        self._name, self._code = name, code
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls[name] += 1
            return self._code if name == self._name else getattr(library(), name)(*arguments)

        return call


@pytest.mark.parametrize(
    "name",
    ["new", "set_linear", "set_norm", "set_cache", "set_rotary", "forward"],
)
def test_short_memory_while_loading_makes_the_model_unusable_and_leaves_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(f"textmill_{name}")
    monkeypatch.setattr("tests.unit.engine.models.test_decoder.library", lambda: failing)
    with pytest.raises(ModelUnusable, match="emory"):
        native_from(tiny_model("llama"), is_int8=True)
    assert failing.calls["textmill_free"] == (name != "new")


def test_numpys_own_memory_errors_are_reported_alike() -> None:
    def allocate(weights: Any) -> None:
        np.empty(1 << 59, np.uint8)

    with pytest.raises(ModelUnusable, match="emory"):
        spoiled(tiny_model("llama"), allocate)()


def test_refused_threads_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Failing("textmill_new", Status.NO_THREADS)
    monkeypatch.setattr("tests.unit.engine.models.test_decoder.library", lambda: failing)
    with pytest.raises(ModelUnusable, match="OMP_NUM_THREADS"):
        native_from(tiny_model("llama"), is_int8=True)


# ---- statuses --------------------------------------------------------------------------------


def test_the_statuses_are_those_of_the_kernels() -> None:
    text = (Path(kernels.__file__).parent / "status.h").read_text()
    body = text[text.index("enum Status") : text.index("};")]
    found = {name: int(code) for name, code in re.findall(r"(\w+) = (-?\d+),", body)}
    assert found == {status.name: status.value for status in Status}


def test_every_status_has_its_own_description() -> None:
    reasons = [reason_of(status) for status in Status if status != Status.OK]
    assert len(set(reasons)) == len(reasons)
    assert not any("returned" in reason for reason in reasons)
    assert "-99" in reason_of(-99)
    check_load(0)
    check_step(0)
    for check, error in ((check_load, ModelUnusable), (check_step, KernelRefusal)):
        for code in [*(s.value for s in Status if s != Status.OK), -99]:
            with pytest.raises(error):
                check(code)
