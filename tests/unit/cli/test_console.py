from __future__ import annotations

import os
from pathlib import Path

from textmill.cli.console import Console, LogFile


def test_lines_come_in_order_with_their_names() -> None:
    reader, writer = os.pipe()
    console = Console(writer)
    console.note("starting")
    console.relay("web", "listening")
    console.show("ready")
    console.close()
    os.close(writer)
    with os.fdopen(reader) as pipe:
        assert pipe.read() == "[up] starting\n[web] listening\nready\n"


def test_a_reader_that_went_away_does_not_matter() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    console = Console(writer)
    console.show("to nobody")
    console.close()
    os.close(writer)


def test_a_percent_sign_reaches_the_log_file_as_it_is(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "web.log")
    log.append("100 %s done")
    log.close()
    assert (tmp_path / "web.log").read_text() == "100 %s done\n"
