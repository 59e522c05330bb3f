"""What a run is: `run.json`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sordino.results.plans import AuditPlan
from sordino.results.values import SCHEMA, Notice

__all__ = ["RunCard"]


@dataclass(frozen=True, kw_only=True)
class RunCard:
    """`run.json`: what was trained, on what, from what, and how it can be repeated.

    `status` "external" is the folder of an audit of a model that Sordino did not train; "unlearning" that of a model
    that is being made to forget, to which `unlearning` says what was asked and how it is done.

    `data` holds the source, the fingerprint and the counts of records and units by role; `model`
    the digests of base weights, adapter and tokenizer; `training` what happened (steps, tokens,
    seconds, losses of the end points); `privacy` what differential privacy is claimed, if any; `notices`
    everything that was merged, cut or left out.
    """

    name: str
    created: str
    status: Literal["prepared", "training", "trained", "unlearning", "external"]
    config: Mapping[str, Any]
    seed: int
    data: Mapping[str, Any]
    model: Mapping[str, Any]
    environment: Mapping[str, str]
    training: Mapping[str, Any] = field(default_factory=dict)
    privacy: Mapping[str, Any] = field(default_factory=dict)
    notices: tuple[Notice, ...] = ()
    plan: AuditPlan = AuditPlan()
    parent: str | None = None
    unlearning: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA
