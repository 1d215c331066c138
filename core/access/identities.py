"""Identities: who somebody is by the claims of a provider, and whether they may sign in.

Knows nothing of the protocol: the claims were verified before. Their texts are the provider's and
the person's own, so names are only shown, and an email counts only if the provider has verified it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from textmill.core.settings import Settings

# OpenID Connect Core 1.0, section 2: at most 255 ASCII characters. No provider uses control ones.
_SUBJECT = re.compile(r"(?=.*[!-~])[ -~]{1,255}")
MAX_NAME_CHARACTERS = 100
MAX_EMAIL_CHARACTERS = 254  # RFC 5321


@dataclass(frozen=True, slots=True)
class Identity:
    """A person whom the provider has signed in.

    Attributes:
        user_id: 128 bits, from issuer and subject: the same person for ever, whatever the email.
        subject: the provider's name of the person.
        name: for people to read.
        email: in lower case; empty unless the provider says that it has verified it.
        groups: as the provider names them.
    """

    user_id: str
    subject: str
    name: str
    email: str
    groups: frozenset[str]


def identity_of(issuer: str, claims: Mapping[str, Any]) -> Identity:
    """The person of verified claims.

    Raises:
        ValueError: there is no usable subject.
    """
    subject = claims.get("sub")
    if not isinstance(subject, str) or not _SUBJECT.fullmatch(subject):
        raise ValueError("sub")
    given = _text(claims.get("email"))
    # Some providers send this boolean as a text.
    is_verified = claims.get("email_verified") is True or claims.get("email_verified") == "true"
    is_usable = is_verified and given.count("@") == 1 and len(given) <= MAX_EMAIL_CHARACTERS
    email = given.lower() if is_usable else ""
    names = (claims.get("name"), claims.get("preferred_username"), given, subject)
    name = next(filter(None, map(_text, names)), "?")
    groups = claims.get("groups")
    found = [groups] if isinstance(groups, str) else groups if isinstance(groups, list) else []
    return Identity(
        user_id=user_id(issuer, subject),
        subject=subject,
        name=name[:MAX_NAME_CHARACTERS],
        email=email,
        groups=frozenset(group for group in found if isinstance(group, str)),
    )


def user_id(issuer: str, subject: str) -> str:
    """The id of a person; the issuer contains no space."""
    return hashlib.sha256(f"{issuer} {subject}".encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class SignInRules:
    """Who may sign in, and who is admin.

    Attributes:
        admins: emails, and subjects, which contain no ``@``.
        allowed: emails, domains with their ``@``, and groups, which contain none; empty: everybody.
    """

    admins: frozenset[str]
    allowed: frozenset[str]

    @classmethod
    def of(cls, settings: Settings) -> SignInRules:
        """The rules of an installation."""
        return cls(
            *(frozenset(map(_entry, p)) for p in (settings.oidc_admins, settings.oidc_allowed))
        )

    def is_admin(self, identity: Identity) -> bool:
        """Whether a person is admin."""
        # A subject with an @ may be an address that its owner chose: only a verified email counts.
        is_by_subject = "@" not in identity.subject and identity.subject in self.admins
        return is_by_subject or (identity.email != "" and identity.email in self.admins)

    def may_sign_in(self, identity: Identity) -> bool:
        """Whether a person may sign in; admins always may."""
        if not self.allowed or self.is_admin(identity):
            return True
        email = identity.email
        if email and (email in self.allowed or email[email.index("@") :] in self.allowed):
            return True
        return any("@" not in group and group in self.allowed for group in identity.groups)


def _entry(text: str) -> str:
    return text.lower() if "@" in text else text


def _text(value: object) -> str:
    """A claim as one line that can be shown and stored; empty if it is no text."""
    if not isinstance(value, str):
        return ""
    return "".join(c if c.isprintable() else " " for c in value).strip()
