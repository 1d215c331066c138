"""The search of the history: one matrix, and the same answers on both databases."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, select, update

from tests.integration.core.conftest import Bench, outcome
from textmill.core.database.connections import reading, writing
from textmill.core.database.maintenance import BATCH_ROWS, Upkeep, analyze, renew_search
from textmill.core.database.tables import Job
from textmill.core.jobs.search import RULES
from textmill.core.jobs.store import JobStore

TEXTS = {
    "thai": "ภาษาไทยเป็นภาษาที่มีระดับเสียง",
    "lao": "ພາສາລາວເປັນພາສາ",
    "khmer": "ភាសាខ្មែរជាភាសា",
    "burmese": "မြန်မာဘာသာစကား",
    "hindi": "हिन्दी भाषा",
    "bones": "हनद भष",  # the same letters without their vowel signs
    "gagarin": "ガガーリンは宇宙へ",
    "kakarin": "カカーリンという名",
    "korean": "한국어를 배우는 사람",
    "tokyo": "東京都に住む",
    "kyoto": "京東の都 東京",
    "family": "a 👩‍👩‍👧 and ❤️ and 👍🏽 and 1️⃣",
    "grin": "so 😀! 🇩🇪",
    "russian": "Новый ёж и йод",
    "without": "новыи еж",
    "turkish": "ISPARTA İstanbul ılık",
    "german": "Straße STRASSE naïve",
    "greek": "Σίσυφος ΟΔΟΣ",
    "arabic": "كِتَابٌ جَدِيد أحمد",
    "hebrew": "שָׁלוֹם",
    "wide": "ＡＢＣ　１２３ ｶﾞｲﾄﾞ",
    "joined": "क्‍ष net­work",
}
QUERIES = {
    "ภาษาไทย": {"thai"}, "ไทยเป็น": {"thai"}, "ภาษา": {"thai"}, "ไทยภาษา": set(),
    "ระดับเสียง": {"thai"},
    "ພາສາລາວ": {"lao"}, "ខ្មែរ": {"khmer"}, "ဘာသာ": {"burmese"}, "မြန်မာစကား": set(),
    "हिन्दी": {"hindi"}, "हनद": {"bones"}, "हिन्दी भाषा": {"hindi"}, "हिन्द": set(),
    "ガガーリン": {"gagarin"}, "カカーリン": {"kakarin"}, "ｶﾞｶﾞｰﾘﾝ": {"gagarin"}, "宇宙": {"gagarin"},
    "한국어": {"korean"}, "한국": {"korean"}, "하": set(), "국어를 사람": {"korean"},
    "어한국": set(),
    "東京": {"tokyo", "kyoto"}, "東京都": {"tokyo"}, "京東": {"kyoto"}, "都東京": set(),
    "東": {"tokyo", "kyoto"},
    "😀": {"grin"}, "🇩🇪": {"grin"}, "👩‍👩‍👧": {"family"}, "👧": {"family"}, "❤": {"family"},
    "❤️": {"family"},
    "👍": {"family"}, "👍🏽": {"family"}, "👍🏿": set(), "1️⃣": {"family"}, "😀😀": set(),
    "йод": {"russian"}, "новый": {"russian"}, "новыи": {"without"}, "еж": {"russian", "without"},
    "isparta": {"turkish"}, "ıSPARTA": {"turkish"}, "istanbul": {"turkish"}, "ilik": {"turkish"},
    "strasse": {"german"}, "STRAẞE": {"german"}, "naive": {"german"}, "NAÏVE": {"german"},
    "σισυφοσ": {"greek"}, "Σίσυφος": {"greek"}, "οδός": {"greek"},
    "كتاب": {"arabic"}, "احمد": {"arabic"},
    "كِتَابٌ": {"arabic"}, "שלום": {"hebrew"}, "abc": {"wide"}, "123": {"wide"}, "ガイド": {"wide"},
    "क्ष": {"joined"}, "network": {"joined"}, "net": set(), "and": {"family"}, "!!": set(),
}  # fmt: skip


def stored(bench: Bench) -> dict[str, str]:
    """Half of the texts as prompts, half as completions: id → name."""
    names = {}
    for number, (name, text) in enumerate(TEXTS.items()):
        job = bench.submit(prompt=text if number % 2 else "zzz")
        if number % 2 == 0:
            bench.store.finish(bench.claimed(), outcome(text=text))
        else:
            bench.store.request_cancel(job.id)
        names[job.id] = name
    return names


def test_every_query_finds_exactly_its_texts(bench: Bench) -> None:
    names = stored(bench)
    found = {query: {names[job_id] for job_id in bench.found(query)} for query in QUERIES}
    assert found == QUERIES


def forget_terms(engine: Engine) -> None:
    """As the previous release wrote its rows: only single characters, without marks."""
    with writing(engine) as connection:
        values = {"search_text": "old", "search_runs": "", "search_rules": None}
        connection.execute(update(Job).values(values))


def test_the_terms_of_another_release_are_cut_anew_in_steps(database: Engine) -> None:
    bench = Bench(JobStore(database))
    names = stored(bench)
    waiting = bench.submit(prompt="ภาษาไทย")
    forget_terms(database)
    assert bench.found("old") == {*names, waiting.id}
    for _ in range(2):
        Upkeep(database).step()
    found = {query: {names[job_id] for job_id in bench.found(query)} for query in QUERIES}
    assert found == QUERIES
    assert bench.found("old") == {waiting.id}  # it ends under a worker's rules
    assert renew_search(database) == 0


def test_terms_are_renewed_in_batches_and_ended_jobs_need_it_no_more(database: Engine) -> None:
    bench = Bench(JobStore(database))
    for _ in range(BATCH_ROWS + 2):
        bench.submit()
        bench.store.finish(bench.claimed(), outcome())
    assert renew_search(database) == 0
    with writing(database) as connection:
        connection.execute(update(Job).values(search_rules=None))
    assert [renew_search(database) for _ in range(3)] == [BATCH_ROWS, 2, 0]
    with reading(database) as connection:
        assert set(connection.execute(select(Job.search_rules)).scalars()) == {RULES}
    analyze(database)


@pytest.mark.parametrize(
    "end",
    [
        lambda bench, job: bench.store.finish(job, outcome(text="東京都")),
        lambda bench, job: (bench.store.request_cancel(job.id), bench.store.release(job)),
        lambda bench, job: (bench.set(job.id, lost_count=2), bench.lose(job.id)),
        lambda bench, job: (bench.store.release(job), bench.store.request_cancel(job.id)),
    ],
    ids=["finished", "canceled", "lost", "canceled-waiting"],
)
def test_however_a_job_ends_it_is_found_by_the_present_rules(bench: Bench, end: object) -> None:
    bench.submit(prompt="ภาษาไทย")
    job = bench.claimed()
    bench.set(job.id, text="東京都")
    end(bench, job)  # type: ignore[operator]
    assert bench.job(job.id).is_final
    assert bench.found("ไทย") == {job.id} == bench.found("京都")
    assert renew_search(bench.engine) == 0
