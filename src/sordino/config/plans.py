"""Ranges of what the plan of an audit says, and which of its keys go together."""

import re
from collections.abc import Sequence
from itertools import pairwise

from sordino.config.rules import Rule, check_rules
from sordino.errors import ConfigError, DataError, first_line
from sordino.pii import kind_of
from sordino.results import (
    AuditPlan,
    GeneratedPlan,
    InputPlan,
    NearBoundPlan,
    PersonalPlan,
    SamplingPlan,
    SecretPlan,
    SoftPromptPlan,
)

__all__ = ["check_inputs", "check_plan", "check_secrets"]


def check_plan(audit: AuditPlan) -> None:
    """Raise `ConfigError` for a value of the plan of an audit that is out of its range."""
    rules: tuple[Rule, ...] = (
        ("audit.confidence", audit.confidence, 0.5 < audit.confidence < 1, "0.5 to 1, for example 0.95"),
        ("audit.fpr", list(audit.fpr), bool(audit.fpr) and all(0 < f < 1 for f in audit.fpr), "rates between 0 and 1"),
        ("audit.guess_share", audit.guess_share, 0 < audit.guess_share <= 1, "a share above 0, at most 1"),
        ("audit.bound", audit.bound, audit.bound == "one-run" or audit.delta > 0, "one-run, f-dp with a delta above 0"),
        ("audit.shuffles", audit.shuffles, audit.shuffles >= 99, "at least 99"),
        ("audit.delta", audit.delta, 0 <= audit.delta < 1, "0 to below 1"),
        ("audit.prefix_tokens", audit.prefix_tokens, audit.prefix_tokens >= 1, "at least 1"),
        ("audit.suffix_tokens", audit.suffix_tokens, audit.suffix_tokens >= 1, "at least 1"),
        ("audit.token_forwards", audit.token_forwards, audit.token_forwards >= 1, "at least 1"),
    )
    check_rules(rules)
    check_inputs(audit.inputs)
    _check_sampling(audit.sampling)
    _check_personal(audit.personal)
    _check_near_bound(audit.near_bound)
    check_secrets(audit.secrets)
    _check_generated(audit.generated)
    _check_soft_prompt(audit.soft_prompt)


def check_inputs(inputs: InputPlan) -> None:
    """Raises `ConfigError` where what attacks may use is out of its range."""
    rules: tuple[Rule, ...] = (
        ("known", inputs.known, inputs.known >= 0, "0 (none) or more records"),
        ("shadows", inputs.shadows, 2 <= inputs.shadows <= 1024, "2 to 1024"),
        ("neighbours", inputs.neighbours, 1 <= inputs.neighbours <= 1000, "1 to 1000"),
        ("replaced", inputs.replaced, 0 < inputs.replaced <= 1, "a share of the tokens, above 0"),
        ("span", inputs.span, inputs.span >= 1, "at least 1 token"),
        ("shots", inputs.shots, inputs.shots >= 1, "at least 1"),
        ("samples", inputs.samples, 1 <= inputs.samples <= 1000, "1 to 1000"),
    )
    check_rules(rules, "audit.inputs.")


def _check_personal(plan: PersonalPlan) -> None:
    """Raises `ConfigError` for a budget that asks nothing."""
    rules: tuple[tuple[str, int, int], ...] = (
        ("mentions", plan.mentions, 1), ("candidates", plan.candidates, 2), ("samples", plan.samples, 1),
        ("texts", plan.texts, 1), ("text_tokens", plan.text_tokens, 1),
        ("soft_tokens", plan.soft_tokens, 1), ("soft_steps", plan.soft_steps, 1),
        ("recovery_people", plan.recovery_people, 1), ("recovery_steps", plan.recovery_steps, 1),
    )  # fmt: skip
    for key, value, least in rules:
        if value < least:
            raise ConfigError(f"audit.personal.{key} is {value}.", f"Allowed: at least {least}.")


def _check_near_bound(plan: NearBoundPlan) -> None:
    """Raises `ConfigError` for a search that cannot be meant."""
    rules: tuple[Rule, ...] = (
        ("records", plan.records, plan.records >= 1, "at least 1"),
        ("beam", plan.beam, 1 <= plan.beam <= 4096, "1 to 4096 paths"),
        ("distance", plan.distance, 0 < plan.distance < 1, "a share of the tokens, above 0 and below 1"),
    )
    check_rules(rules, "audit.near_bound.")


def check_secrets(plans: Sequence[SecretPlan]) -> None:
    """Raises `ConfigError` for secrets that cannot be looked for; formats are read where they are used."""
    seen = set[str]()
    for number, plan in enumerate(plans):
        name = f"audit.secrets[{number}]"
        try:
            kind = kind_of(plan.kind)
        except DataError as error:
            raise ConfigError(f"{name}.kind: {error.message}", error.hint) from None
        if kind in seen:
            raise ConfigError(f"{name}.kind is {kind}, which is there already.", "Give each kind once: (a|b) is both.")
        seen.add(kind)
        if plan.records < 1:
            raise ConfigError(f"{name}.records is {plan.records}.", "Allowed: at least 1.")
        try:
            groups = re.compile(plan.pattern or "").groups
        except re.error as error:
            message = f"{name}.pattern is {plan.pattern!r}: {first_line(error)}."
            raise ConfigError(message, "Give a regular expression of Python.") from None
        if groups > 1:
            message = f"{name}.pattern is {plan.pattern!r}, with {groups} groups."
            raise ConfigError(message, "Put the secret alone into (…), and all else into (?:…).")


def _check_generated(plan: GeneratedPlan) -> None:
    """Raises `ConfigError` for texts in which nothing could be found."""
    for key, value, least in (("texts", plan.texts, 1), ("tokens", plan.tokens, 8)):
        if value < least:
            raise ConfigError(f"audit.generated.{key} is {value}.", f"Allowed: at least {least}.")


def _check_soft_prompt(plan: SoftPromptPlan) -> None:
    """Raises `ConfigError` for a soft prompt that cannot be trained."""
    rate = plan.learning_rate
    rules: tuple[Rule, ...] = (
        ("tokens", plan.tokens, 1 <= plan.tokens <= 1024, "1 to 1024"),
        ("steps", plan.steps, plan.steps >= 1, "at least 1"),
        ("learning_rate", rate, 0 < rate < float("inf"), "above 0"),
        ("smoothing", plan.smoothing, 0 <= plan.smoothing < float("inf"), "0 (none) or more"),
        ("records", plan.records, plan.records >= 1, "at least 1"),
    )
    check_rules(rules, "audit.soft_prompt.")


def _check_sampling(plan: SamplingPlan) -> None:
    """Raises `ConfigError` for a grid of queries that nothing can be read off."""
    distinct = len(set(plan.decodings)) == len(plan.decodings)
    rising = all(a < b for a, b in pairwise(plan.queries))
    rules: tuple[Rule, ...] = (
        ("decodings", len(plan.decodings), 1 <= len(plan.decodings) <= 100, "1 to 100 of them"),
        ("decodings", [str(d) for d in plan.decodings], distinct, "each one once"),
        ("queries", list(plan.queries), bool(plan.queries) and plan.queries[0] >= 1 and rising, "1 and more, rising"),
        ("limit", plan.limit, plan.limit >= 1, "at least 1 query"),
        ("chance", plan.chance, 0 < plan.chance < 1, "a probability between 0 and 1"),
    )
    check_rules(rules, "audit.sampling.")
