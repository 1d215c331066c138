"""What `make bench` runs: the product as real processes, measured from outside.

May import core, migrations and ``cli.embedded_redis``; everything else runs as a subprocess, so
that what is measured is what a visitor meets. Tests are never imported from here.
"""
