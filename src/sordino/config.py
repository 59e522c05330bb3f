"""The configuration of a run: frozen dataclasses, filled from YAML, then environment, then flags.

Unknown keys and mistyped values are errors that name the key, the value and what to do.
"""

import dataclasses
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from sordino.canaries import CanaryConfig
from sordino.canaries.designs import FROM_DATA
from sordino.errors import ConfigError, RunError, did_you_mean
from sordino.inputs import from_environment, merge, parse_flags, read_yaml
from sordino.records import DataConfig, SplitConfig
from sordino.results import AuditPlan, InputPlan

__all__ = [
    "DPConfig",
    "MethodConfig",
    "ModelConfig",
    "MonitorConfig",
    "RunConfig",
    "TrainConfig",
    "check_dp",
    "check_inputs",
    "check_method",
    "check_target",
    "check_values",
    "convert",
    "load",
    "recorded",
    "recorded_as",
]

_NAME = re.compile(r"[\w-]+")
# Which methods use a key of MethodConfig.
_USED_BY = {
    **dict.fromkeys(("variant", "rank", "alpha", "dropout", "targets"), ("lora",)),
    "virtual_tokens": ("prefix", "prompt"),
    "bottleneck": ("adapters",),
}
T = TypeVar("T")


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
    audit: AuditPlan = AuditPlan()


def load(
    path: Path | str | None = None,
    *,
    values: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Sequence[str] = (),
) -> RunConfig:
    """A checked `RunConfig` from a YAML file, a mapping, the environment and flags, later ones winning.

    `environment` holds `SORDINO__TRAIN__EPOCHS=3`-like variables, `flags` words such as
    `--train.epochs 3`. Raises `ConfigError` for unknown keys, wrong types and values out of range.
    """
    merged: dict[str, Any] = dict(read_yaml(Path(path)) if path is not None else {})
    for layer in (
        values or {},
        from_environment(os.environ if environment is None else environment),
        parse_flags(flags),
    ):
        merged = merge(merged, layer)
    _check_keys(merged, RunConfig, "")
    if "data" not in merged:
        raise ConfigError("No data is configured.", "Set `data.path` to your file of records.")
    config = convert(merged, RunConfig)
    check_values(config)
    return config


def convert(values: Mapping[str, Any], kind: type[T]) -> T:
    """`values` as the configuration `kind`; raises `ConfigError` for unknown keys and wrong types."""
    _check_keys(values, kind, "")
    try:
        return _complete(msgspec.convert(values, kind))
    except msgspec.ValidationError as error:
        raise _mistyped(error, values, kind) from error


def recorded(values: Mapping[str, Any], source: str) -> RunConfig:
    """The configuration of a training that a run card holds; raises `RunError` where it was damaged."""
    return recorded_as(RunConfig, values, source)


def recorded_as(kind: type[T], values: Mapping[str, Any], source: str) -> T:
    """The configuration `kind` that a run card holds; raises `RunError` where it was damaged."""
    try:
        return _complete(msgspec.convert(values, kind))
    except msgspec.ValidationError as error:
        raise RunError(f"The configuration in {source} is damaged: {error}.", "Restore the file.") from error


def _complete(value: T) -> T:
    # msgspec leaves defaults on the class, so a converted value would be written without them.
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = {f.name: _complete(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return type(value)(**fields)


def _mistyped(error: msgspec.ValidationError, merged: Mapping[str, Any], kind: Any) -> ConfigError:
    what, _, place = str(error).partition(" - at `$.")
    key = place.rstrip("`").split("[")[0]
    value: Any = merged
    for name in key.split(".") if key else ():
        kind = typing.get_type_hints(_section(kind) or object).get(name)
        value = value.get(name) if isinstance(value, Mapping) else None
    choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
    hint = did_you_mean(str(value), choices) if choices else "See `sordino init` for every key and its default."
    return ConfigError(f"{key or 'The configuration'} is {value!r}: {what.replace('`', '').lower()}.", hint)


def _section(annotation: Any) -> type | None:
    candidates = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return next((c for c in candidates if dataclasses.is_dataclass(c) and isinstance(c, type)), None)


def _check_keys(values: Mapping[str, Any], kind: type, prefix: str) -> None:
    hints = typing.get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind)]
    for key, value in values.items():
        if key not in known:
            message = f"Unknown configuration key '{prefix}{key}'."
            raise ConfigError(message, _whereabouts(str(key), hints) or did_you_mean(str(key), known))
        section = _section(hints[key])
        if section is None or (value is None and type(None) in typing.get_args(hints[key])):
            continue
        if not isinstance(value, Mapping):
            inside = ", ".join(field.name for field in dataclasses.fields(section))
            message = f"'{prefix}{key}' is a section, but its value is {value!r}."
            raise ConfigError(message, f"Write its keys below it: {inside}.")
        _check_keys(value, section, f"{prefix}{key}.")


