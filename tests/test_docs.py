"""The documents against the code: tables, settings, links, and the README's snippets for real."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.processes import Product, workspace
from textmill.core.catalog.models_file import load_catalog
from textmill.core.settings import Settings, variable_of
from textmill.core.strategies import STRATEGIES
from textmill.core.strategy_specs import ParameterSpec, StrategySpec

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
SHOWN_URL = "http://127.0.0.1:8000"
_SNIPPET = re.compile(r"<!-- run -->\n```bash\n(.*?)```", re.DOTALL)
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def rows_of(document: Path, first_cell: str) -> list[list[str]]:
    """The rows of the table whose header starts with a cell, as cells."""
    lines = document.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first_cell} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


# ---- strategies -----------------------------------------------------------------------------


def readme_row(spec: StrategySpec) -> str:
    """The README's row of a strategy; a failing test prints it for pasting."""
    own = [p for p in spec.parameters if p.name != "repetition_penalty"]
    parameters = ", ".join(_parameter(parameter) for parameter in own) or "–"
    return f"| `{spec.name}` | {parameters} | {spec.description} |"


def _parameter(spec: ParameterSpec) -> str:
    opening = "(" if spec.exclusive_minimum else "["
    largest = (
        {"top_k": "vocabulary"}.get(spec.name) if spec.maximum is None else f"{spec.maximum:g}"
    )
    return f"`{spec.name}` {spec.default} {opening}{spec.minimum:g}, {largest}]"


def test_the_readme_lists_every_strategy_as_the_code_has_it() -> None:
    wanted = [readme_row(spec) for spec in STRATEGIES]
    shown = ["| " + " | ".join(row) + " |" for row in rows_of(README, "`strategy`")]
    assert shown == wanted, "the rows should be:\n" + "\n".join(wanted)


def test_the_readme_is_right_about_the_repetition_penalty() -> None:
    lacking = [s.name for s in STRATEGIES if "repetition_penalty" not in s.parameter_names]
    assert lacking == ["beam"]


# ---- settings and models file ---------------------------------------------------------------


def test_the_readme_lists_every_setting_and_no_other() -> None:
    shown = [row[0].strip("`") for row in rows_of(README, "name")]
    assert shown == [variable_of(name) for name in Settings.model_fields]


def test_the_readme_shows_the_defaults_that_the_code_has() -> None:
    defaults = Settings.from_environment({}).to_environment()
    shown = {row[0].strip("`"): row[1] for row in rows_of(README, "name")}
    said_in_words = {"TEXTMILL_HOME", "TEXTMILL_DATABASE_URL"}
    for name, value in shown.items():
        if name not in said_in_words:
            is_none = name not in defaults  # such a default is said in a word, without quotes
            assert value.startswith("`") != is_none, name
            assert is_none or value == f"`{defaults[name]}`", name


def test_the_models_file_of_the_readme_is_one(tmp_path: Path) -> None:
    found = re.search(r"```toml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    path = tmp_path / "models.toml"
    path.write_text(found[1], encoding="utf-8")
    catalog = load_catalog(Settings.from_environment({"TEXTMILL_MODELS": str(path)}))
    assert catalog.default.name == catalog.names[0]


# ---- links ----------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_within_the_repository_lead_somewhere(document: Path) -> None:
    targets = _LINK.findall(document.read_text(encoding="utf-8"))
    inside = [target for target in targets if "://" not in target]
    assert [t for t in inside if not (document.parent / t).exists()] == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/architecture.md"])
def test_the_source_files_that_a_document_names_exist(name: str) -> None:
    folders = "|".join(path.name for path in (ROOT / "src" / "textmill").iterdir())
    named = re.findall(
        rf"`((?:{folders}|benchmarks|docs|locks|scripts|tests)/[\w./-]*)`",
        (ROOT / name).read_text(encoding="utf-8"),
    )
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


# ---- the curl session -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def server_url(redis_server: object) -> Iterator[str]:
    """Web and worker on a tiny model: what `make up` would have started."""
    url = str(redis_server.url)  # type: ignore[attr-defined]
    with workspace() as space:
        product = Product(
            space,
            space.new_database("sqlite"),
            redis_url=url,
            models_path=space.tiny_models_file(),
        )
        with product.running("web", "worker"):
            yield product.url


def test_the_snippets_of_the_readme_run_in_their_order(server_url: str, tmp_path: Path) -> None:
    snippets = _SNIPPET.findall(README.read_text(encoding="utf-8"))
    assert len(snippets) >= 5
    script = "set -euo pipefail\n" + "\necho\n".join(snippets)
    assert SHOWN_URL in script
    done = subprocess.run(
        ["bash", "-c", script.replace(SHOWN_URL, server_url)],
        cwd=tmp_path,  # the snippets write job.json and run.json
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    _check_output(done.stdout)


def _check_output(output: str) -> None:
    """The expected effects of each snippet."""
    assert '"status":"queued"' in output.replace('": "', '":"')
    assert "event: done" in output
    assert output.count("\nsampling '") + output.count('\nsampling "') == 2
    first, second = re.findall(r"^([0-9a-f-]{36})$", output, re.MULTILINE)
    assert first == second
    assert re.search(r"^[1-9]\d* found$", output, re.MULTILINE)
    for field in ("prompt", "top_k", "max_new_tokens"):
        assert re.search(rf'"field": ?"{field}"', output), field


# ---- the API --------------------------------------------------------------------------------


def test_the_api_page_lists_every_call_of_the_openapi_document() -> None:
    from textmill.backend.openapi import openapi_document

    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    calls = {
        f"`{method.upper()} {path.removeprefix('/api/v1')}`"
        for path, item in openapi_document()["paths"].items()
        for method in item
        if method in {"get", "post", "delete", "put", "patch"}
    }
    assert [call for call in sorted(calls) if call not in text] == []


def test_the_api_page_lists_the_codes_of_all_client_errors() -> None:
    from textmill.core.errors import ClientError

    def leaves(kind: type[ClientError]) -> Iterator[type[ClientError]]:
        for child in kind.__subclasses__():
            yield from leaves(child) if child.__subclasses__() else [child]

    shown = {(row[0], row[1].strip("`")) for row in rows_of(ROOT / "docs" / "api.md", "status")}
    wanted = {(str(kind.http_status), kind.code) for kind in leaves(ClientError)}
    assert wanted <= shown
