"""What admins see and do: owners, keys, people, blocks, deletions with a reason, the audit log."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Engine

from textmill.backend.services.jobs import JobService
from textmill.core.access import audit, blocks, overview
from textmill.core.access.audit import AuditRecord
from textmill.core.access.blocks import BlockRecord
from textmill.core.access.keys import KeyRecord, KeyStore
from textmill.core.access.overview import OwnerRecord
from textmill.core.access.principals import LOCAL, Principal
from textmill.core.access.users import UserRecord, UserStore

NUM_OWNERS, NUM_AUDITED = 50, 100


class AdministrationService:
    """Serves the page of admins; its address requires their scope."""

    def __init__(
        self,
        engine: Engine,
        keys: KeyStore,
        users: UserStore,
        jobs: JobService,
        principal: Principal = LOCAL,
    ) -> None:
        self._engine = engine
        self._keys = keys
        self._users = users
        self._jobs = jobs
        self._principal = principal

    def seen_by(self, jobs: JobService, principal: Principal) -> AdministrationService:
        """The same service for a principal."""
        return AdministrationService(self._engine, self._keys, self._users, jobs, principal)

    def owners(self) -> Sequence[OwnerRecord]:
        """The owners with most in the queue, then with most stored."""
        return overview.owners(self._engine, NUM_OWNERS)

    def keys(self) -> list[KeyRecord]:
        """All API keys."""
        return self._keys.all()

    def users(self) -> Sequence[UserRecord]:
        """The people who have signed in."""
        return self._users.all()

    def disable(self, user_id: str) -> None:
        """End the sessions of a person, and refuse them from now on.

        Raises:
            NotFound: nobody has this id.
        """
        self._users.disable(user_id, self._principal)

    def enable(self, user_id: str) -> None:
        """Let a person sign in again.

        Raises:
            NotFound: nobody has this id.
        """
        self._users.enable(user_id, self._principal)

    def blocks(self) -> Sequence[BlockRecord]:
        """All blocks."""
        return blocks.blocks(self._engine)

    def audited(self) -> Sequence[AuditRecord]:
        """The latest rows of the audit log."""
        return audit.latest(self._engine, NUM_AUDITED)

    def revoke(self, key_id: str) -> None:
        """Revoke a key.

        Raises:
            NotFound: it is not in use.
        """
        self._keys.revoke(key_id, self._principal)

    def block(self, subject: str, reason: str) -> None:
        """Block a client or an address.

        Raises:
            ValidationFailed: it is neither.
        """
        blocks.block(self._engine, subject, reason, self._principal)

    def unblock(self, subject: str) -> None:
        """End a block."""
        blocks.unblock(self._engine, subject, self._principal)

    def delete(self, job_id: str, reason: str) -> None:
        """Delete a job of anybody.

        Raises:
            NotFound: there is no such job.
        """
        self._jobs.delete(job_id, reason)
