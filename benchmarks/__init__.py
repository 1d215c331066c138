"""The benchmarks that `make bench` runs: the product as real processes, measured from outside.

May import core, migrations and ``cli.embedded_redis``. Everything else runs as a subprocess, so
that the measurements are those of a visitor. Never imports tests.
"""
