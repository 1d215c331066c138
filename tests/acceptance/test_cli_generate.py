"""``textmill generate`` as a process, against a small scripted HTTP server."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Document = dict[str, Any]


def job(status: str = "queued", **fields: Any) -> Document:
    return {"id": "j1", "status": status, "text": "", "error": None, **fields}


class Server(ThreadingHTTPServer):
    """Answers from a script.

    Attributes:
        streams: one list of stream lines per connection; ``None`` holds the stream open.
        final: what a long poll answers.
        refusal: (status, problem) for a submission, if any.
        num_refusals: the number of refusals; ``None``: all submissions are refused.
        loses_answers: the number of submissions that are accepted without an answer.
        keys: the idempotency keys of the accepted submissions.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.streams: list[list[str] | None] = []
        self.final = job("succeeded", text="polled")
        self.refusal: tuple[int, Document] | None = None
        self.num_refusals: int | None = None
        self.loses_answers = 0
        self.keys: list[str | None] = []
        self.submitted: list[Document] = []
        self.resumed: list[str | None] = []
        self.canceled = threading.Event()
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.endswith("/cancel"):
            self.server.canceled.set()
            self._answer(202, job("canceled"))
        elif self.server.refusal:
            self._answer(*self.server.refusal)
            if self.server.num_refusals is not None:
                self.server.num_refusals -= 1
                self.server.refusal = self.server.refusal if self.server.num_refusals else None
        else:
            self.server.keys.append(self.headers.get("Idempotency-Key"))
            self.server.submitted.append(json.loads(body))
            if self.server.loses_answers:
                self.server.loses_answers -= 1
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self._answer(202, job())

    def do_GET(self) -> None:
        if not self.path.endswith("/events"):
            self._answer(200, self.server.final)
            return
        self.server.resumed.append(self.headers.get("Last-Event-ID"))
        if not self.server.streams:
            self._answer(503, {"detail": "no streams today"})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        lines = self.server.streams.pop(0)
        if lines is None:
            self.wfile.write(b'id: 1-1\nevent: token\ndata: {"text": "begun", "tokens": 1}\n\n')
            self.server.closing.wait()
        else:
            self.wfile.write("".join(lines).encode())

    def _answer(self, status: int, document: Document) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if status == 503:
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def generate(server: Server) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "textmill", "generate", "--url", server.url, *arguments]
        return subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=60, check=False
        )

    return run


Generate = Callable[..., subprocess.CompletedProcess[str]]


def token(identifier: str, text: str) -> str:
    return f"id: {identifier}\nevent: token\ndata: {json.dumps({'text': text, 'tokens': 1})}\n\n"


def done(**fields: Any) -> str:
    return f"id: 9-9\nevent: done\ndata: {json.dumps(job(**fields))}\n\n"


def test_the_text_is_printed_as_it_comes(server: Server, generate: Generate) -> None:
    server.streams = [
        [token("1-1", "Once "), token("1-2", "upon"), done(status="succeeded", text="Once upon")]
    ]
    result = generate(
        "Title:", "--strategy", "top_k", "--top-k", "10", "--seed", "7", "--stop", "x"
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "Once upon\n", "")
    assert server.submitted == [
        {"prompt": "Title:", "strategy": "top_k", "top_k": 10, "seed": 7, "stop": ["x"]}
    ]


def test_the_numbers_of_the_strategy_custom_are_options(server: Server, generate: Generate) -> None:
    options = ["--strategy", "custom", "--top-p", "0.9", "--frequency-penalty", "-0.5"]
    generate("Title:", *options, "--dry-range", "64", "--xtc-probability", "0.5")
    [asked] = server.submitted
    expected = {"strategy": "custom", "top_p": 0.9, "frequency_penalty": -0.5}
    expected |= {"dry_range": 64, "xtc_probability": 0.5}
    assert {name: asked.get(name) for name in expected} == expected


def test_a_broken_stream_is_resumed_and_nothing_is_printed_twice(
    server: Server, generate: Generate
) -> None:
    server.streams = [
        [token("1-1", "Once "), 'id: 1-2\nevent: token\ndata: {"te'],
        ["id: 2-1\nevent: reset\ndata: {}\n\n", token("2-2", "Once up"), token("2-3", "on")],
        [done(status="succeeded", text="Once upon a time")],
    ]
    result = generate("Title:")
    assert (result.returncode, result.stdout) == (0, "Once upon a time\n")
    assert server.resumed == [None, "1-1", "2-3"]


def test_without_streams_the_job_is_polled(server: Server, generate: Generate) -> None:
    result = generate("Title:")
    assert (result.returncode, result.stdout) == (0, "polled\n")


def test_json_prints_the_final_job_alone(server: Server, generate: Generate) -> None:
    server.streams = [[token("1-1", "é"), done(status="succeeded", text="é")]]
    result = generate("Title:", "--json")
    assert json.loads(result.stdout) == job("succeeded", text="é")


