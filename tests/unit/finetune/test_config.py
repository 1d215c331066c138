"""Options from a file and from flags, and errors about invalid ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from textmill.finetune.command import FLAGS
from textmill.finetune.config import SECTIONS, FinetuneConfig, read_config
from textmill.finetune.errors import ConfigError

REQUIRED: dict[str, dict[str, Any]] = {
    "": {"base": "gpt2", "name": "mine"},
    "data": {"train": ["a.csv"]},
}


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_three_options_are_required() -> None:
    config = read_config(None, REQUIRED)
    assert (config.base, config.name, config.data.train) == ("gpt2", "mine", ("a.csv",))
    assert config.method == "lora"
    assert config.learning_rate == 1e-3


def test_the_default_learning_rate_depends_on_the_method() -> None:
    full = read_config(None, {**REQUIRED, "": {**REQUIRED[""], "method": "full"}})
    assert full.learning_rate == 5e-5
    own = read_config(None, {**REQUIRED, "training": {"learning_rate": 0.01}})
    assert own.learning_rate == 0.01


def test_flags_override_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, 'base = "gpt2"\nname = "a"\n[data]\ntrain = "x.csv"\n[lora]\nrank = 4\n')
    config = read_config(path, {"": {"name": "b"}, "lora": {"alpha": 8}})
    assert (config.name, config.lora.rank, config.lora.alpha) == ("b", 4, 8)


def test_paths_in_a_file_are_relative_to_it_and_hub_names_are_kept(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("text\na\n")
    (tmp_path / "base").mkdir()
    text = (
        'base = "base"\nname = "a"\noutput = "out"\n[data]\ntrain = ["x.csv", "./y", "owner/set"]'
    )
    config = read_config(write(tmp_path, text), {})
    assert config.base == str(tmp_path / "base")
    assert config.output == str(tmp_path / "out")
    assert config.data.train == (str(tmp_path / "x.csv"), str(tmp_path / "y"), "owner/set")
    package = read_config(write(tmp_path, text.replace('"base"', '"package:p"', 1)), {})
    assert package.base == "package:p"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"": {"name": "no spaces"}}, "name"),
        ({"": {"base": "a\nb"}}, "base"),
        ({"": {"methods": "lora"}}, "methods is not an option"),
        ({"": {"method": "qlora"}}, "method"),
        ({"": {"seed": -1}}, "seed"),
        ({"data": {"train": []}}, "data.train"),
        ({"data": {"max_tokens": 1}}, "data.max_tokens"),
        ({"data": {"validation_share": 0.9}}, "data.validation_share"),
        ({"data": {"format": "xml"}}, "data.format"),
        ({"lora": {"rank": 0}}, "lora.rank"),
        ({"lora": {"ranks": 1}}, "lora.ranks is not an option"),
        ({"training": {"epochs": 0}}, "training.epochs"),
        ({"training": {"learning_rate": "inf"}}, "training.learning_rate"),
        ({"evaluation": {"strategy": "beam"}}, "evaluation.strategy"),
    ],
)
def test_an_invalid_option_is_named(changes: dict[str, dict[str, Any]], message: str) -> None:
    flags = {key: {**REQUIRED.get(key, {}), **changes.get(key, {})} for key in REQUIRED | changes}
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        read_config(None, flags)


def test_all_invalid_options_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(None, {"lora": {"rank": 0}})
    assert all(name in str(caught.value) for name in ("base", "name", "data", "lora.rank"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base = ", "not valid TOML"),
        ("lora = 3", "lora must be a table"),
        ("[data]\ntrain = 3", r"data\.train must be a path"),
    ],
)
def test_an_invalid_file_is_named_with_its_fault(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config(write(tmp_path, text), {})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml: No such file"):
        read_config(tmp_path / "gone.toml", {})


def test_every_option_is_a_flag_of_its_own() -> None:
    given = {(section, name) for section, name, _ in FLAGS.values()}
    wanted = {("", name) for name in FinetuneConfig.model_fields if name not in SECTIONS}
    wanted |= {(key, name) for key, model in SECTIONS.items() for name in model.model_fields}
    assert given == wanted
    assert len(FLAGS) == len(wanted)
