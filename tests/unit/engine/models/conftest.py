"""One thread: tiny products gain nothing from two, and lose much on a busy machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    """Known here too, so that these tests run from any configuration."""
    config.addinivalue_line("markers", "real_model: loads the default model; tens of seconds")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
