"""The static step of the GPU path: on a GPU if there is one, and on a CPU without the recording."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file
from structlog.testing import capture_logs

from tests.tiny_models import NATIVE_FAMILIES, tiny_model
from tests.unit.engine.models.test_decoder import (
    NUM_SLOTS,
    PREFIX_BYTES,
    PlainEntry,
    decoded,
    random_ids,
    reference,
)
from textmill.engine.models.attention import fused
from textmill.engine.models.cuda_graphs import (
    CudaRecorder,
    GraphRunner,
    Recorder,
    bucket_of,
    buckets,
    run_directly,
)
from textmill.engine.models.decoder import Decoder, in_torch
from textmill.engine.models.families import describe, load_weights

families = pytest.mark.parametrize("family", NATIVE_FAMILIES)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])


class FailingRecorder:
    """Records a number of steps, then fails as CUDA does."""

    def __init__(self, num_good: int) -> None:
        self.num_good = num_good
        self.num_calls = 0
        self.num_plays = 0

    def __call__(self, compute: Callable[[], None]) -> Callable[[], None]:
        self.num_calls += 1
        compute()  # what is recorded is also computed, at least in part
        if self.num_calls > self.num_good:
            raise RuntimeError("CUDA error: operation not permitted\nwhen stream is capturing")

        def play() -> None:
            self.num_plays += 1
            compute()

        return play


def graph_runner(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    record: Recorder | None = None,
    device: str = "cpu",
) -> GraphRunner:
    spec = describe(json.loads((folder / "config.json").read_text()))
    assert spec is not None
    weights = load_weights(spec, load_file(folder / "model.safetensors"))
    decoder = Decoder(
        spec, in_torch(weights, dtype, torch.device(device)), NUM_SLOTS, attention=fused
    )
    return GraphRunner(decoder, NUM_SLOTS, prefix_bytes=PREFIX_BYTES, record=record)


@devices
@families
def test_logits_are_those_of_transformers_in_any_slots(family: str, device: str) -> None:
    folder = tiny_model(family)
    texts = [random_ids(length, length) for length in (3, 70, 9, 140)]
    rows = [PlainEntry(text[:2], slot) for text, slot in zip(texts, (8, 0, 5, 2), strict=True)]
    found = decoded(graph_runner(folder, device=device), rows, [text[2:] for text in texts])
    for text, logits in zip(texts, found, strict=True):
        torch.testing.assert_close(logits, reference(folder, text)[1:-1], rtol=0, atol=1e-4)


@devices
@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_has_the_same_last_bit_alone_and_beside_any_others(
    family: str, dtype: torch.dtype, device: str
) -> None:
    folder = tiny_model(family)
    text = random_ids(90, 1)
    runner = graph_runner(folder, dtype, device=device)
    alone = decoded(runner, [PlainEntry(text[:2], 3)], [text[2:]])[0]
    others = [random_ids(length, length + 7) for length in (200, 5, 60)]
    rows = [PlainEntry(t[:2], slot) for t, slot in zip([text, *others], (3, 0, 7, 4), strict=True)]
    runner = graph_runner(folder, dtype, device=device)
    beside = decoded(runner, rows, [t[2:] for t in [text, *others]])[0]
    assert torch.equal(alone, beside)


@needs_gpu
@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_recorded_step_computes_what_it_computes_directly(
    family: str, dtype: torch.dtype
) -> None:
    folder, text = tiny_model(family), random_ids(140, 6)
    recorded = graph_runner(folder, dtype, device="cuda")
    direct = graph_runner(folder, dtype, record=run_directly, device="cuda")
    found, wanted = (
        decoded(runner, [PlainEntry(text[:2], 3)], [text[2:]])[0] for runner in (recorded, direct)
    )
    assert torch.equal(found, wanted)


@needs_gpu
def test_a_step_that_cuda_cannot_record_runs_directly() -> None:
    class Unrecordable(CudaRecorder):
        def __call__(self, compute: Callable[[], None]) -> Callable[[], None]:
            def waiting() -> None:
                compute()
                torch.cuda.synchronize()  # CUDA does not record waits of the host

            return super().__call__(waiting)

    folder, text = tiny_model("llama"), random_ids(140, 5)
    wanted = decoded(graph_runner(folder, device="cuda"), [PlainEntry(text[:2], 3)], [text[2:]])[0]
    with capture_logs() as logs:
        runner = graph_runner(folder, record=Unrecordable(), device="cuda")
        found = decoded(runner, [PlainEntry(text[:2], 3)], [text[2:]])[0]
    assert torch.equal(found, wanted)
    assert [entry["event"] for entry in logs] == ["step_not_recorded"]


def test_a_prompt_that_is_being_prefilled_is_not_disturbed_by_running_texts() -> None:
    folder = tiny_model("gpt_neo")
    runner = graph_runner(folder)
    prompt, running = random_ids(60, 2), PlainEntry(random_ids(4, 3), 1)
    waiting = PlainEntry(prompt, 0)
    runner.prefill([(running, 3)])
    for end in range(10, 60, 10):
        runner.prefill([(waiting, end)])
        runner.decode([running])
        running.ids.append(7)
    runner.prefill([(waiting, 59)])
    logits = runner.decode([waiting])[0]
    torch.testing.assert_close(logits, reference(folder, prompt)[-1], rtol=0, atol=1e-4)


def test_one_step_is_made_for_each_bucket_of_live_positions() -> None:
    runner = graph_runner(tiny_model("llama"))
    runner.warm_up()
    assert runner.num_steps == 3  # 64, 128 and 256, the context
    row = PlainEntry(random_ids(5, 4), 0)
    runner.prefill([(row, 4)])
    runner.decode([row])
    assert runner.num_steps == 3


@pytest.mark.parametrize("num_good", [0, 1, 2, 3], ids="{} recorded before".format)
@pytest.mark.parametrize("is_warm", [False, True], ids=["when needed", "before ready"])
def test_a_step_that_cannot_be_recorded_runs_directly_with_the_same_logits(
    num_good: int, is_warm: bool
) -> None:
    folder, text = tiny_model("llama"), random_ids(140, 5)  # needs the shapes 64, 128 and 256
    wanted = decoded(graph_runner(folder), [PlainEntry(text[:2], 3)], [text[2:]])[0]
    recorder = FailingRecorder(num_good)
    with capture_logs() as logs:
        runner = graph_runner(folder, record=recorder)
        if is_warm:
            runner.warm_up()
        found = decoded(runner, [PlainEntry(text[:2], 3)], [text[2:]])[0]
    assert torch.equal(found, wanted)
    assert runner.num_steps == 3
    assert recorder.num_calls == min(num_good + 1, 3)  # not tried again
    assert (recorder.num_plays > 0) == (num_good > 0)  # earlier recordings stay in use
    assert [entry["event"] for entry in logs] == ["step_not_recorded"] * (num_good < 3)
    for entry in logs:
        assert entry["positions"] == 64 * 2**num_good
        assert "\n" not in entry["reason"]


def test_a_step_that_cannot_be_computed_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = graph_runner(tiny_model("llama"), record=FailingRecorder(0))

    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(runner, "_compute", broken)
    row = PlainEntry(random_ids(5, 4), 0)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        runner.decode([row])


@pytest.mark.parametrize(
    ("first", "last", "sizes"),
    [(64, 256, (64, 128, 256)), (64, 200, (64, 128, 200)), (64, 64, (64,)), (64, 40, (40,))],
)
def test_buckets_double_up_to_what_there_is(first: int, last: int, sizes: tuple[int, ...]) -> None:
    assert buckets(first, last) == sizes
    assert [bucket_of(sizes, size) for size in (1, last)] == [sizes[0], last]
