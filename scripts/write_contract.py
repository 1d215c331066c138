"""Writes web/static/js/contract.js from the Python sources."""

from __future__ import annotations

from pathlib import Path

from textmill.backend.pages.script_contract import contract_js

PATH = Path(__file__).resolve().parents[1] / "web" / "static" / "js" / "contract.js"

if __name__ == "__main__":
    PATH.write_text(contract_js(), encoding="utf-8")
