"""A worker's reaction to changes of the models file and of a model's files."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from tests.fakes import fake_model, one_hot
from textmill.core.catalog.file_state import ModelState
from textmill.core.catalog.models_file import Catalog, ModelSpec
from textmill.core.errors import StorageUnavailable
from textmill.engine import EngineError
from textmill.engine.models.errors import ModelLoadError
from textmill.engine.models.loading import LoadedModel
from textmill.engine.requests import EngineStopped
from textmill.worker.model_watch import Actions, ModelWatch
from textmill.worker.trials import TRIAL_SECONDS, TrialUnfinished


@pytest.fixture(autouse=True)
def _reset_structlog() -> None:
    structlog.reset_defaults()


class FakeBoard:
    """Keeps the last word on each model."""

    def __init__(self) -> None:
        self.words: dict[str, str | None] = {}
        self.num_sent = 0

    def report(self, kind: str, name: str, reason: str | None) -> None:
        self.words[name] = reason

    def send(self) -> None:
        self.num_sent += 1


@dataclass
class Bench:
    """A watch over folders, with recorded actions and fake models.

    Attributes:
        broken: models that cannot be loaded.
        slow: models whose trial takes longer than allowed at the start.
        harmful: models that crash on trial.
        now: the watch's clock.
        revisions: of the weights, if they differ from ``r``.
        refuses: raised instead of serving a model.
    """

    folder: Path
    catalog: Catalog = field(default_factory=lambda: Catalog(()))
    broken: set[str] = field(default_factory=set)
    revisions: dict[str, str] = field(default_factory=dict)
    refuses: Exception | None = None
    has_gpu: bool = False
    slow: set[str] = field(default_factory=set)
    harmful: set[str] = field(default_factory=set)
    now: float = 0.0
    board: FakeBoard = field(default_factory=FakeBoard)
    done: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check = self.load if self.has_gpu else None
        self.watch = ModelWatch(
            lambda: self.catalog,
            self.load,
            check,
            try_out=self._try_out,
            board=self.board,
            clock=lambda: self.now,
        )
        self.actions = Actions(self._add, self._renew, self._end)

    def write(self, *names: str, default: str = "a", **changes: str) -> None:
        """Write the models file, and create missing folders of models."""
        for name in names:
            folder = self.folder / name
            if not folder.exists():
                folder.mkdir()
                (folder / "model.safetensors").write_bytes(b"weights")
        spec = ModelSpec("", "", None, changes.get("dtype", "auto"), False, "")
        self.catalog = Catalog(
            tuple(
                replace(spec, name=name, source=str(self.folder / name), is_default=name == default)
                for name in names
            )
        )

    def start(self, *names: str) -> None:
        self.write(*names)
        self.watch.load_all()
        self.done.clear()
        self.look(2)
        assert self.done == []

    def look(self, times: int = 1) -> list[str]:
        """Look, and return all actions so far."""
        for _ in range(times):
            self.watch.look(self.actions)
        return self.done

    def told(self) -> dict[str, str | None]:
        """The last word on each model."""
        return self.board.words

    def _try_out(self, spec: ModelSpec, patience_seconds: float) -> None:
        if spec.name in self.harmful:
            raise ModelLoadError(f"{spec.name} crashed.")
        if spec.name in self.slow and patience_seconds < TRIAL_SECONDS:
            raise TrialUnfinished(f"{spec.name} takes long.")

    def load(self, spec: ModelSpec) -> LoadedModel:
        self.done.append(f"load {spec.name}")
        if spec.name in self.broken:
            raise ModelLoadError(f"{spec.name} has no weights.")
        model, _ = fake_model(lambda ids: one_hot(0), name=spec.name)
        revision = self.revisions.get(spec.name, "r")
        return replace(model, info=replace(model.info, revision=revision))

    def _add(self, model: LoadedModel) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.done.append(f"add {model.name}")

    def _renew(self, model: LoadedModel) -> None:
        self.done.append(f"renew {model.name}")

    def _end(self, reason: str) -> None:
        self.done.append(f"end: {reason}")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def touch(path: Path, content: bytes = b"other weights") -> None:
    path.write_bytes(content)


# ---- the start ------------------------------------------------------------------------------


def test_the_start_leaves_out_what_cannot_be_loaded_and_says_so(bench: Bench) -> None:
    bench.broken = {"b"}
    bench.write("a", "b", "c")
    with capture_logs() as logs:
        bench.watch.load_all()
    assert list(bench.watch.models) == ["a", "c"]
    [said] = [entry for entry in logs if entry["event"] == "model_not_loaded"]
    assert (said["model"], said["reason"]) == ("b", "b has no weights.")
    assert bench.look(3) == ["load a", "load b", "load c"]  # and does not try again and again


def test_the_start_does_without_the_default_model(bench: Bench) -> None:
    bench.broken = {"a"}
    bench.write("a", "b")
    bench.watch.load_all()
    assert list(bench.watch.models) == ["b"]
    assert bench.told() == {"a": "a has no weights.", "b": None}


def test_a_start_without_any_model_is_refused_with_every_reason(bench: Bench) -> None:
    bench.broken = {"a", "b"}
    bench.write("a", "b")
    with pytest.raises(ModelLoadError) as error:
        bench.watch.load_all()
    for words in ("a: a has no weights.", "b: b has no weights."):
        assert words in str(error.value)
    assert bench.board.num_sent == 1  # said before the process ends


def test_whatever_a_loader_raises_at_the_start_takes_down_no_other_model(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(spec: ModelSpec) -> LoadedModel:
        if spec.name == "a":
            raise RuntimeError("size mismatch")
        return bench.load(spec)

    monkeypatch.setattr(bench.watch, "_load", load)
    bench.write("a", "b")
    bench.watch.load_all()
    assert list(bench.watch.models) == ["b"]


def test_a_model_that_takes_long_on_trial_at_the_start_is_tried_again_while_others_write(
    bench: Bench,
) -> None:
    bench.slow = {"b"}
    bench.write("a", "b")
    bench.watch.load_all()
    assert list(bench.watch.models) == ["a"]
    assert bench.look() == ["load a", "load b", "add b"]
    assert bench.told() == {"a": None, "b": None}


def test_a_model_that_takes_long_on_trial_gets_all_its_time_where_nobody_waits(
    bench: Bench,
) -> None:
    bench.slow = {"a", "b"}
    bench.write("a", "b")
    bench.watch.load_all()
    assert list(bench.watch.models) == ["a", "b"]


def test_a_model_that_does_harm_on_trial_is_never_loaded(bench: Bench) -> None:
    bench.harmful = {"b"}
    bench.start("a", "b")
    bench.write("a", "b", "c")
    bench.harmful = {"b", "c"}
    assert bench.look(3) == []
    assert bench.told() == {"a": None, "b": "b crashed.", "c": "c crashed."}
    bench.harmful = set()
    touch(bench.folder / "c" / "model.safetensors")
    assert bench.look(3) == ["load c", "add c"]


# ---- new models -----------------------------------------------------------------------------


def test_a_new_model_is_loaded_and_served(bench: Bench) -> None:
    bench.start("a")
    bench.write("a", "b")
    assert bench.look() == ["load b", "add b"]
    assert list(bench.watch.models) == ["a", "b"]
    assert bench.look(5) == ["load b", "add b"]
    assert not bench.watch.is_loading


def test_a_new_model_that_cannot_be_loaded_is_tried_again_when_the_file_changes(
    bench: Bench,
) -> None:
    bench.start("a")
    bench.broken = {"b"}
    bench.write("a", "b")
    with capture_logs() as logs:
        assert bench.look(5) == ["load b"]
    assert [entry["event"] for entry in logs] == ["model_not_loaded"]
    bench.broken = set()
    bench.write("a", "b")
    assert bench.look(5) == ["load b", "load b", "add b"]


def test_a_new_model_that_cannot_be_loaded_is_tried_again_when_its_files_change(
    bench: Bench,
) -> None:
    bench.start("a")
    bench.broken = {"b"}
    bench.write("a", "b")
    assert bench.look(2) == ["load b"]
    bench.broken = set()
    touch(bench.folder / "b" / "model.safetensors")
    assert bench.look(5) == ["load b", "load b", "add b"]


@pytest.mark.parametrize("failure", [EngineError("It cannot write."), MemoryError(), OSError()])
def test_a_new_model_that_cannot_be_served_is_left_alone(bench: Bench, failure: Exception) -> None:
    bench.start("a")
    bench.refuses = failure
    bench.write("a", "b")
    assert bench.look(5) == ["load b"]
    assert list(bench.watch.models) == ["a"]


def test_a_new_model_waits_for_a_database_that_is_away(bench: Bench) -> None:
    bench.start("a")
    bench.refuses = StorageUnavailable("away", retry_after_seconds=1)
    bench.write("a", "b")
    with pytest.raises(StorageUnavailable):
        bench.look()
    bench.refuses = None
    assert bench.look() == ["load b", "load b", "add b"]


def test_a_worker_that_ends_takes_nothing_up_and_blames_no_model(bench: Bench) -> None:
    bench.start("a")
    bench.refuses = EngineStopped("The engine is not running.")
    bench.write("a", "b")
    with capture_logs() as logs:
        bench.look()
    assert logs == []


def test_a_model_is_tried_again_after_growing_pauses_though_nothing_changed(bench: Bench) -> None:
    bench.broken = {"b"}
    bench.start("a", "b")
    tries = []
    for second in range(0, 600, 5):
        bench.now = float(second)
        before = len(bench.done)
        if len(bench.look()) > before:
            tries.append(second)
    assert tries == [60, 180, 420]
    assert bench.told()["b"] == "b has no weights."
    bench.broken = set()
    bench.now = 10_000.0
    assert bench.look()[-2:] == ["load b", "add b"]
    assert bench.told()["b"] is None


def test_a_model_that_is_taken_out_takes_its_problem_with_it(bench: Bench) -> None:
    bench.broken = {"b"}
    bench.start("a", "b")
    bench.write("a")
    bench.look()
    assert bench.told() == {"a": None, "b": None}


def test_whatever_a_loader_raises_the_watch_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(spec: ModelSpec) -> LoadedModel:
        raise KeyError("rope")

    bench.start("a")
    monkeypatch.setattr(bench.watch, "_load", explode)
    bench.write("a", "b")
    assert bench.look(3) == []
    assert not bench.watch.is_loading


# ---- changed and removed models -------------------------------------------------------------


def test_a_changed_entry_asks_for_a_new_process_once_it_is_proven_to_load(bench: Bench) -> None:
    bench.start("a", "b")
    bench.revisions["b"] = "other"
    touch(bench.folder / "b" / "model.safetensors")
    assert bench.look() == []  # the file may still be being copied
    assert bench.look() == ["load b", "end: the model b is changed"]
    assert bench.look(3) == ["load b", "end: the model b is changed"]


def test_the_same_weights_written_again_are_no_other_model(bench: Bench) -> None:
    bench.start("a")
    touch(bench.folder / "a" / "model.safetensors")
    assert bench.look(5) == ["load a", "renew a"]


@pytest.mark.parametrize("name", ["README.md", "loss.svg", "finetune.json", "notes"])
def test_what_no_loader_reads_may_change_at_will(bench: Bench, name: str) -> None:
    bench.start("a")
    touch(bench.folder / "a" / name)
    assert bench.look(3) == []


def test_another_description_or_default_asks_for_nothing(bench: Bench) -> None:
    bench.start("a", "b")
    bench.write("a", "b", default="b")
    bench.catalog = Catalog(tuple(replace(m, description="new") for m in bench.catalog))
    assert bench.look(3) == []


def test_a_changed_model_that_cannot_be_loaded_changes_nothing(bench: Bench) -> None:
    bench.start("a", "b")
    bench.broken = {"b"}
    touch(bench.folder / "b" / "model.safetensors")
    bench.write("b")  # and a is taken out; but the new process would be without b
    assert bench.look(5) == ["load b"]
    bench.broken = set()
    bench.revisions["b"] = "other"
    touch(bench.folder / "b" / "model.safetensors", b"weights that can be read")
    assert bench.look(5)[1:] == [
        "load b",
        "end: the model b is changed, the model a was taken out",
    ]


def test_a_model_that_was_taken_out_asks_for_a_new_process(bench: Bench) -> None:
    bench.start("a", "b")
    bench.write("a")
    assert bench.look() == []
    assert bench.look() == ["end: the model b was taken out"]


def test_a_model_that_was_never_held_holds_up_no_other_ones_change(bench: Bench) -> None:
    bench.broken = {"c"}
    bench.start("a", "b", "c")
    bench.write("a", "c")
    assert bench.look(3) == ["load c", "end: the model b was taken out"]


def test_no_new_process_is_asked_for_that_would_hold_no_model(bench: Bench) -> None:
    bench.start("a", "b")
    bench.broken = {"c"}
    bench.write("c", default="c")
    assert bench.look(5) == ["load c"]


def test_a_default_model_that_cannot_be_loaded_holds_up_no_other_ones_change(bench: Bench) -> None:
    bench.start("a", "b")
    bench.broken = {"c"}
    bench.write("b", "c", default="c")
    assert bench.look(3) == ["load c", "end: the model a was taken out"]


def test_on_a_gpu_a_new_model_takes_a_new_process(tmp_path: Path) -> None:
    bench = Bench(tmp_path, has_gpu=True)
    bench.start("a")
    bench.write("a", "b")
    assert bench.look() == []
    assert bench.look() == ["load b", "end: the model b is new"]
    assert list(bench.watch.models) == ["a"]


def test_on_a_gpu_a_model_whose_files_cannot_be_used_ends_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, has_gpu=True)
    bench.start("a")
    bench.broken = {"b"}
    bench.write("a", "b")
    assert bench.look(5) == ["load b"]


# ---- the files of a model -------------------------------------------------------------------


Change = Callable[[Path], object]


@pytest.mark.parametrize(
    ("change", "is_other"),
    [
        (lambda folder: (folder / "config.json").write_text("{}"), True),
        (lambda folder: (folder / "model.safetensors").unlink(), True),
        (lambda folder: os.utime(folder / "model.safetensors", ns=(1, 1)), True),
        (lambda folder: (folder / "README.md").write_text("#"), False),
        (lambda folder: (folder / "checkpoints").mkdir(), False),
    ],
)
def test_a_models_state_is_in_its_files(tmp_path: Path, change: Change, is_other: bool) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    spec = ModelSpec("a", "some/model", str(tmp_path), "auto", False, "")
    before = ModelState.of(spec)
    change(tmp_path)
    assert (ModelState.of(spec) != before) is is_other


def test_a_state_can_be_told_of_what_is_not_there(tmp_path: Path) -> None:
    spec = ModelSpec("a", str(tmp_path / "gone"), None, "auto", False, "")
    assert ModelState.of(spec).files == ()
