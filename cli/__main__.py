"""``python -m cli``: the ``textmill`` command without its script."""

from cli.main import main

main()
