"""All faults, and the kinds of site that they need."""

from __future__ import annotations

from tests.faults import model_faults, request_faults, store_faults, worker_faults
from tests.faults.models import USUAL_SEED, model_of
from tests.faults.moment import Fault
from tests.faults.request_faults import FLOOD_LIMIT
from tests.faults.site import PlainSite, Site, UpSite
from tests.faults.store_faults import can_mount

SMALL_DISK_MIB = {"sqlite": 16, "postgresql": 192}
SITES = ("up", "plain", "proxied", "small-queue", "small-disk", "up-torch")
DATABASES = ("sqlite", "postgresql")


def all_faults() -> list[Fault]:
    """In the order of the table."""
    return [
        *worker_faults.faults(),
        *store_faults.faults(),
        *request_faults.faults(),
        *model_faults.faults(),
    ]


def make_site(kind: str, database: str) -> Site:
    """A site of this kind, not yet started."""
    model = model_of(USUAL_SEED)
    if kind == "up":
        return UpSite(database, model)
    if kind == "up-torch":
        return UpSite(database, model, {"TEXTMILL_KERNELS": "off"})
    if kind == "small-queue":
        return PlainSite(database, model, {"TEXTMILL_MAX_QUEUED": str(FLOOD_LIMIT)})
    if kind == "small-disk":
        return PlainSite(database, model, disk_mib=SMALL_DISK_MIB[database])
    return PlainSite(database, model, is_proxied=kind == "proxied")


def reason_to_skip(fault: Fault) -> str | None:
    """Why a fault cannot be injected on this machine."""
    if fault.site == "small-disk" and not can_mount():
        return "needs root, to mount a disk"
    return None
