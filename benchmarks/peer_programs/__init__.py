"""Programs that time other engines. Each runs under an interpreter with that engine installed.

They do not import Textmill, and print one JSON line for each batch size, so that
``benchmarks.peers`` can compare them with the engine in one run.
"""
