"""Differential privacy: plan, sampling, clipping, noise, accounting.

For a training loop of your own: `DPPlan` says what is promised, `Mechanism` keeps it, `Journal` counts the
steps; see docs/differential-privacy.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sordino.config import DPConfig
    from sordino.dp.mechanism import Mechanism
    from sordino.dp.plan import DPPlan
    from sordino.dp.selfaudit import self_audit
    from sordino.ledger import Journal

__all__ = ["DPConfig", "DPPlan", "Journal", "Mechanism", "self_audit"]

_HOMES = {
    "DPConfig": "sordino.config",
    "DPPlan": "sordino.dp.plan",
    "Journal": "sordino.ledger",
    "Mechanism": "sordino.dp.mechanism",
    "self_audit": "sordino.dp.selfaudit",
}


def __getattr__(name: str) -> Any:
    # Accounting is used where torch is not wanted: nothing is imported before it is asked for.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
