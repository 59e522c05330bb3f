"""The keys of a run's configuration, as frozen dataclasses."""

from dataclasses import dataclass
from typing import Literal

from sordino.canaries import CanaryConfig
from sordino.records import DataConfig, SplitConfig
from sordino.results import AuditPlan

__all__ = ["DPConfig", "MethodConfig", "ModelConfig", "MonitorConfig", "RunConfig", "ShardConfig", "TrainConfig"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model: `sordino-tiny`, a local folder, or a hub id.

    `remote_code` lets code that came with the model run; `device` is auto, cpu, cuda or mps.
    """

    path: str = "sordino-tiny"
    revision: str | None = None
    remote_code: bool = False
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """How weights are tuned; see docs/fine-tuning.md for what each `kind` does.

    For `lora`: `variant`, `rank`, `alpha`, `dropout`, and `targets`, names of linear modules that
    get an adapter (`all-linear`: all but the head). For `prefix` and `prompt`: `virtual_tokens`.
    For `adapters`: the width of their `bottleneck`. A value for a key the method has no use for is
    an error.
    """

    kind: Literal["lora", "full", "prefix", "prompt", "ia3", "bitfit", "head", "adapters"] = "lora"
    variant: Literal["plain", "rslora", "dora", "ffa"] = "plain"
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all-linear"
    virtual_tokens: int = 20
    bottleneck: int = 64


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """Memorisation over time: the planted canaries are scored every so many steps, and change nothing."""

    every: int = 100


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training loop. `batch_size` counts records an optimizer step, in `accumulation` parts.

    `max_length` is in tokens (default: the model's context, at most 1,024); `too_long` says what
    becomes of longer records; `warmup` is a share of all steps; `clip` the largest gradient norm
    (0: none); `checkpoint_every` in steps; `validate_every` in steps (default: once an epoch).
    `select` says which weights are kept: the last, or those with the best validation loss.
    `precision` is that of matrix products; weights stay float32. `gradient_checkpointing` computes
    activations twice to keep fewer of them. `per_sample` is the way in which private training gets
    the gradient norm of each unit, which changes speed and memory and nothing else; `auto` takes the
    fastest that fits into the device, or into `memory` GiB where that is less.

    Against memorisation: `goldfish` k leaves 1 in k targets out of the loss, always the same (0: none);
    `dropout` is the probability of all dropout of the model (None: as it came); `stop_loss` ends training
    at the first validation loss that is no higher.

    `monitor` has the planted canaries scored while the model is trained (None: not).
    """

    epochs: int = 3
    batch_size: int = 8
    accumulation: int = 1
    learning_rate: float = 2e-4
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.0
    clip: float = 1.0
    max_length: int | None = None
    too_long: Literal["truncate", "split", "refuse"] = "truncate"
    checkpoint_every: int = 100
    validate_every: int | None = None
    select: Literal["last", "best"] = "last"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_checkpointing: bool = False
    per_sample: Literal["auto", "book-keeping", "two-backward", "one-by-one"] = "auto"
    memory: float | None = None
    goldfish: int = 0
    dropout: float | None = None
    stop_loss: float | None = None
    monitor: MonitorConfig | None = None


@dataclass(frozen=True, kw_only=True)
class DPConfig:
    """Differential privacy of the training, planned by `sordino.dp.DPPlan`; see docs/differential-privacy.md.

    Give the target `epsilon`, or a `noise_multiplier`. `delta` is 1/N^1.1 of N units unless given.
    `unit` is who or what is protected: a subject (`data.unit`; a record where that is not set), a
    record, or a near-duplicate cluster of subjects, which is what shares an audit coin. A unit gives
    at most `records_per_unit` records to a step. `relation` says which data sets are neighbours.
    `sampler` says how the units of a step are drawn, which decides about what they cost.
    A unit's `loss` in a step is the mean NLL over all its targets, or their sum.
    `clip_norm` bounds what a unit adds to a step, by the way that `clipping` names; adaptive, it is where
    the norm begins, which then follows the `quantile` of the gradients' norms.
    `secure` draws noise from a cryptographic generator on every device, as sums that withstand attacks on
    floating point. `seed` makes noise and samples repeatable, for research: the guarantee then assumes that
    nobody knows it.
    """

    epsilon: float | None = None
    noise_multiplier: float | None = None
    delta: float | None = None
    unit: Literal["subject", "record", "cluster"] = "subject"
    relation: Literal["add-or-remove-one", "replace-one"] = "add-or-remove-one"
    sampler: Literal["poisson", "fixed-size", "shuffled"] = "poisson"
    loss: Literal["mean", "sum"] = "mean"
    clip_norm: float = 1.0
    clipping: Literal["flat", "automatic", "per-layer", "adaptive"] = "flat"
    quantile: float = 0.5
    records_per_unit: int = 4
    secure: bool = False
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """Training in shards, so that a deletion is exact and costs a part of training anew; see docs/unlearning.md.

    `count` adapters are trained, each on its own units, which come in `slices`, one after the other; `train.epochs`
    are those of each slice. `combine` says what answers: the mean of the adapters as one adapter (merge), or the
    mean of the probabilities of all of them (ensemble).
    """

    count: int = 8
    slices: int = 4
    combine: Literal["merge", "ensemble"] = "merge"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything about a run; see `sordino init` for a commented file.

    `task` says what is learned: to write the records, or to tell which class (`data.label`) each is of.
    """

    data: DataConfig
    name: str = "run"
    task: Literal["causal-lm", "classification"] = "causal-lm"
    out: str = "runs"
    seed: int = 0
    model: ModelConfig = ModelConfig()
    split: SplitConfig = SplitConfig()
    canaries: CanaryConfig = CanaryConfig()
    method: MethodConfig = MethodConfig()
    train: TrainConfig = TrainConfig()
    dp: DPConfig | None = None
    shards: ShardConfig | None = None
    audit: AuditPlan = AuditPlan()
