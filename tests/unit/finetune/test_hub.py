"""Hub datasets: which names are Hub ids, and reading rows, from a folder instead of the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

from tests.tiny_models import tiny_model
from tests.unit.finetune.test_formats import PAPER_COLUMNS, PAPER_READ
from textmill.finetune.base_model import BaseModel
from textmill.finetune.config import DataOptions, FinetuneConfig
from textmill.finetune.errors import DataError
from textmill.finetune.examples import Example
from textmill.finetune.formats import detect, read_examples
from textmill.finetune.hub import is_hub_name, read_hub_records
from textmill.finetune.preparation import prepare_data


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "is_name"),
    [
        ("multi_x_science_sum", True),
        ("yaolu/multi_x_science_sum", True),
        ("owner/name-2.0:test", True),
        ("name:validation", True),
        ("train.jsonl", False),
        ("data/train.csv.gz", False),
        ("weights.gz", False),
        ("./owner/name", False),
        ("../name", False),
        ("/owner/name", False),
        ("~/name", False),
        ("a/b/c", False),
        ("owner/name:", False),
        ("two words", False),
        ("", False),
    ],
)
def test_hub_ids_are_distinguished_from_paths(name: str, is_name: bool) -> None:
    assert is_hub_name(name) == is_name


def test_an_existing_path_is_not_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "squad").mkdir()
    assert not is_hub_name("squad")


@pytest.fixture
def papers(tmp_path: Path) -> Path:
    """A dataset in a folder, which ``datasets`` loads like one from the Hub."""
    folder = tmp_path / "multi_x_science_sum"
    folder.mkdir()
    for split, count in (("train", 2), ("validation", 1)):
        text = json.dumps(PAPER_COLUMNS) + "\n"
        (folder / f"{split}.jsonl").write_text(text * count, encoding="utf-8")
    return folder


def test_rows_of_a_split_are_numbered(papers: Path) -> None:
    records = list(read_hub_records(str(papers), "train"))
    assert [(r.location.path, r.location.line, r.unit) for r in records] == [
        (f"{papers}:train", 1, "row"),
        (f"{papers}:train", 2, "row"),
    ]
    assert records[0].fields == PAPER_COLUMNS


@pytest.fixture
def hub(papers: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Every Hub id loads the folder; the arguments are recorded in ``asked``."""
    asked: list[tuple[str, dict[str, Any]]] = []
    fetch = datasets.load_dataset

    def load(name: str, **how: Any) -> Any:
        asked.append((name, how.copy()))
        if name == "old/script" and not how.pop("revision", None):
            raise RuntimeError("Dataset scripts are no longer supported, but found script.py")
        return fetch(str(papers), **how)

    monkeypatch.setattr(datasets, "load_dataset", load)
    return SimpleNamespace(asked=asked)


def read(name: str, split: str) -> list[Example]:
    return read_examples([name], DataOptions(train=("unused",)), split=split)


@pytest.mark.parametrize(
    ("name", "split", "asked", "count"),
    [
        ("multi_x_science_sum", "train", ("multi_x_science_sum", "train"), 2),
        ("multi_x_science_sum", "validation", ("multi_x_science_sum", "validation"), 1),
        ("owner/name:validation", "train", ("owner/name", "validation"), 1),
    ],
)
def test_multi_xscience_is_read_by_its_hub_id(
    hub: SimpleNamespace, name: str, split: str, asked: tuple[str, str], count: int
) -> None:
    examples = read(name, split)
    assert hub.asked == [(asked[0], {"split": asked[1]})]
    assert [[(p.text, p.is_learned) for p in e.parts] for e in examples] == [PAPER_READ] * count
    assert examples[0].location.path == ":".join(asked)
    assert detect(name, split=split) == "multi_xscience"


def test_a_dataset_published_as_a_script_is_read_from_its_converted_rows(
    hub: SimpleNamespace,
) -> None:
    assert len(read("old/script", "train")) == 2
    assert [how.get("revision") for _, how in hub.asked] == [None, "refs/convert/parquet"]


def test_an_error_names_an_unknown_split(hub: SimpleNamespace) -> None:
    with pytest.raises(DataError, match=r'owner/name:dev: .*Unknown split "dev"'):
        read("owner/name:dev", "train")


def test_an_error_about_an_unreachable_hub_says_what_to_check() -> None:
    with pytest.raises(DataError) as caught:
        read("owner/name", "train")
    assert str(caught.value).startswith(
        "owner/name:train: is not a local file, and loading it from"
    )
    assert str(caught.value).endswith("Check the path, or the name, the split and the network.")


def test_changed_rows_of_the_same_dataset_change_the_fingerprint(
    papers: Path, hub: SimpleNamespace
) -> None:
    base = BaseModel("base", tiny_model("llama"), "revision", 256, 0)
    config = FinetuneConfig.model_validate(
        {
            "base": "base",
            "name": "tuned",
            "data": {"train": ["owner/name"], "validation": ["owner/name:validation"]},
        }
    )

    def fingerprint(held_out: str) -> str:
        row = PAPER_COLUMNS | {"abstract": held_out, "related_work": held_out}
        (papers / "validation.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
        return prepare_data(config, base).fingerprint

    assert fingerprint("We study rain.") == fingerprint("We study rain.")
    assert fingerprint("We study rain.") != fingerprint("We study snow.")
