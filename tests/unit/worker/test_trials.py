"""A model is tried in a separate process, in which it may crash or hang."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.kernels import KERNEL_DIR
from tests.tiny_models import tiny_model
from textmill.core.catalog.models_file import ModelSpec
from textmill.engine.models.errors import ModelLoadError, ModelUnusable, SourceNotFound
from textmill.engine.models.loading import LoadedModel, load
from textmill.worker import trials as module
from textmill.worker.trial_process import write
from textmill.worker.trials import Trials, TrialUnfinished


def spec_of(folder: Path | str) -> ModelSpec:
    return ModelSpec("tiny", str(folder), None, "auto", True, "")


def is_known(trials: Trials, spec: ModelSpec) -> bool:
    mark = trials._mark(spec)
    return mark is not None and trials._is_good(mark)


@pytest.fixture
def trials(tmp_path: Path) -> Trials:
    return Trials(tmp_path / "cache", KERNEL_DIR, tmp_path / "tried", 2, lambda _: None)


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a program of the test's own in the trial's place, and counts how often it runs."""
    runs = tmp_path / "runs"
    runs.touch()

    def put(code: str) -> Path:
        name = "textmill_test_trial"
        (tmp_path / f"{name}.py").write_text(f"open({str(runs)!r}, 'a').write('x')\n{code}")
        monkeypatch.setattr(module, "_PROCESS", name)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return runs

    return put


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed with SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGBUS)", "crashed with SIGBUS"),
        ("import os; os.abort()", "crashed with SIGABRT"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "memory is short"),
        ("raise SystemExit(3)", "ended with status 3, on trial (without output)"),
        ("raise ValueError('no such thing')", "ValueError: no such thing"),
        ('print(\'{"error": "It is too large."}\'); raise SystemExit(1)', "It is too large."),
        ("print('noise'); print('{'); raise SystemExit(1)", "ended with status 1"),
    ],
)
def test_how_a_trial_ends_is_the_models_reason_and_nothing_is_remembered(
    trials: Trials, process: Any, code: str, words: str
) -> None:
    runs = process(code)
    spec = spec_of(tiny_model("llama"))
    for _ in range(2):
        with pytest.raises(ModelUnusable) as error:
            trials.try_out(spec)
        assert words in str(error.value)
    assert not is_known(trials, spec)
    assert len(runs.read_text()) == 2


def test_a_trial_that_hangs_is_ended_and_said_to_be_unfinished(
    trials: Trials, process: Any
) -> None:
    process("import time; time.sleep(600)")
    with pytest.raises(TrialUnfinished, match=r"within 0\.5 s"):
        trials.try_out(spec_of(tiny_model("llama")), 0.5)


def test_a_trial_reports_what_takes_time(tmp_path: Path, process: Any) -> None:
    said: list[str] = []
    trials = Trials(tmp_path / "cache", KERNEL_DIR, tmp_path / "tried", 2, said.append)
    process('print(\'{"report": "Converting"}\')')
    trials.try_out(spec_of(tiny_model("llama")))
    assert said == ["Converting"]


def test_a_model_that_works_is_tried_once_for_its_files_and_its_settings(
    tmp_path: Path, trials: Trials, process: Any
) -> None:
    runs = process("")
    folder = Path(shutil.copytree(tiny_model("llama"), tmp_path / "model"))
    spec = spec_of(folder)
    for _ in range(2):
        trials.try_out(spec)
    assert is_known(trials, spec)
    assert len(runs.read_text()) == 1
    again = Trials(tmp_path / "cache", KERNEL_DIR, tmp_path / "tried", 2, lambda _: None)
    assert is_known(again, spec)  # another process, the second start
    others = [
        (Trials(tmp_path / "cache", KERNEL_DIR, tmp_path / "tried", 3, print), spec),
        (Trials(tmp_path / "cache", None, tmp_path / "tried", 2, print), spec),
        (trials, ModelSpec("tiny", str(folder), None, "float32", True, "")),
    ]
    assert not any(is_known(other, one) for other, one in others)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-4}))
    assert not is_known(trials, spec)


def test_a_process_that_ends_while_it_loads_makes_the_next_one_try_the_model_again(
    trials: Trials, process: Any
) -> None:
    runs = process("")
    spec = spec_of(tiny_model("llama"))
    trials.try_out(spec)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    [mark] = trials.memory_dir.glob("*.ok")
    mark.with_suffix(f".{gone.pid}.loading").touch()
    trials.try_out(spec)
    assert len(runs.read_text()) == 2
    with trials.loading(spec):
        assert len(list(trials.memory_dir.glob(f"*.{os.getpid()}.loading"))) == 1
        assert is_known(trials, spec)  # this process lives
    assert not list(trials.memory_dir.glob("*.loading"))
    assert is_known(trials, spec)


def test_a_source_that_is_not_there_needs_no_trial(trials: Trials, process: Any) -> None:
    runs = process("")
    with pytest.raises(SourceNotFound, match="There is no model at"):
        trials.try_out(spec_of("/no/such/folder"))
    assert runs.read_text() == ""


def test_where_nothing_can_be_remembered_a_model_is_tried_each_time(
    tmp_path: Path, process: Any
) -> None:
    runs = process("")
    (tmp_path / "file").touch()
    trials = Trials(tmp_path / "cache", KERNEL_DIR, tmp_path / "file" / "tried", 2, print)
    for _ in range(2):
        trials.try_out(spec_of(tiny_model("llama")))
    assert len(runs.read_text()) == 2


# ---- the process itself ---------------------------------------------------------------------


def test_a_real_trial_of_a_model_that_works_and_of_one_whose_weights_are_no_numbers(
    tmp_path: Path, trials: Trials
) -> None:
    folder = Path(shutil.copytree(tiny_model("gpt_neo"), tmp_path / "model"))
    trials.try_out(spec_of(folder))
    assert is_known(trials, spec_of(folder))
    weights = load_file(folder / "model.safetensors")
    weights["transformer.ln_f.weight"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match="not finite"):
        trials.try_out(spec_of(folder))


@pytest.mark.parametrize("family", ["gpt_neo", "gpt2", "llama", "opt"])
@pytest.mark.parametrize("context", [8, 256])
def test_what_a_trial_writes_fits_every_model(family: str, context: int, tmp_path: Path) -> None:
    from tests.tiny_models import _BUILDERS

    folder = _BUILDERS[family](tmp_path / "model", 0, context)
    write(in_memory(folder, tmp_path))


def in_memory(folder: Path, tmp_path: Path) -> LoadedModel:
    return load(
        spec_of(folder),
        cache_dir=tmp_path / "cache",
        dtype="auto",
        num_slots=1,
        report=lambda _: None,
        kernel_dir=KERNEL_DIR,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="parent death signals exist on Linux alone")
def test_a_trial_ends_with_the_process_that_asked_for_it(tmp_path: Path) -> None:
    waiting = (
        "import os, textmill.worker.trial_process as t; t._give_way(os.getppid());"
        " print(flush=True); input()"
    )
    code = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {waiting!r}], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
input()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        watch = os.pidfd_open(child)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        ready, _, _ = select.select([watch], [], [], 20)
        os.close(watch)
    assert ready


def test_a_trial_whose_parent_died_before_it_could_watch_it_ends_at_once() -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    trial = subprocess.run(
        [sys.executable, "-P", "-m", "textmill.worker.trial_process", str(dead.pid)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    assert trial.returncode == 1
    assert trial.stdout == b""  # nothing was tried: it says nothing of the input either
