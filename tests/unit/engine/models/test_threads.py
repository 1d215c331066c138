from __future__ import annotations

from pathlib import Path

import pytest

from textmill.engine.models.threads import num_cores, num_threads


def test_a_setting_of_openmp_counts_and_nonsense_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    usual = num_threads()
    assert usual >= 1
    for value, wanted in (("3", 3), ("5,2", 5), ("0", usual), ("many", usual), ("", usual)):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert num_threads() == wanted


def test_threads_of_one_core_count_once(tmp_path: Path) -> None:
    for processor, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        topology = tmp_path / f"cpu{processor}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{siblings}\n")
    assert num_cores({0, 1, 2, 3}, tmp_path) == 2
    assert num_cores({0, 2}, tmp_path) == 1
    assert num_cores({0, 1, 7}, tmp_path) == 3  # the system does not describe 7
