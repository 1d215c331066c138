"""``python -m textmill.finetune``: the command, beside ``textmill finetune``."""

from __future__ import annotations

from textmill.finetune.command import main

if __name__ == "__main__":
    main()
