"""The results, the table and the page of a run, and what it must not overwrite."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.faults import __main__ as program
from tests.faults import report
from tests.faults.moment import Result
from tests.faults.registry import DATABASES, SITES, all_faults
from tests.faults.runner import Run, plan
from tests.faults.soak import FILLS, Snapshot, eligible, growth
from tests.faults.verdict import Counts

FAULTS = {fault.name: fault for fault in all_faults()}


def result(fault: str = "redis-wiped", seed: int = 1, **counts: Any) -> Result:
    made = Counts(accepted=10, by_rule=10)
    return Result(fault, "sqlite", seed, replace(made, **counts), [], [], 3.0)


def test_every_fault_has_a_site_a_database_and_a_name_of_its_own() -> None:
    assert len(FAULTS) == len(all_faults()) >= 45
    for fault in all_faults():
        assert fault.name
        assert fault.description
        assert fault.site in SITES
        assert set(fault.databases) <= set(DATABASES)
        assert fault.hold[0] <= fault.hold[1]


def test_a_plan_has_every_moment_once_and_follows_from_its_seed() -> None:
    faults = [FAULTS["redis-wiped"], FAULTS["postgres-frozen"], FAULTS["sqlite-locked"]]
    tasks = plan(faults, DATABASES, 20, seed=5)
    done = [(task.fault.name, task.database) for task in tasks]
    assert {pair: done.count(pair) for pair in done} == {
        ("redis-wiped", "sqlite"): 20,
        ("sqlite-locked", "sqlite"): 20,
        ("redis-wiped", "postgresql"): 20,
        ("postgres-frozen", "postgresql"): 20,
    }
    assert len({task.seed for task in tasks}) == len(tasks)
    assert tasks == plan(faults, DATABASES, 20, seed=5) != plan(faults, DATABASES, 20, seed=6)


def test_results_survive_a_line_that_was_cut(tmp_path: Path) -> None:
    file = report.ResultFile(tmp_path / "results.jsonl")
    file.begin({"seed": 3, "wanted": 2})
    file.add(result(lost=1))
    file.begin({"postgresql": "18.0"})
    with file.path.open("a") as half:
        half.write('{"fault": "redis-w')
    header, results = file.read()
    assert header == {"seed": 3, "wanted": 2, "postgresql": "18.0"}
    assert results == [result(lost=1)]


def test_a_row_shows_the_counts_and_whether_the_bounds_were_held() -> None:
    held = report.table_row(FAULTS["redis-wiped"], "sqlite", [result(), result(seed=2)])
    assert "| sqlite | 2 | 20 | 20 | 0 |" in held
    assert held.endswith(": held |")
    broken = replace(result(lost=1), violations=["1 lost"])
    row = report.table_row(FAULTS["redis-wiped"], "sqlite", [result(), broken])
    assert "**exceeded** in 1 of 2" in row
    section = report.faults_section({"seed": 1, "wanted": 2}, [result(), broken])
    assert "seed 1: 1 lost" in section
    assert "1 lost" in section
    assert "All bounds were held" not in section


def test_a_part_of_the_table_says_that_it_is_one() -> None:
    assert "Incomplete table" in report.faults_section({"wanted": 20}, [result()])
    assert "Incomplete table" not in report.faults_section({"wanted": 1}, [result()])
    assert "All bounds were held" not in report.faults_section({"wanted": 1}, [])


def test_the_sections_of_the_page_are_replaced_one_by_one(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    report.write_section("soak", "## Soak one\n", page)
    report.write_section("faults", "## Faults one\n", page)
    report.write_section("soak", "## Soak two\n", page)
    text = page.read_text()
    assert text.count("## ") == 2
    assert text.index("## Faults one") < text.index("## Soak two")
    assert text.startswith("# Reliability under faults\n")


@pytest.mark.parametrize(
    ("arguments", "is_written", "status"),
    [
        ([], True, 0),
        (["--only", "redis-wiped"], False, 0),
        (["--database", "sqlite"], False, 0),
        (["--moments", "1"], False, 0),
    ],
)
def test_only_a_whole_run_writes_the_page(
    arguments: list[str],
    is_written: bool,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(report, "DOCUMENT", tmp_path / "page.md")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    written: list[str] = []
    monkeypatch.setattr(report, "write_section", lambda name, text: written.append(name))
    monkeypatch.setattr(Run, "run", _pretend)
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    assert program.main([*arguments, "--seed", "1"]) == status
    assert bool(written) == is_written


def _pretend(run: Run) -> None:
    """Every moment kept the bounds."""
    for task in run.tasks:
        counts = Counts(accepted=1, by_rule=1, recovery=1.0)
        run.on_result(Result(task.fault.name, task.database, task.seed, counts, [], [], 1.0))


def test_a_broken_bound_is_the_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: Run) -> None:
        run.on_result(replace(result(seed=run.tasks[0].seed), violations=["1 lost"]))

    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(Run, "run", fail)
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    assert program.main(["--only", "redis-wiped", "--database", "sqlite", "--moments", "1"]) == 1


def test_moments_that_were_not_done_are_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(Run, "run", lambda run: None)
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    assert program.main(["--only", "redis-wiped", "--database", "sqlite", "--moments", "1"]) == 1


def test_an_unknown_fault_is_refused() -> None:
    assert program.main(["--only", "nothing-of-that-name"]) == 2


# ---- the soak -------------------------------------------------------------------------------


def snapshot(memory: int = 100_000, files: int = 40, jobs: int = 10, keys: int = 5) -> Snapshot:
    return Snapshot(
        memory_kib={"web": {7: memory}},
        open_files={"web": {7: files}},
        rows={"jobs": jobs, "workers": 2},
        num_keys=keys,
        num_lasting_keys=keys,
    )


def test_what_stayed_the_same_did_not_grow() -> None:
    assert growth(snapshot(), snapshot(memory=104_000, files=42, jobs=15), 5) == []


@pytest.mark.parametrize(
    ("after", "word"),
    [
        (snapshot(memory=106_000, jobs=15), "grew by 6%"),
        (snapshot(files=60, jobs=15), "open files"),
        (snapshot(jobs=16), "rows in jobs"),
        (snapshot(jobs=14), "rows in jobs"),
        (snapshot(jobs=15, keys=90), "never expire"),
        (snapshot(jobs=15, keys=26), "26 keys in Redis instead of 5"),
        (replace(snapshot(), rows={"jobs": 15, "workers": 9}), "rows in workers"),
        (replace(snapshot(jobs=15), memory_kib={"web": {8: 1}}), "no process ran"),
    ],
)
def test_whatever_grew_is_told(after: Snapshot, word: str) -> None:
    assert any(word in sentence for sentence in growth(snapshot(), after, 5))


def test_redis_may_hold_a_few_more_connections_but_not_many() -> None:
    def of_redis(files: int) -> Snapshot:
        usual = snapshot(jobs=15)
        return replace(usual, memory_kib={"redis": {8: 5_000}}, open_files={"redis": {8: files}})

    before = replace(of_redis(18), rows=snapshot().rows)
    assert growth(before, of_redis(27), 5) == []
    assert growth(before, of_redis(81), 5) == ["redis has 81 open files instead of 18"]


@pytest.mark.parametrize("database", DATABASES)
def test_the_second_half_of_a_soak_leaves_the_processes_alive(database: str) -> None:
    kills, others = eligible(database)
    assert kills
    assert len(others) >= 8
    assert FILLS[database] in {fault.name for fault in others}
    assert not any("worker" in fault.name or "restart" in fault.name for fault in others)


@pytest.mark.parametrize("point", ["prefill", "before_result", "after_result", "before_ticket"])
def test_the_product_has_every_failpoint_that_a_fault_arms(point: str) -> None:
    sources = [p for folder in ("backend", "worker") for p in (report.ROOT / folder).rglob("*.py")]
    call = re.compile(rf'reach(?:\(|, )"{point}"')  # also partial(reach, "…")
    assert any(call.search(source.read_text(encoding="utf-8")) for source in sources)
