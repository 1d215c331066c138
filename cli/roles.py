"""The roles whose packages are installed (docs/decisions/0019)."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

Role = Literal["web", "worker"]
# One package that no other role needs tells whether a role is installed.
_OWN_PACKAGE: dict[Role, str] = {"web": "flask", "worker": "torch"}


def installed_roles() -> frozenset[Role]:
    """The roles that can run on this machine; imports none of their packages."""
    return frozenset(role for role, package in _OWN_PACKAGE.items() if find_spec(package))
