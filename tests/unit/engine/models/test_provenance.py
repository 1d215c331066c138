"""The provenance files of a fine-tuned model's folder; no error in them fails a load."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.finetunings import CARD, CURVE, HOSTILE_CURVE, finetune_json
from tests.tiny_models import build_tiny_llama
from textmill.core.catalog.models_file import ModelSpec
from textmill.engine.models.loading import load
from textmill.engine.models.provenance import (
    MAX_CARD_BYTES,
    MAX_CURVE_BYTES,
    NO_PROVENANCE,
    Provenance,
    read_provenance,
)
from textmill.engine.models.sources import PreparedModel


def fill(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "finetune.json").write_bytes(finetune_json())
    (folder / "loss.svg").write_text(CURVE, encoding="utf-8")
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    return folder


def read(*folders: Path) -> tuple[Provenance, list[str]]:
    said: list[str] = []
    return read_provenance(folders, said.append), said


def test_a_whole_folder_is_read(tmp_path: Path) -> None:
    found, said = read(fill(tmp_path))
    assert found.finetuning is not None
    assert found.finetuning.base == "org/tiny"
    assert (found.curve_svg, found.card_markdown) == (CURVE, CARD)
    assert not said


def test_a_folder_without_a_finetune_json_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# A model of the Hub", encoding="utf-8")
    assert read(tmp_path, tmp_path / "absent", Path("org/model"), Path("a\0b")) == (
        NO_PROVENANCE, [],
    )  # fmt: skip


def test_the_first_folder_that_has_one_counts(tmp_path: Path) -> None:
    found, _ = read(tmp_path / "absent", fill(tmp_path / "here"))
    assert found.finetuning is not None


def test_curve_and_card_may_be_missing_or_empty(tmp_path: Path) -> None:
    folder = fill(tmp_path)
    (folder / "loss.svg").unlink()
    (folder / "README.md").write_bytes(b"")
    found, said = read(folder)
    assert found.finetuning is not None
    assert (found.curve_svg, found.card_markdown) == (None, None)
    assert not said


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[1]", finetune_json(method="magic")])
def test_a_broken_finetune_json_is_told_in_one_sentence_and_left_out(
    tmp_path: Path, content: bytes
) -> None:
    (fill(tmp_path) / "finetune.json").write_bytes(content)
    found, said = read(tmp_path)
    assert found == Provenance(None, CURVE, CARD)
    assert len(said) == 1
    assert "\n" not in said[0]
    assert "finetune.json is omitted" in said[0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("loss.svg", b"x" * (MAX_CURVE_BYTES + 1)),
        ("README.md", b"x" * (MAX_CARD_BYTES + 1)),
        ("loss.svg", b"\xff"),
        ("README.md", b"a\0b"),
    ],
)
def test_what_is_too_large_or_no_text_is_left_out(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (fill(tmp_path) / name).write_bytes(content)
    found, said = read(tmp_path)
    assert [found.curve_svg, found.card_markdown].count(None) == 1
    assert len(said) == 1
    assert f"{name} is omitted" in said[0]


SVG = '<svg xmlns="http://www.w3.org/2000/svg">'
DOCTYPE = '<!DOCTYPE svg [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'


@pytest.mark.parametrize(
    "curve",
    [
        HOSTILE_CURVE,
        f'{SVG}<g id="a"/><use href="#a"/></svg>',
        f'{SVG}<image href="https://evil.example/"/></svg>',
        f"{SVG}<foreignObject/></svg>",
        f'{SVG}<script xmlns="http://www.w3.org/1999/xhtml">alert(1)</script></svg>',
        f"{DOCTYPE}{SVG}<text>&b;</text></svg>",
        f'<?xml-stylesheet href="https://evil.example/"?>{SVG}</svg>',
        "<html><script>alert(1)</script></html>",
        "<svg/>",
        SVG,
        "no markup at all",
        "<svg " * 10_000,
        "<g>" * 100_000,
    ],
)
def test_a_curve_that_could_do_more_than_be_seen_is_left_out(tmp_path: Path, curve: str) -> None:
    (fill(tmp_path) / "loss.svg").write_text(curve, encoding="utf-8")
    found, said = read(tmp_path)
    assert found.curve_svg is None
    assert found.card_markdown == CARD
    assert len(said) == 1
    assert "loss.svg is omitted" in said[0]


@pytest.mark.parametrize("name", ["finetune.json", "loss.svg", "README.md"])
def test_a_link_to_a_file_elsewhere_is_not_followed(tmp_path: Path, name: str) -> None:
    folder = fill(tmp_path / "model")
    secret = (folder / name).rename(tmp_path / "secret")
    (folder / name).symlink_to(secret)
    found, said = read(folder)
    assert [found.finetuning, found.curve_svg, found.card_markdown].count(None) == 1
    assert said == [f"{folder / name} is omitted, because it is outside of its folder"]


def test_a_folder_of_the_hubs_cache_is_made_of_links(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--tuned" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    blobs = fill(tmp_path / "models--org--tuned" / "blobs")
    for name in ("finetune.json", "loss.svg", "README.md"):
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    found, said = read(snapshot)
    assert found == read(blobs)[0]
    assert found.card_markdown == CARD
    assert not said


def test_a_pipe_or_a_folder_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    folder = fill(tmp_path)
    for name in ("loss.svg", "README.md"):
        (folder / name).unlink()
    os.mkfifo(folder / "loss.svg")
    (folder / "README.md").mkdir()
    found, said = read(folder)
    assert (found.curve_svg, found.card_markdown) == (None, None)
    assert not said


@pytest.mark.parametrize("has_adapter", [False, True])
def test_of_a_model_with_an_adapter_only_the_adapters_folder_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_adapter: bool
) -> None:
    base = fill(build_tiny_llama(tmp_path / "base"))
    (tmp_path / "adapter").mkdir()
    monkeypatch.setattr(
        "textmill.engine.models.loading.prepare", lambda *_: PreparedModel(base, "r1")
    )
    adapter = str(tmp_path / "adapter") if has_adapter else None
    spec = ModelSpec("m", str(base), adapter, "float32", True, "")
    model = load(
        spec, cache_dir=tmp_path, dtype="float32", num_slots=1, report=lambda _: None,
        kernel_dir=None,
    )  # fmt: skip
    assert (model.provenance == NO_PROVENANCE) == has_adapter