def test_a_prompt_comes_from_standard_input(server: Server, generate: Generate) -> None:
    generate("-", stdin="from a pipe\n")
    assert server.submitted == [{"prompt": "from a pipe\n"}]


def test_a_refusal_is_printed_field_by_field(server: Server, generate: Generate) -> None:
    errors = [{"field": "temperature", "message": "must be at most 2"}]
    server.refusal = (422, {"detail": "A field is bad.", "errors": errors})
    result = generate("Title:", "--temperature", "3")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "textmill: A field is bad.\n  temperature: must be at most 2\n"


def test_a_job_that_failed_gives_its_reason_and_a_status(
    server: Server, generate: Generate
) -> None:
    error = {"code": "worker_lost", "message": "The worker was lost three times."}
    server.streams = [[token("1-1", "half"), done(status="failed", text="half", error=error)]]
    result = generate("Title:")
    assert (result.returncode, result.stdout) == (1, "half\n")
    assert result.stderr == "textmill: The job j1 failed: The worker was lost three times.\n"


def test_an_address_where_nothing_answers_is_one_sentence() -> None:
    command = [sys.executable, "-m", "textmill", "generate", "x", "--url", "http://127.0.0.1:1"]
    command += ["--retry-for", "0.5"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert result.stderr == (
        "textmill: Nothing answers at http://127.0.0.1:1; is `make up` running?\n"
    )


def test_ctrl_c_cancels_the_job(server: Server) -> None:
    server.streams = [None]
    # A shell's background job ignores the signal, and its children inherit that.
    listens = "import signal, runpy; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = [sys.executable, "-c", listens + "runpy.run_module('textmill', run_name='__main__')"]
    with subprocess.Popen(
        [*command, "generate", "x", "--url", server.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(5) == "begun"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert "the job was cancelled" in process.stderr.read()
    assert server.canceled.is_set()


def test_a_submission_whose_answer_was_lost_is_repeated_under_its_key(
    server: Server, generate: Generate
) -> None:
    server.loses_answers = 2
    result = generate("Title:")
    assert (result.returncode, result.stdout) == (0, "polled\n")
    assert len(server.keys) == 3
    assert len(set(server.keys)) == 1
    assert server.keys[0]
    generate("Title:")
    assert len(set(server.keys)) == 2  # another call, another key


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_server_that_is_not_ready_is_asked_again(
    server: Server, generate: Generate, status: int
) -> None:
    server.refusal, server.num_refusals = (status, {"detail": "not now"}), 2
    result = generate("Title:")
    assert (result.returncode, result.stdout, result.stderr) == (0, "polled\n", "")
    assert len(server.submitted) == 1


def test_streams_that_bring_nothing_end_in_polling(server: Server, generate: Generate) -> None:
    server.streams = [[": open\n\n"] for _ in range(9)]
    assert generate("Title:").stdout == "polled\n"
    assert len(server.resumed) == 5


def test_what_a_poll_has_printed_a_later_stream_does_not_repeat(
    server: Server, generate: Generate
) -> None:
    server.streams = [[": open\n\n"] for _ in range(5)]
    server.streams += [[token("1-9", " a time"), done(status="succeeded", text="Once a time")]]
    server.final = job("running", text="Once", cursor="1-4")
    assert generate("Title:").stdout == "Once a time\n"
    assert server.resumed[-1] == "1-4"


HOSTILE = "a\x1b]0;title\x07\x9b31m\r\u202eb\tc\nd\u2066é👩\u200d💻"


def test_a_pipe_gets_the_text_as_it_is(server: Server, generate: Generate) -> None:
    server.streams = [[done(status="succeeded", text=HOSTILE)]]
    command = [sys.executable, "-m", "textmill", "generate", "--url", server.url, "x"]
    result = subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert result.stdout.decode() == HOSTILE + "\n"
    server.streams = [[done(status="succeeded", text=HOSTILE)]]
    as_json = generate("x", "--json").stdout
    assert json.loads(as_json)["text"] == HOSTILE
    assert not set("\x1b\x07\x9b\r\u202e\u2066") & set(as_json)


def test_a_terminal_gets_no_character_that_would_command_it(server: Server) -> None:
    server.streams = [[token("1-3", HOSTILE[:3]), done(status="succeeded", text=HOSTILE)]]
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "textmill", "generate", "--url", server.url, "x"]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # what Linux raises at a terminal's end
            while piece := os.read(ours, 4096):
                shown += piece
        assert process.wait(60) == 0
    os.close(ours)
    text = shown.decode().replace("\r\n", "\n")
    assert not set("\x1b\x07\x9b\r\u202e\u2066") & set(text)
    assert text == ("a\\x1b]0;title\\x07\\x9b31m\\x0d\\u202eb\tc\nd\\u2066é👩\u200d💻\n")