def _whereabouts(key: str, hints: Mapping[str, Any]) -> str:
    """A hint where a section below has the `key` that was given without it."""
    sections = {name: found for name, hint in hints.items() if (found := _section(hint)) is not None}
    owners = [n for n, kind in sections.items() if key in (f.name for f in dataclasses.fields(kind))]
    return f"Did you mean '{owners[0]}.{key}'?" if len(owners) == 1 else ""


def _check_task(config: RunConfig) -> None:
    if config.task == "causal-lm":
        if config.data.label is not None:
            message = f"data.label is {config.data.label!r}, but the task is causal-lm, which has no labels."
            raise ConfigError(message, "Set task: classification, or leave data.label out.")
        return
    if config.data.label is None:
        hint = "Set data.label to the column of classes; `sordino init FILE --task classification` looks for it."
        raise ConfigError("The task is classification, but no label column is named.", hint)
    if config.train.too_long == "split":
        hint = "Use truncate or refuse."
        raise ConfigError("train.too_long is 'split': the pieces of a text have no class of their own.", hint)
    if config.train.goldfish:
        message = f"train.goldfish is {config.train.goldfish}: it leaves out tokens, and a classifier learns none."
        raise ConfigError(message, "Leave it out; train.dropout and train.stop_loss work for classifiers too.")


def _check_canaries(config: RunConfig) -> None:
    audit, monitor = config.canaries.audit, config.train.monitor
    wanted = [f"canaries.audit.count is {audit.count}"] * bool(audit.count)
    if monitor is not None:
        wanted.append(f"train.monitor scores canaries every {monitor.every} steps")
    if wanted and config.task == "classification":
        message = f"{wanted[0]}, and the task is classification: no canaries are planted in a classifier."
        raise ConfigError(message, "Leave it out.")
    if wanted and not config.split.candidates:
        message = f"{wanted[0]}, and split.candidates is 0: canaries are planted for an audit, which needs candidates."
        raise ConfigError(message, "Give split.candidates a share of the units, 0.4 for example.")
    if monitor is not None and not (audit.count or config.canaries.per_level):
        message = f"{wanted[-1]}, and none are planted."
        raise ConfigError(message, "Set canaries.per_level or canaries.audit.count, or leave train.monitor out.")
    if config.audit.headline == "canaries" and not audit.count:
        message = "audit.headline is canaries, and canaries.audit.count is 0: no bound could come from them."
        raise ConfigError(message, "Plant some, 200 for example, or name an attack.")
    if audit.count and config.dp is not None and audit.design in FROM_DATA:
        message = f"canaries.audit.design is {audit.design}, which plants words of records: under differential privacy"
        raise ConfigError(f"{message} these would count twice.", "Use new-token, secret or high-perplexity.")


def check_target(dp: DPConfig) -> None:
    """Raise `ConfigError` unless there is one target: ε, or a noise multiplier."""
    if (dp.epsilon is None) == (dp.noise_multiplier is None):
        given = "neither dp.epsilon nor dp.noise_multiplier is set" if dp.epsilon is None else "both are set"
        raise ConfigError(f"Under differential privacy, {given}.", "Set dp.epsilon (8 is usual), or the other alone.")


