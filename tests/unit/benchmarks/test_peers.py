"""Other engines in the benchmarks: their names on the command line, and their output."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from benchmarks import peers
from benchmarks.peers import in_turn, json_lines, parse_peer
from benchmarks.processes import BenchmarkError


def test_a_peer_is_a_name_and_an_interpreter() -> None:
    peer = parse_peer(f"llama.cpp={sys.executable}")
    assert (peer.name, peer.precision) == ("llama.cpp", "Q4_1")
    for text in (f"nobody={sys.executable}", "vllm=/no/such/python", "vllm"):
        with pytest.raises(argparse.ArgumentTypeError):
            parse_peer(text)


def test_every_peers_program_is_there() -> None:
    folder = Path(peers.__file__).parent / "peer_programs"
    for program, _, _ in peers._PROGRAMS.values():
        assert (folder / program).is_file()


def test_only_json_lines_count_and_a_failure_is_told() -> None:
    noisy = [sys.executable, "-c", "print('loading'); print('{\"batch\": 1}')"]
    assert json_lines(noisy, "it") == [{"batch": 1}]
    with pytest.raises(BenchmarkError, match=r"it failed: .*no model"):
        json_lines([sys.executable, "-c", "raise SystemExit('no model')"], "it")
    with pytest.raises(BenchmarkError, match="did not run"):
        json_lines(["/no/such/program"], "it")


def test_calls_are_made_in_turn() -> None:
    made: list[str] = []
    in_turn([lambda: made.append("a"), lambda: made.append("b")], rounds=2)
    assert made == ["a", "b", "a", "b"]
