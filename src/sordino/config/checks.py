"""Which values of a configuration are allowed, alone and together."""

import dataclasses
import re

from sordino.canaries.designs import FROM_DATA
from sordino.config.plans import check_plan
from sordino.config.rules import Rule, check_rules
from sordino.config.schema import DPConfig, MethodConfig, RunConfig
from sordino.errors import ConfigError

__all__ = ["check_dp", "check_method", "check_target", "check_values"]

# Designs of audit canaries without words of the data and without tokens of their own.
_OWN_WORDS = ("secret", "high-perplexity")
_NAME = re.compile(r"[\w-]+")
# Which methods use a key of MethodConfig.
_USED_BY = {
    **dict.fromkeys(("variant", "rank", "alpha", "dropout", "targets"), ("lora",)),
    "virtual_tokens": ("prefix", "prompt"),
    "bottleneck": ("adapters",),
}


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


def _check_shards(config: RunConfig) -> None:
    if config.shards is None:
        return
    train, method, audit = config.train, config.method, config.canaries.audit
    given: tuple[Rule, ...] = (
        ("task", config.task, config.task == "causal-lm", "causal-lm"),
        ("dp", "set", config.dp is None, "left out: differential privacy has a tier of its own"),
        ("method.kind", method.kind, method.kind == "lora", "lora"),
        # A DoRA update divides by a norm: the mean of several is no adapter. FFA's factors are for private training.
        ("method.variant", method.variant, method.variant in ("plain", "rslora"), "plain or rslora"),
        # What ends or chooses a training by a look at records would look at those that go as well.
        ("train.select", train.select, train.select == "last", "last"),
        ("train.stop_loss", train.stop_loss, train.stop_loss is None, "left out"),
        ("train.validate_every", train.validate_every, train.validate_every is None, "left out: once, at the end"),
        ("train.monitor", train.monitor, train.monitor is None, "left out: no one model is trained all along"),
        # Words of a record would stay in a canary when the record goes; new tokens are rows that all shards would tune.
        ("canaries.audit.design", audit.design, not audit.count or audit.design in _OWN_WORDS, ", ".join(_OWN_WORDS)),
        ("shards.count", config.shards.count, config.shards.count >= 1, "at least 1"),
        ("shards.slices", config.shards.slices, config.shards.slices >= 1, "at least 1"),
    )
    for key, value, good, allowed in given:
        if not good:
            where = "" if key.startswith("shards") else ", and shards is set"
            raise ConfigError(f"{key} is {value!r}{where}.", f"Allowed: {allowed}.")


def check_values(config: RunConfig) -> None:
    """Raise `ConfigError` for a value out of its range."""
    _check_task(config)
    _check_private(config)
    _check_shards(config)
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
    rules: tuple[Rule, ...] = (
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
        ("seed", config.seed, 0 <= config.seed < 2**63, "0 to 2^63 - 1"),
        ("name", config.name, _NAME.fullmatch(config.name) is not None, "letters, digits, - and _"),
    )  # fmt: skip
    check_rules(rules)
    check_plan(audit)
    check_method(method)


def check_method(method: MethodConfig) -> None:
    """Raises `ConfigError` where a key is set that the method has no use for."""
    for field in dataclasses.fields(method):
        users, value = _USED_BY.get(field.name, ()), getattr(method, field.name)
        if users and method.kind not in users and value != field.default:
            message = f"method.{field.name} is {value!r}, but method.kind {method.kind} has no use for it."
            raise ConfigError(message, f"Remove it; it belongs to {' and '.join(users)}.")
