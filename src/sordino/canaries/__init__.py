"""Canaries: synthetic records planted before training so that an audit can look for them.

`exposure` plants random secrets at several repetitions and asks how far the model gives them away; `designs`
plants many canaries once each, with coins of probability ½, from which one run bounds ε from below.
"""

from sordino.canaries.designs import AuditCanary, Design, Source, plant_audit
from sordino.canaries.exposure import Canary, CanaryConfig, manifest, plant
from sordino.canaries.keyed import LEVELS, TEMPLATES, AuditCanaries

__all__ = [
    "LEVELS",
    "TEMPLATES",
    "AuditCanaries",
    "AuditCanary",
    "Canary",
    "CanaryConfig",
    "Design",
    "Source",
    "manifest",
    "plant",
    "plant_audit",
]
