"""Pages, search, filters and export: the same answers on both databases."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest
from sqlalchemy import event, update
from sqlalchemy.exc import OperationalError

from tests.integration.backend.conftest import JOBS, RUNS, Site, bad_fields, problem
from textmill.core.database.connections import writing
from textmill.core.database.tables import Job

TEXTS = [
    "Crème brûlée",
    "STRASSE straße",
    "注意力就是一切",
    "Новая модель",
    "a quick zebra",
    "E = mc²",
]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("creme", [0]), ("CRÈME brulee", [0]), ("strasse", [1]), ("STRASSE Straße", [1]),
        ("注意", [2]), ("一切 力", [2]), ("новая", [3]), ("zebra quick", [4]), ("mc2", [5]),
        ("zebra creme", []), ("nothing", []), ("!!! ...", []), ("'\"; DROP TABLE jobs", []),
        ("zebra OR creme", []), ("zeb*", []), ("written", [0, 1, 2, 3, 4, 5]),
    ],
)  # fmt: skip
def test_search_finds_words_whatever_their_case_accent_or_script(
    shared_site: Site, query: str, found: list[int]
) -> None:
    if shared_site.count_rows()[0] == 0:
        for text in TEXTS:
            shared_site.write(text, " written")
    items = shared_site.client.get(f"{JOBS}?q={quote(query)}").get_json()["items"]
    assert [item["prompt"] for item in items] == [TEXTS[number] for number in reversed(found)]


def test_pages_stay_consistent_while_jobs_are_added_and_deleted(site: Site) -> None:
    made = [site.submit(f"a {number}")["id"] for number in range(7)]
    page = site.client.get(f"{JOBS}?limit=3").get_json()
    seen = [item["id"] for item in page["items"]]
    site.submit("a later")
    site.client.delete(f"{JOBS}/{seen[-1]}")
    while page["next_cursor"] is not None:
        page = site.client.get(f"{JOBS}?limit=3&cursor={page['next_cursor']}").get_json()
        seen += [item["id"] for item in page["items"]]
    assert seen == made[::-1]
    searched = site.client.get(f"{JOBS}?q=a&limit=2").get_json()
    rest = site.client.get(f"{JOBS}?q=a&limit=200&cursor={searched['next_cursor']}").get_json()
    assert len(searched["items"]) + len(rest["items"]) == 7
    assert rest["next_cursor"] is None


def test_filters_apply_alone_and_together(site: Site) -> None:
    done = site.write("a", " b", strategy="top_k")
    queued = site.submit("a", model="other")
    run = site.client.post(RUNS, json={"prompt": "a", "variants": [{}]}).get_json()
    in_run = run["jobs"][0]["id"]
    yesterday = (datetime.now(UTC) - timedelta(days=1)).date().isoformat()
    for query, ids in {
        "status=succeeded": [done["id"]],
        "strategy=top_k": [done["id"]],
        "model=other": [queued["id"]],
        f"run_id={run['id']}": [in_run],
        f"since={yesterday}": [in_run, queued["id"], done["id"]],
        f"until={yesterday}": [],
        f"since={quote(queued['created_at'])}&status=queued&model=other": [queued["id"]],
        "status=queued&strategy=top_k": [],
        "q=b&status=succeeded": [done["id"]],
        "run_id=none": [],
        "status=&q=": [in_run, queued["id"], done["id"]],
    }.items():
        items = site.client.get(f"{JOBS}?{query}").get_json()["items"]
        assert [item["id"] for item in items] == ids, query


def test_a_page_is_bounded_in_bytes_and_the_next_one_continues(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("textmill.core.jobs.pages.MAX_PAGE_BYTES", 1_000)
    sizes = [10, 400, 400, 5_000, 10, 10, 999, 300]
    made = [site.write("é" * 200, "ü" * 400)["id"]]
    made += [site.submit("é" * (size // 2))["id"] for size in sizes]
    pages, cursor = [], ""
    while True:
        page = site.client.get(f"{JOBS}?limit=200{cursor}").get_json()
        pages.append([made.index(item["id"]) for item in page["items"]])
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert pages == [[8], [7], [6, 5], [4], [3, 2, 1], [0]]
    exported = site.client.get(f"{JOBS}/export").get_data(as_text=True).splitlines()
    assert [json.loads(line)["id"] for line in exported] == made[::-1]
    assert "/history?cursor=" in site.client.get("/history").text


@pytest.mark.parametrize("form", ["2026-11-25", "20261125", "2026-W48-3", "2026W483"])
def test_until_a_day_includes_the_whole_day_in_every_format(site: Site, form: str) -> None:
    job = site.submit()
    noon = int(datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()) * 1000
    with writing(site.services.store.engine) as connection:
        connection.execute(update(Job).values(created_at=noon))
    for query, num_found in {
        f"until={form}": 1, f"since={form}": 1, "until=2026-11-25t12:00:00z": 1,
        "until=2026-11-25T11:59:59Z": 0, "since=20261126": 0,
    }.items():  # fmt: skip
        items = site.client.get(f"{JOBS}?{query}").get_json()["items"]
        assert [item["id"] for item in items] == [job["id"]] * num_found, query


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (f"{JOBS}?limit={'0' * 9}10000", "limit"), (f"{JOBS}?limit={'9' * 3000}", "limit"),
        (f"{JOBS}?limit=%2B5", "limit"), (f"{JOBS}?limit=1_0", "limit"),
        (f"{JOBS}?limit=%EF%BC%91", "limit"), (f"{JOBS}?cursor={'OTk5' * 500}", "cursor"),
        (f"{JOBS}?q={'a' * 1001}", "q"), (f"{JOBS}?q=a&q=b", "q"), (f"{JOBS}?_=1", "_"),
        (f"{JOBS}?since=0x7e", "since"), (f"{JOBS}/export?until=1&until=2", "until"),
    ],
)  # fmt: skip
def test_parameters_out_of_their_bounds_are_named(shared_site: Site, path: str, field: str) -> None:
    assert bad_fields(shared_site.client.get(path)) == {field}


@pytest.mark.parametrize("query", [f"cursor={'9' * 40}", "q=a&q=b", "since=0", "status=%00"])
def test_the_history_page_names_them_too(shared_site: Site, query: str) -> None:
    answer = shared_site.client.get(f"/history?{query}")
    assert answer.status_code == 422
    assert "Some filters are invalid" in answer.text


def test_positions_count_within_a_model_and_cost_no_query_a_job(site: Site) -> None:
    for number in range(3):
        site.submit(f"a {number}")
    site.submit("a", model="other")
    site.finish(site.claim())
    site.beat(num_slots=2)

    def count(path: str) -> tuple[int, list[int]]:
        statements: list[str] = []

        def note(*arguments: object) -> None:
            statements.append(str(arguments[2]))

        event.listen(site.services.store.engine, "before_cursor_execute", note)
        items = site.client.get(path).get_json()
        event.remove(site.services.store.engine, "before_cursor_execute", note)
        jobs = items.get("items") or items["jobs"]
        return len(statements), [job["queue"]["position"] for job in jobs]

    few, positions = count(f"{JOBS}?status=queued")
    assert positions == [1, 2, 1]
    run = site.client.post(
        RUNS, json={"prompt": "a", "samples": 8, "variants": [{"strategy": "sampling"}]}
    ).get_json()
    many, positions = count(f"{JOBS}?status=queued")
    assert positions == [10, 9, 8, 7, 6, 5, 4, 3, 1, 2, 1]
    assert many <= few  # the pace of each model is known by now
    in_run, positions = count(run["links"]["self"])
    assert positions == [3, 4, 5, 6, 7, 8, 9, 10]
    assert in_run <= few + 1


def test_an_estimate_needs_a_worker_and_recent_jobs(site: Site) -> None:
    site.write("a", " b")
    first, second, third = (site.submit("a") for _ in range(3))
    assert first["queue"] == {"position": 1, "eta_seconds": None}
    site.beat(num_slots=2)
    etas = [
        site.client.get(job["links"]["self"]).get_json()["queue"]["eta_seconds"]
        for job in (first, second, third)
    ]
    assert etas[0] == etas[1] <= etas[2]


def test_an_estimate_is_at_most_a_second_old(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("textmill.backend.services.queue_positions.time.monotonic", lambda: now)
    monkeypatch.setattr(site.services.history, "mean_seconds", lambda model: 10.0)
    path = [site.submit("a") for _ in range(3)][2]["links"]["self"]

    def estimate() -> float | None:
        eta: float | None = site.client.get(path).get_json()["queue"]["eta_seconds"]
        return eta

    assert estimate() is None
    site.beat(num_slots=1)
    assert estimate() == 30.0  # at once: one that could not be given is not kept
    site.beat(num_slots=3)
    now = 100.9
    assert estimate() == 30.0
    now = 101.0
    assert estimate() == 10.0


def test_an_export_has_every_job_as_json_lines(site: Site) -> None:
    ids = [site.write(f"a {number}\u2028b", " c")["id"] for number in range(3)]
    answer = site.client.get(f"{JOBS}/export?q=c")
    lines = answer.get_data(as_text=True).split("\n")
    assert "\u2028" not in answer.get_data(as_text=True)
    assert answer.content_type.startswith("application/jsonl")
    assert "attachment" in answer.headers["Content-Disposition"]
    assert [json.loads(line)["id"] for line in lines[:-1]] == ids[::-1]
    assert lines[-1] == ""


def test_a_csv_export_guards_cells_that_a_spreadsheet_would_evaluate(site: Site) -> None:
    site.write('=HYPERLINK("x")', '+1\n"two"')
    site.write("a, b", " c")
    text = site.client.get(f"{JOBS}/export?format=csv").get_data(as_text=True)
    assert text.startswith("\ufeff")
    header, second, first = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    assert first[header.index("prompt")] == '\'=HYPERLINK("x")'
    assert first[header.index("text")] == '\'+1\n"two"'
    assert second[header.index("prompt")] == "a, b"


def test_an_empty_export_is_empty(site: Site) -> None:
    assert site.client.get(f"{JOBS}/export").get_data() == b""
    assert site.client.get(f"{JOBS}/export?format=csv").get_data().startswith(b"\xef\xbb\xbfid,")


@pytest.mark.parametrize("path", [f"{JOBS}/export", f"{JOBS}/export?format=csv", JOBS])
def test_a_database_that_fails_is_a_503_also_for_an_export(site: Site, path: str) -> None:
    def fail(*_: object) -> None:
        raise OperationalError("select", {}, Exception("disk I/O error"))

    event.listen(site.services.store.engine, "before_cursor_execute", fail)
    answer = site.client.get(path)
    event.remove(site.services.store.engine, "before_cursor_execute", fail)
    problem(answer, 503)
