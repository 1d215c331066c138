"""``python -m textmill.finetune``: the program behind ``textmill finetune``."""

from __future__ import annotations

from textmill.core.torch_environment import make_products_reproducible

if __name__ == "__main__":
    make_products_reproducible()  # as in the worker, so that figures can be reproduced

    from textmill.finetune.command import main

    main()