def check_dp(dp: DPConfig) -> None:
    """Raise `ConfigError` unless there is one target, and an accountant for the sampler."""
    check_target(dp)
    if dp.sampler == "shuffled" and dp.relation != "replace-one":
        message = f"dp.sampler is shuffled, which no accountant knows under dp.relation {dp.relation}."
        raise ConfigError(message, "One unit more moves others between batches: use poisson, or relation: replace-one.")
    if dp.clipping != "adaptive" and dp.quantile != 0.5:
        message = f"dp.quantile is {dp.quantile!r}, but dp.clipping {dp.clipping} has no use for it."
        raise ConfigError(message, "Remove it; it belongs to adaptive.")


def _check_private(config: RunConfig) -> None:
    dp, train = config.dp, config.train
    if dp is None:
        return
    check_dp(dp)
    if train.select == "best":
        message = "train.select is 'best': which step is best would be read off private losses, unaccounted."
        raise ConfigError(message, "Use select: last under differential privacy.")
    if train.stop_loss is not None:
        message = f"train.stop_loss is {train.stop_loss:g}: when to stop would be read off private losses, unaccounted."
        raise ConfigError(message, "Fix train.epochs under differential privacy.")


def check_values(config: RunConfig) -> None:
    """Raise `ConfigError` for a value out of its range."""
    _check_task(config)
    _check_private(config)
    _check_canaries(config)
    if config.train.stop_loss is not None and not config.split.validation:
        message = "train.stop_loss is set, and split.validation is 0: there is no validation loss."
        raise ConfigError(message, "Give split.validation a share of the units, 0.1 for example.")
    if config.train.gradient_checkpointing and config.method.kind == "prefix":
        # A prefix is keys and values of the past, which checkpointed layers compute anew without.
        message = "train.gradient_checkpointing is true, and method.kind is prefix: the two do not go together."
        raise ConfigError(message, "Set it to false, or use method.kind: prompt.")
    train, method, split, audit, dp = config.train, config.method, config.split, config.audit, config.dp or DPConfig()
    every = train.validate_every
    scored, coins = train.monitor.every if train.monitor else 1, config.canaries.audit.count
    half = train.precision == "fp16" and config.model.device in ("cpu", "mps")
    rules: tuple[tuple[str, Any, bool, str], ...] = (
        ("dp.epsilon", dp.epsilon, dp.epsilon is None or dp.epsilon > 0, "above 0"),
        ("dp.noise_multiplier", dp.noise_multiplier, dp.noise_multiplier is None or dp.noise_multiplier > 0, "above 0"),
        ("dp.delta", dp.delta, dp.delta is None or 0 < dp.delta < 1, "above 0 and far below 1 / units"),
        ("dp.clip_norm", dp.clip_norm, dp.clip_norm > 0, "above 0"),
        ("dp.quantile", dp.quantile, 0 < dp.quantile < 1, "a share between 0 and 1"),
        ("dp.records_per_unit", dp.records_per_unit, dp.records_per_unit >= 1, "at least 1"),
        ("train.epochs", train.epochs, train.epochs >= 1, "at least 1"),
        ("train.batch_size", train.batch_size, train.batch_size >= 1, "at least 1"),
        ("train.accumulation", train.accumulation, 1 <= train.accumulation <= train.batch_size, "1 to batch_size"),
        ("train.learning_rate", train.learning_rate, 0 < train.learning_rate < 10, "above 0 (2e-4 is usual)"),
        ("train.warmup", train.warmup, 0 <= train.warmup < 1, "a share of the steps, 0 to below 1"),
        ("train.weight_decay", train.weight_decay, train.weight_decay >= 0, "0 or more"),
        ("train.clip", train.clip, train.clip >= 0, "0 (none) or more"),
        ("train.max_length", train.max_length, train.max_length is None or train.max_length >= 8, "at least 8 tokens"),
        ("train.checkpoint_every", train.checkpoint_every, train.checkpoint_every >= 1, "at least 1 step"),
        ("train.validate_every", every, every is None or every >= 1, "at least 1 step"),
        ("train.memory", train.memory, train.memory is None or train.memory > 0, "GiB, above 0"),
        ("train.goldfish", train.goldfish, train.goldfish == 0 or train.goldfish >= 2, "0 (none), or 2 and more"),
        ("train.dropout", train.dropout, train.dropout is None or 0 <= train.dropout < 1, "0 to below 1"),
        ("train.stop_loss", train.stop_loss, train.stop_loss is None or train.stop_loss > 0, "above 0, in nats"),
        ("train.monitor.every", scored, scored >= 1, "at least 1 step"),
        ("canaries.audit.count", coins, coins >= 0, "0 (none) or more"),
        ("train.precision", train.precision, not half, "fp32 or bf16 on this model.device; fp16 needs CUDA"),
        ("method.rank", method.rank, method.rank >= 1, "at least 1"),
        ("method.alpha", method.alpha, method.alpha > 0, "above 0"),
        ("method.dropout", method.dropout, 0 <= method.dropout < 1, "0 to below 1"),
        ("method.virtual_tokens", method.virtual_tokens, method.virtual_tokens >= 1, "at least 1"),
        ("method.bottleneck", method.bottleneck, method.bottleneck >= 1, "at least 1"),
        ("split.candidates", split.candidates, 0 <= split.candidates <= 1, "a share, 0 to 1"),
        ("split.validation", split.validation, 0 <= split.validation < 1, "a share, 0 to below 1"),
        ("split", split, split.candidates + split.validation <= 1, "candidates + validation at most 1"),
        ("audit.confidence", audit.confidence, 0.5 < audit.confidence < 1, "0.5 to 1, for example 0.95"),
        ("audit.fpr", list(audit.fpr), bool(audit.fpr) and all(0 < f < 1 for f in audit.fpr), "rates between 0 and 1"),
        ("audit.guess_share", audit.guess_share, 0 < audit.guess_share <= 1, "a share above 0, at most 1"),
        ("audit.bound", audit.bound, audit.bound == "one-run" or audit.delta > 0, "one-run, f-dp with a delta above 0"),
        ("audit.shuffles", audit.shuffles, audit.shuffles >= 99, "at least 99"),
        ("audit.delta", audit.delta, 0 <= audit.delta < 1, "0 to below 1"),
        ("audit.prefix_tokens", audit.prefix_tokens, audit.prefix_tokens >= 1, "at least 1"),
        ("audit.suffix_tokens", audit.suffix_tokens, audit.suffix_tokens >= 1, "at least 1"),
        ("audit.token_forwards", audit.token_forwards, audit.token_forwards >= 1, "at least 1"),
        ("seed", config.seed, 0 <= config.seed < 2**63, "0 to 2^63 - 1"),
        ("name", config.name, _NAME.fullmatch(config.name) is not None, "letters, digits, - and _"),
    )  # fmt: skip
    for key, value, good, allowed in rules:
        if not good:
            raise ConfigError(f"{key} is {value!r}.", f"Allowed: {allowed}.")
    check_inputs(audit.inputs)
    check_method(method)


