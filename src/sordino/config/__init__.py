"""The configuration of a run: frozen dataclasses, filled from YAML, then environment, then flags."""

from sordino.config.checks import check_dp, check_method, check_target, check_values
from sordino.config.loading import convert, load, recorded, recorded_as
from sordino.config.plans import check_inputs, check_secrets
from sordino.config.schema import (
    DPConfig,
    MethodConfig,
    ModelConfig,
    MonitorConfig,
    RunConfig,
    ShardConfig,
    TrainConfig,
)

__all__ = [
    "DPConfig",
    "MethodConfig",
    "ModelConfig",
    "MonitorConfig",
    "RunConfig",
    "ShardConfig",
    "TrainConfig",
    "check_dp",
    "check_inputs",
    "check_method",
    "check_secrets",
    "check_target",
    "check_values",
    "convert",
    "load",
    "recorded",
    "recorded_as",
]
