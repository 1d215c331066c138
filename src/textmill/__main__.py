"""``python -m textmill``: the ``textmill`` command without its script."""

from textmill.cli.main import main

main()
