"""Fine-tune language models on private data, and know what leaked.

import sordino

run = sordino.fine_tune(sordino.load_config("run.yaml"))
report = sordino.audit_run(run)
print(report.verdict.headline, report.metrics["membership.auc"])
sordino.write_report(run)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sordino.attacks.base import Attack as Attack
    from sordino.attacks.base import membership as membership
    from sordino.audit.flow import audit as audit_run
    from sordino.audit.flow import audit_model as audit_model
    from sordino.config import RunConfig as RunConfig
    from sordino.config import load as load_config
    from sordino.errors import SordinoError as SordinoError
    from sordino.records import Dataset as Dataset
    from sordino.records import Record as Record
    from sordino.records import read as read_records
    from sordino.report import write_report as write_report
    from sordino.results import AuditReport as AuditReport
    from sordino.results import Estimate as Estimate
    from sordino.run import Run as Run
    from sordino.signals import Signals as Signals
    from sordino.train.flow import fine_tune as fine_tune
    from sordino.unlearn.flow import begin as request_deletion
    from sordino.unlearn.planning import Policy as DeletionPolicy

__version__ = "0.1.0"

_WHERE = {
    "Attack": "sordino.attacks.base:Attack",
    "AuditReport": "sordino.results:AuditReport",
    "DeletionPolicy": "sordino.unlearn.planning:Policy",
    "Dataset": "sordino.records:Dataset",
    "Estimate": "sordino.results:Estimate",
    "Record": "sordino.records:Record",
    "Run": "sordino.run:Run",
    "RunConfig": "sordino.config:RunConfig",
    "Signals": "sordino.signals:Signals",
    "SordinoError": "sordino.errors:SordinoError",
    "audit_model": "sordino.audit.flow:audit_model",
    "audit_run": "sordino.audit.flow:audit",
    "fine_tune": "sordino.train.flow:fine_tune",
    "load_config": "sordino.config:load",
    "membership": "sordino.attacks.base:membership",
    "request_deletion": "sordino.unlearn.flow:begin",
    "read_records": "sordino.records:read",
    "write_report": "sordino.report:write_report",
}

__all__ = [
    "Attack",
    "AuditReport",
    "Dataset",
    "DeletionPolicy",
    "Estimate",
    "Record",
    "Run",
    "RunConfig",
    "Signals",
    "SordinoError",
    "audit_model",
    "audit_run",
    "fine_tune",
    "load_config",
    "membership",
    "read_records",
    "request_deletion",
    "write_report",
]


def __getattr__(name: str) -> Any:
    # Names are imported when they are used: `import sordino` must not cost what torch costs.
    if name not in _WHERE:
        raise AttributeError(f"module 'sordino' has no attribute {name!r}")
    module, _, attribute = _WHERE[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
