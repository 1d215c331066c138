"""Why a single sign-on ended without a session. The sentences are for the person who tried.

They contain nothing that the provider or the address bar chose, except the short code of an error.
"""

from __future__ import annotations

from textmill.core.errors import TextmillError


class SignInFailed(TextmillError):
    """The provider, or a rule of this service, does not let the person in.

    Args:
        message: for the person.
        reason: for the log; without names, tokens, codes and secrets.
    """

    code = "sign_in_failed"
    http_status = 403

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class SignInLost(SignInFailed):
    """The answer does not belong to a sign-in that this browser began."""

    code = "sign_in_lost"
    http_status = 400

    def __init__(self) -> None:
        super().__init__(
            "This sign-in was not begun in this browser, or it has ended already, or it took longer"
            " than ten minutes. Begin again; your browser must accept cookies of this site.",
            "no such sign-in in this browser",
        )


class ProviderUnusable(SignInFailed):
    """The provider does not answer, or its answers cannot be used; the log says why."""

    code = "provider_unusable"
    http_status = 503

    def __init__(self, reason: str) -> None:
        super().__init__(
            "The provider of the single sign-on does not answer as it should. Try again in a"
            " moment, or sign in with an API key.",
            reason,
        )
