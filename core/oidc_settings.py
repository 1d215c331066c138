"""Which settings of single sign-on go together, and the packages that they need."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from textmill.core.errors import SettingsError

if TYPE_CHECKING:
    from textmill.core.settings import Settings

_NEEDED = {
    "oidc_issuer": "TEXTMILL_OIDC_ISSUER",
    "oidc_client_id": "TEXTMILL_OIDC_CLIENT_ID",
    "oidc_client_secret": "TEXTMILL_OIDC_CLIENT_SECRET",
}
_FURTHER = {
    "oidc_scopes": "TEXTMILL_OIDC_SCOPES",
    "oidc_admins": "TEXTMILL_OIDC_ADMINS",
    "oidc_allowed": "TEXTMILL_OIDC_ALLOWED",
}
_PACKAGES = ("authlib", "joserfc", "requests")


def check_oidc(settings: Settings) -> None:
    """Refuse settings of single sign-on that are incomplete, or that the mode does not use.

    Raises:
        SettingsError: the sentence names what to set.
    """
    fields = type(settings).model_fields
    given = [
        variable
        for name, variable in (_NEEDED | _FURTHER).items()
        if getattr(settings, name) != fields[name].default
    ]
    if not given:
        return
    if not settings.is_open:
        raise SettingsError(
            f"{given[0]} is set, and TEXTMILL_ACCESS is local, in which nobody signs in. Set"
            " TEXTMILL_ACCESS=team, or remove the settings TEXTMILL_OIDC_…."
        )
    missing = [variable for name, variable in _NEEDED.items() if getattr(settings, name) is None]
    if missing:
        raise SettingsError(f"{given[0]} is set, and single sign-on also needs {missing[0]}.")


def require_packages(settings: Settings) -> None:
    """Check that the packages of single sign-on are installed, if it is set.

    Raises:
        SettingsError: the sentence names the extra that installs them.
    """
    if settings.oidc_issuer is None:
        return
    missing = [package for package in _PACKAGES if find_spec(package) is None]
    if missing:
        raise SettingsError(
            f"TEXTMILL_OIDC_ISSUER is set, and single sign-on needs the package {missing[0]}, which"
            " is not installed: run pip install 'textmill[oidc]', or remove that setting."
        )
