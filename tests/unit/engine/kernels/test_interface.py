"""A library whose interface differs from Python's list is refused when it is loaded."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from tests.kernels import KERNEL_DIR, library
from textmill.engine.kernels import build, interface
from textmill.engine.kernels.interface import InterfaceMismatch, declare


def test_the_built_library_has_the_interface_that_python_expects() -> None:
    lines = library().textmill_interface().decode().splitlines()
    assert f"version {interface.VERSION}" in lines
    assert f"Trace {interface.TRACE.size}" in lines
    assert "textmill_new(pp)" in lines
    assert declare(library()) is library()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "VERSION",
            99,
            f"version {interface.VERSION} where this version of Textmill expects version 99",
        ),
        ("_SIZES", {**interface._SIZES, "Trace": 300}, r"Trace 256 where .* expects Trace 300"),
        (
            "_FUNCTIONS",
            {**interface._FUNCTIONS, "textmill_new": "ppi"},
            r"textmill_new\(pp\) where .* expects textmill_new\(ppi\)",
        ),
        (
            "_FUNCTIONS",
            {**interface._FUNCTIONS, "textmill_more": "p"},
            r"nothing else where .* expects textmill_more\(p\)",
        ),
    ],
    ids=["version", "struct", "types", "function"],
)
def test_a_library_of_another_interface_is_refused_with_the_difference(
    name: str, value: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library()
    monkeypatch.setattr(interface, name, value)
    with pytest.raises(build.NoKernels, match=message):
        build.kernels(KERNEL_DIR)


def test_a_library_that_cannot_describe_its_interface_is_refused() -> None:
    class Silent:
        class textmill_interface:  # noqa: N801 - a function's name
            restype = ctypes.c_char_p

            def __new__(cls) -> Any:
                return None

    with pytest.raises(InterfaceMismatch, match=f"version {interface.VERSION}"):
        declare(Silent())  # type: ignore[arg-type]
