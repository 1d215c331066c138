"""``python -m textmill.finetune``: the environment that it sets before PyTorch is imported."""

from __future__ import annotations

import os
import runpy

import pytest


@pytest.fixture(autouse=True)
def _help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["finetune", "--help"])


def test_products_of_mkl_are_reproducible_as_in_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MKL_CBWR", raising=False)
    runpy.run_module("textmill.finetune", run_name="__main__")
    assert os.environ["MKL_CBWR"] == "AUTO,STRICT"


def test_the_users_own_choice_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    runpy.run_module("textmill.finetune", run_name="__main__")
    assert os.environ["MKL_CBWR"] == "COMPATIBLE"
