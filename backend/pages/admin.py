"""The page of admins."""

from __future__ import annotations

from datetime import UTC, datetime

from flask import Blueprint, Response, make_response, render_template, request

from textmill.backend.current import services
from textmill.backend.pages.responses import see_other

blueprint = Blueprint("admin", __name__)


@blueprint.get("/admin")
def admin_page() -> Response:
    """Show owners, keys, people, blocks and the audit log."""
    administration = services().administration
    users = administration.users()
    page = render_template(
        "admin.html",
        owners=administration.owners(),
        keys=administration.keys(),
        users=users,
        names={user.owner_id: user.email or user.name for user in users},
        blocks=administration.blocks(),
        audited=administration.audited(),
        moment=_moment,
    )
    return make_response(page)


@blueprint.post("/admin/revoke")
def revoke() -> Response:
    """Revoke a key."""
    services().administration.revoke(request.form.get("key", ""))
    return see_other("/admin#keys")


@blueprint.post("/admin/disable")
def disable() -> Response:
    """Disable a person."""
    services().administration.disable(request.form.get("user", ""))
    return see_other("/admin#people")


@blueprint.post("/admin/enable")
def enable() -> Response:
    """Let a person sign in again."""
    services().administration.enable(request.form.get("user", ""))
    return see_other("/admin#people")


@blueprint.post("/admin/block")
def block() -> Response:
    """Block a client or an address."""
    form = request.form
    subject = form.get("subject", "").strip()
    services().administration.block(subject, form.get("reason", "").strip())
    return see_other("/admin#blocks")


@blueprint.post("/admin/unblock")
def unblock() -> Response:
    """End a block."""
    services().administration.unblock(request.form.get("subject", ""))
    return see_other("/admin#blocks")


@blueprint.post("/admin/delete")
def delete() -> Response:
    """Delete a job of anybody, with a reason."""
    form = request.form
    services().administration.delete(form.get("job", "").strip(), form.get("reason", "").strip())
    return see_other("/admin#audit")


def _moment(milliseconds: int | None) -> str:
    """An instant for people: to the minute, in UTC."""
    if milliseconds is None:
        return "–"
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M")
