"""The configuration of an audit of a model that was trained elsewhere."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sordino.config import ModelConfig, RunConfig, TrainConfig, check_inputs, check_secrets, check_values, convert
from sordino.errors import ConfigError
from sordino.inputs import merge, parse_flags
from sordino.records import DataConfig
from sordino.results import AuditPlan

__all__ = ["ExternalConfig", "RequestsConfig", "anew", "load_external"]

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


_ANEW = {"inputs", "secrets", "suite"}
"""What of a plan may be chosen when an audit is made."""


@dataclass(frozen=True, kw_only=True)
class RequestsConfig:
    """How a server is asked: requests at a time, seconds until an answer is late, and attempts at each."""

    concurrency: int = 4
    timeout: float = 60.0
    attempts: int = 6


@dataclass(frozen=True, kw_only=True)
class ExternalConfig:
    """A model trained elsewhere, and records of which it is known whether it was trained on them.

    `data.path` is the file of members and `nonmembers` that of non-members, read in the same way.
    `adapter` is a PEFT folder on top of `model.path`; `base` the model as it was before tuning; `dtype`
    that of the weights (`auto`: as they are stored); `quantize` int8 of all linear layers, on CPUs.
    `endpoint` is the URL of a server that has the model under the name `model.path`, `tokenizer` the
    model's tokenizer then (a folder or hub id), `api_key_env` the name of the environment variable with
    the key; `base_served` says that `base` is a name on that server too. `access` `text` asks for generated
    text alone, `auto` only where no log-probabilities are told; then `samples` continuations a record are
    drawn. `max_length` is in tokens (default: the context, at most 1,024), then in words (default: 256).
    `known` is a share of the groups on either side that the adversary knows, for attacks that learn from such
    records; these are never judged.
    """

    data: DataConfig
    nonmembers: str
    model: ModelConfig
    adapter: str | None = None
    base: str | None = None
    dtype: Dtype = "auto"
    quantize: Literal["int8-dynamic"] | None = None
    endpoint: str | None = None
    tokenizer: str | None = None
    api_key_env: str | None = None
    base_served: bool = False
    access: Literal["auto", "text"] = "auto"
    samples: int = 10
    requests: RequestsConfig = RequestsConfig()
    near_duplicates: float = 0.8
    known: float = 0.0
    max_length: int | None = None
    too_long: Literal["truncate", "split", "refuse"] = "truncate"
    name: str = "external"
    out: str = "runs"
    seed: int = 0
    audit: AuditPlan = AuditPlan()


def load_external(values: Mapping[str, Any], flags: Sequence[str] = ()) -> ExternalConfig:
    """A checked `ExternalConfig` from nested `values` and words such as `--data.text body`, which win.

    Raises `ConfigError` for unknown keys, wrong types, values out of range and what cannot go together.
    """
    merged = merge(values, parse_flags(flags))
    for key, flag in (("model", "--model"), ("data", "--members"), ("nonmembers", "--nonmembers")):
        if key not in merged:
            what = "a model, and records that it was and was not trained on"
            raise ConfigError(f"{flag} is missing.", f"An audit of a model trained elsewhere needs {what}.")
    config = convert(merged, ExternalConfig)
    train = TrainConfig(max_length=config.max_length)
    check_values(
        RunConfig(data=config.data, name=config.name, seed=config.seed, audit=config.audit, train=train)
    )  # fmt: skip
    _check_ranges(config)
    _check_company(config)
    return config


def anew(plan: AuditPlan, flags: Sequence[str], suite: str | None = None) -> AuditPlan:
    """`plan` with another suite, inputs or secrets, from words such as `--audit.inputs.shadows 8`.

    Nothing else of a plan may change once training has begun: raises `ConfigError` for any other key.
    """
    given = parse_flags(flags)
    inside = given.pop("audit", {})
    if given or not isinstance(inside, Mapping) or set(inside) - _ANEW:
        named = [word.split("=")[0] for word in flags if word.startswith("-")]
        free = tuple(f"--audit.{key}" for key in sorted(_ANEW))
        wrong = next((n for n in named if not n.startswith(free)), named[0])
        message = f"{wrong} is no option of an audit of a run."
        hint = (
            "Only --suite, --audit.inputs.… and --audit.secrets may be chosen anew; the rest was fixed before "
            "training. Keys such as --data.text go with --model, --members and --nonmembers; see "
            "`sordino audit --help`."
        )
        raise ConfigError(message, hint)
    values = merge({"suite": plan.suite, "inputs": dataclasses.asdict(plan.inputs)}, inside)
    found = convert({"audit": values | ({"suite": suite} if suite else {})}, _Anew).audit
    check_inputs(found.inputs)
    check_secrets(found.secrets)
    secrets = found.secrets if "secrets" in inside else plan.secrets
    return dataclasses.replace(plan, suite=found.suite, inputs=found.inputs, secrets=secrets)


@dataclass(frozen=True, kw_only=True)
class _Anew:
    audit: AuditPlan


def _check_ranges(config: ExternalConfig) -> None:
    asked = config.requests
    rules = (
        ("near_duplicates", config.near_duplicates, 0 <= config.near_duplicates <= 1, "a similarity, 0 (off) to 1"),
        ("requests.concurrency", asked.concurrency, 1 <= asked.concurrency <= 64, "1 to 64"),
        ("known", config.known, 0 <= config.known <= 0.5, "a share, 0 (none) to 0.5"),
        # With fewer no p-value is below 1 %, and the controls that guard a split from elsewhere cannot fail.
        ("audit.shuffles", config.audit.shuffles, config.audit.shuffles >= 199, "at least 199"),
        ("samples", config.samples, 1 <= config.samples <= 1000, "1 to 1000"),
        ("requests.timeout", asked.timeout, asked.timeout > 0, "seconds, above 0"),
        ("requests.attempts", asked.attempts, 1 <= asked.attempts <= 20, "1 to 20"),
    )
    for key, value, good, allowed in rules:
        if not good:
            raise ConfigError(f"{key} is {value!r}.", f"Allowed: {allowed}.")


def _check_company(config: ExternalConfig) -> None:
    """Raise `ConfigError` for options that exclude each other."""
    server, local = config.endpoint is not None, "a model that is loaded here"
    there = {
        "--adapter": config.adapter is not None, "--quantize": config.quantize is not None,
        "--dtype": config.dtype != "auto" and (config.base is None or config.base_served),
    }  # fmt: skip
    for flag, given in there.items():
        if server and given:
            raise ConfigError(f"{flag} is for {local}; --endpoint asks a server.", f"Leave out {flag} or --endpoint.")
    asked = {
        "--tokenizer": config.tokenizer is not None, "--api-key-env": config.api_key_env is not None,
        "--base_served": config.base_served, "--access text": config.access == "text",
    }  # fmt: skip
    for flag, given in asked.items():
        if given and not server:
            raise ConfigError(f"{flag} is for a server, and there is no --endpoint.", f"Leave out {flag}.")
    if config.base_served and config.base is None:
        raise ConfigError("--base_served is given without --base.", "Give the name of the untuned model there.")
    if config.adapter is not None and config.base is not None:
        message = "--adapter and --base are both given."
        raise ConfigError(message, "The untuned base of an adapter is --model itself: leave out --base.")
    if config.adapter is not None and config.quantize is not None:
        message = "--quantize is for whole models, and --adapter is given."
        raise ConfigError(message, "Merge the adapter first (merge_and_unload), then audit what you deploy.")
    if server and not str(config.endpoint).startswith(("http://", "https://")):
        raise ConfigError(f"--endpoint is {config.endpoint!r}.", "Give a URL such as http://127.0.0.1:8000/v1.")
