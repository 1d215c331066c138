"""A worker reads the files that a fine-tuning writes; moving the output folder into place."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path

import pytest

from textmill.core.catalog import models_file
from textmill.core.catalog.finetunings import as_document, stored_finetuning
from textmill.engine.models import provenance
from textmill.engine.models.provenance import Provenance, read_provenance
from textmill.finetune import export
from textmill.finetune.base_model import BaseModel
from textmill.finetune.config import DataOptions, FinetuneConfig
from textmill.finetune.data_files import DataFile
from textmill.finetune.errors import ConfigError
from textmill.finetune.examples import Example, Location, Part
from textmill.finetune.export import check_output, move_into_place, write_report
from textmill.finetune.holdout import Duplicates, HoldoutReport
from textmill.finetune.metrics import Metrics, TextMetrics
from textmill.finetune.preparation import PreparedData, TokenCounts
from textmill.finetune.result import FinetuningResult
from textmill.finetune.rouge import Rouge
from textmill.finetune.scoring import Score
from textmill.finetune.training import TrainingHistory

EXAMPLE = Example((Part("A text.", True),), Location("train.csv", 1))
COUNTS = TokenCounts(
    num_texts=3, num_tokens=30, num_learned=20, median_tokens=10, max_tokens=12, num_cut_texts=0,
    num_cut_tokens=0, num_unlearnable=0,
)  # fmt: skip
TEXTS = TextMetrics(
    num_texts=4, num_skipped=0, rouge=Rouge(0.25, 0.05, 0.2), distinct1=0.2, distinct2=0.5,
    distinct3=1.0, memorised=0.0, reference_memorised=0.01,
)  # fmt: skip


def write(folder: Path, config: FinetuneConfig, texts: TextMetrics | None) -> None:
    base = BaseModel("/home/anna/models/mine", folder, "abc123", 512, 0)
    data = PreparedData(
        train=(EXAMPLE,) * 2, validation=(EXAMPLE,), encoded_train=(), encoded_validation=(),
        is_packed=False,
        files=(
            DataFile("train.csv", "both", "ab" * 32, 40),
            DataFile("multi_x_science_sum", "validation", "", 10),
        ),
        holdout=HoldoutReport(Duplicates(2), Duplicates(1), Duplicates(4)),
        train_counts=COUNTS, validation_counts=COUNTS,
        format="question_answer", fingerprint="f",
    )  # fmt: skip
    history = TrainingHistory(
        training=((1, 3.5), (2, 3.25)), validation=((2, 3.0),), num_steps=2, best_step=1,
        num_tokens=600, seconds=1.5, tokens_per_second=400.0, peak_bytes=1 << 30, device="cpu",
        precision="float32",
    )  # fmt: skip
    metrics = {
        "before": Metrics(7, Score(90.0, 30, 120), texts),
        "after": Metrics(7, Score(60.0, 30, 120), texts),
    }
    hardware = "2 CPU cores (x86_64, AVX2)"
    write_report(folder, FinetuningResult(config, base, data, history, metrics, hardware))


def read(folder: Path) -> Provenance:
    problems: list[str] = []
    found = read_provenance([folder], problems.append)
    assert problems == []
    return found


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("texts", [TEXTS, None])
def test_a_worker_reads_every_field_that_is_written(
    tmp_path: Path, method: str, texts: TextMetrics | None
) -> None:
    config = FinetuneConfig.model_validate(
        {"base": "mine", "name": "tuned", "method": method, "data": {"train": ("train.csv",)}}
    )
    write(tmp_path, config, texts)
    card = read(tmp_path).card_markdown
    assert card is not None
    assert "/home/anna" not in card  # the card is public
    assert "Read as question" in card
    assert 'format = "question_answer"' in (tmp_path / "finetune.toml").read_text()
    found = read(tmp_path).finetuning
    assert found is not None
    assert (found.base, found.base_revision, found.method) == ("mine", "abc123", method)
    assert [file.name for file in found.data.files] == ["train.csv", "multi_x_science_sum"]
    assert [file.num_rows for file in found.data.files] == [40, 10]
    assert [file.sha256 for file in found.data.files] == ["ab" * 32, ""]
    assert (found.data.training.num_examples, found.data.validation.num_examples) == (2, 1)
    assert (found.data.num_duplicates, found.data.num_overlapping) == (3, 4)
    assert (found.training.num_steps, found.training.best_step) == (2, 1)
    assert found.metrics.before.bits_per_byte == pytest.approx(
        1.5 * found.metrics.after.bits_per_byte
    )
    assert found.metrics.after.perplexity == pytest.approx(math.exp(60 / 30))
    assert (found.metrics.after.texts is None) == (texts is None)
    if found.metrics.after.texts is not None:
        assert found.metrics.after.texts.rouge.rouge_l == TEXTS.rouge.rouge_l
        assert found.metrics.after.texts.reference_memorised == TEXTS.reference_memorised
    assert stored_finetuning(as_document(found)) == found


def test_the_worker_reads_the_same_file_names() -> None:
    written = (export.FINETUNE_FILE, export.CURVE_FILE, export.CARD_FILE)
    read = (models_file.FINETUNE_FILE, provenance.CURVE_FILE, provenance.CARD_FILE)
    assert written == read


def test_curve_and_card_are_read_unchanged(tmp_path: Path) -> None:
    hostile = 'a <script>alert(1)</script> & "b"'
    config = FinetuneConfig(
        base="mine", name="tuned", description=hostile, data=DataOptions(train=("train.csv",))
    )
    write(tmp_path, config, TEXTS)
    found = read(tmp_path)
    assert found.curve_svg == (tmp_path / "loss.svg").read_text(encoding="utf-8")
    assert found.card_markdown == (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "![Loss over the steps](loss.svg)" in found.card_markdown


def test_an_interrupted_copy_to_another_file_system_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, folder = tmp_path / "state" / "weights", tmp_path / "models" / "faq"
    work.mkdir(parents=True)
    (work / "adapter_model.safetensors").write_text("whole")
    torn = folder.with_name(".faq.part")
    torn.mkdir(parents=True)
    (torn / "adapter_model.safetensors").write_text("who")

    def rename(path: Path, target: Path) -> Path:
        if path == work:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        os.rename(path, target)
        return target

    monkeypatch.setattr(Path, "rename", rename)
    move_into_place(work, folder)
    assert (folder / "adapter_model.safetensors").read_text() == "whole"
    assert os.listdir(folder.parent) == ["faq"]


def test_an_output_folder_created_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    work, folder = tmp_path / "weights", tmp_path / "faq"
    for path in (work, folder):
        path.mkdir()
    (folder / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="already exists"):
        move_into_place(work, folder)
    assert work.is_dir()


def test_an_output_folder_that_cannot_be_created_is_refused_before_training(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written: "):
        check_output(tmp_path / "file" / "faq")
