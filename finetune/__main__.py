"""``python -m textmill.finetune``: the program behind ``textmill finetune``."""

from __future__ import annotations

import os

if __name__ == "__main__":
    # As in `textmill worker`: without it, PyTorch's products on Intel processors depend on the
    # number of rows, and figures could not be reproduced. Set before PyTorch is imported.
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

    from textmill.finetune.command import main

    main()
