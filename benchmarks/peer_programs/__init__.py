"""Programs that time other engines. Each runs under an interpreter that has that engine.

They import nothing of ours and print one JSON line a batch size, so that ``benchmarks.peers`` can
set them beside the engine in one run.
"""