def check_inputs(inputs: InputPlan) -> None:
    """Raises `ConfigError` where what attacks may use is out of its range."""
    rules: tuple[tuple[str, Any, bool, str], ...] = (
        ("known", inputs.known, inputs.known >= 0, "0 (none) or more records"),
        ("shadows", inputs.shadows, 2 <= inputs.shadows <= 1024, "2 to 1024"),
        ("neighbours", inputs.neighbours, 1 <= inputs.neighbours <= 1000, "1 to 1000"),
        ("replaced", inputs.replaced, 0 < inputs.replaced <= 1, "a share of the tokens, above 0"),
        ("span", inputs.span, inputs.span >= 1, "at least 1 token"),
        ("shots", inputs.shots, inputs.shots >= 1, "at least 1"),
        ("samples", inputs.samples, 1 <= inputs.samples <= 1000, "1 to 1000"),
    )
    for key, value, good, allowed in rules:
        if not good:
            raise ConfigError(f"audit.inputs.{key} is {value!r}.", f"Allowed: {allowed}.")


def check_method(method: MethodConfig) -> None:
    """Raises `ConfigError` where a key is set that the method has no use for."""
    for field in dataclasses.fields(method):
        users, value = _USED_BY.get(field.name, ()), getattr(method, field.name)
        if users and method.kind not in users and value != field.default:
            message = f"method.{field.name} is {value!r}, but method.kind {method.kind} has no use for it."
            raise ConfigError(message, f"Remove it; it belongs to {' and '.join(users)}.")
