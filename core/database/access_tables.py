"""The tables of ``core.access``: keys, users, tokens, links, blocks, the audit log."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Identity, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from textmill.core.database.tables import Base, RowNumber


class ApiKey(Base):
    """A key, without its secret; ``core.access.keys`` explains the columns."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    prefix: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[str] = mapped_column(String(64))
    sees_all: Mapped[bool] = mapped_column(Boolean)
    tokens_per_day: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int | None] = mapped_column(BigInteger)
    revoked_at: Mapped[int | None] = mapped_column(BigInteger)
    last_used_at: Mapped[int | None] = mapped_column(BigInteger)


class User(Base):
    """A person who signed in by single sign-on; ``core.access.users`` explains the columns."""

    __tablename__ = "users"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    email: Mapped[str] = mapped_column(String(254))
    is_admin: Mapped[bool] = mapped_column(Boolean)
    session_number: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[int] = mapped_column(BigInteger)
    signed_in_at: Mapped[int] = mapped_column(BigInteger)
    disabled_at: Mapped[int | None] = mapped_column(BigInteger)


class Usage(Base):
    """The tokens that a client or an address ordered in a window; see ``core.access.budgets``."""

    __tablename__ = "usage"

    subject: Mapped[str] = mapped_column(String(80), primary_key=True)
    window: Mapped[str] = mapped_column(String(8), primary_key=True)
    tokens: Mapped[int] = mapped_column(BigInteger)
    began_at: Mapped[int] = mapped_column(BigInteger)


class Share(Base):
    """A link that shows one job or run to everybody; see ``core.access.shares``."""

    __tablename__ = "shares"

    token: Mapped[str] = mapped_column(String(32), primary_key=True)
    kind: Mapped[str] = mapped_column(String(8))  # job or run
    object_id: Mapped[str] = mapped_column(String(36), unique=True)
    is_indexed: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int | None] = mapped_column(BigInteger)


class Audit(Base):
    """What somebody did to jobs, keys or links; rows are only added. See ``core.access.audit``."""

    __tablename__ = "audit"
    __table_args__ = ({"sqlite_autoincrement": True},)

    number: Mapped[int] = mapped_column(RowNumber, Identity(), primary_key=True, autoincrement=True)
    at: Mapped[int] = mapped_column(BigInteger)
    principal: Mapped[str] = mapped_column(String(80))
    action: Mapped[str] = mapped_column(String(32))
    object: Mapped[str] = mapped_column(String(100))
    address_id: Mapped[str | None] = mapped_column(String(32))
    reason: Mapped[str | None] = mapped_column(String(200))


class Block(Base):
    """A client or an address that may submit nothing; see ``core.access.blocks``."""

    __tablename__ = "blocks"

    subject: Mapped[str] = mapped_column(String(80), primary_key=True)
    reason: Mapped[str] = mapped_column(String(200))
    at: Mapped[int] = mapped_column(BigInteger)
