"""The plan of a deletion: what each tier promises and costs here, and the cheapest that is sufficient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sordino.config import RunConfig, recorded
from sordino.errors import RunError, UnlearningError
from sordino.results import Tier, UnlearnPlan
from sordino.run import Run
from sordino.unlearn.base import Deletion, Method
from sordino.unlearn.tuning.refusals import check_answers
from sordino.unlearn.tuning.settings import all_given

__all__ = ["DEFAULT_METHOD", "Option", "Policy", "check_suited", "decide", "options", "settled"]

DEFAULT_METHOD = "grad_diff"
_UNSHARDED = "The run was not trained in shards (train --shards)."
_NOT_PRIVATE = "The run was not trained under differential privacy."
_RANK: Mapping[Tier, int] = {"approximate": 0, "dp": 1, "exact": 2}
# Made-up answers are nothing that a method needs of the data; a place to put them in is.
_ANSWERS_MADE_UP = ("alt_po",)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What is asked of a plan: the `least` that must be promised, and what may be spent.

    `epsilon` and `delta` are what a guarantee of differential privacy has to be worth for those who go (None: that tier
    is not considered). `method` asks for one method; `settings` are some of its parameters; `search` is the number of
    trials that may be spent on the others (0: published defaults).
    """

    least: Tier = "approximate"
    epsilon: float | None = None
    delta: float | None = None
    method: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    search: int = 0


@dataclass(frozen=True, kw_only=True)
class Option:
    """One way: its tier and method, its expected share of training anew, and why it is not possible, if so."""

    tier: Tier
    method: str
    share: float | None
    promise: str
    refused: str = ""


def settled(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of `method`: its defaults, and what was `given`; raises `UnlearningError` for what cannot be."""
    return all_given(method.name, method.defaults, given)


def expected_share(deletion: Deletion, method: Method, settings: Mapping[str, Any]) -> float | None:
    """The share of training anew that an approximate method takes: epochs and records, as tokens of one length.

    Training anew reads what stays, in each of the run's epochs; the method reads what is to be forgotten as often as it
    says it does. None where it does not say.
    """
    if method.passes is None or not deletion.retain:
        return None
    once = len(deletion.forget) / len(deletion.retain)
    return float(once * method.passes(settings) / deletion.config.train.epochs)


def options(deletion: Deletion, policy: Policy, methods: Mapping[str, Method], spent: int = 0) -> list[Option]:
    """Every tier as it stands for `deletion`; `spent` counts units that differential privacy was spent on before."""
    name = policy.method or DEFAULT_METHOD
    if name not in methods:
        from sordino.errors import did_you_mean

        raise UnlearningError(f"There is no method '{name}'.", did_you_mean(name, methods))
    found = [_shards(deletion, policy), _private(deletion, policy, spent)]
    method = methods[name]
    if method.tier == "approximate":
        found.append(_approximate(deletion, method, settled(method, policy.settings)))
    elif name not in ("shards", "dp", "retrain"):
        found.append(Option(tier=method.tier, method=name, share=None, promise=method.summary))
    found.append(Option(tier="exact", method="retrain", share=1.0, promise="trained anew on what stays"))
    return found


def _shards(deletion: Deletion, policy: Policy) -> Option:
    promise = "the affected shards trained anew on what stays"
    if deletion.config.shards is None:
        return Option(tier="exact", method="shards", share=None, promise=promise, refused=_UNSHARDED)
    from sordino.unlearn.methods.shards import expected

    share, refused = None, ""
    try:
        share = expected(deletion)
    except RunError as error:
        refused = error.message  # the shards were tuned as one model since
    except UnlearningError as error:
        # A snapshot that is lost is made anew where that is asked for.
        repaired = policy.method == "shards" and policy.settings.get("repair")
        refused = "" if repaired else str(error)
    return Option(tier="exact", method="shards", share=share, promise=promise, refused=refused)


def _private(deletion: Deletion, policy: Policy, spent: int) -> Option:
    from sordino.unlearn.verifying.capacity import check_capacity

    promise = "the model as it is, (ε, δ)-close to one without them"

    def refused(why: str) -> Option:
        return Option(tier="dp", method="dp", share=None, promise=promise, refused=why)

    if deletion.config.dp is None:
        return refused(_NOT_PRIVATE)
    if policy.epsilon is None or policy.delta is None:
        return refused("It was not said what the guarantee has to be worth (--epsilon, --delta).")
    try:
        check_capacity(deletion, policy.epsilon, policy.delta, spent)
    except UnlearningError as error:
        return refused(str(error))
    return Option(tier="dp", method="dp", share=0.0, promise=promise)


def _approximate(deletion: Deletion, method: Method, settings: Mapping[str, Any]) -> Option:
    share = expected_share(deletion, method, settings)
    promise = "nothing: it is measured"
    why = _unsuited(deletion.run, deletion.config, method) or _lacking(deletion, method)
    return Option(tier="approximate", method=method.name, share=share, promise=promise, refused=why)


def check_suited(run: Run, method: Method) -> None:
    """Raise `UnlearningError` where `method` cannot be carried out on `run`, whoever is to go."""
    config = recorded(run.card.config, str(run.path / "run.json"))
    why = _unsuited(run, config, method)
    if "shards" in method.needs and config.shards is None:
        why = _UNSHARDED
    if "dp" in method.needs and config.dp is None:
        why = _NOT_PRIVATE
    if why:
        raise UnlearningError(
            f"The method {method.name} cannot be used on {run.path}. {why}", "Choose another --method."
        )


def _unsuited(run: Run, config: RunConfig, method: Method) -> str:
    """Why a method cannot be carried out on `run`; nothing where it can."""
    from sordino.model.combined import is_combined

    if method.tier != "approximate":
        return ""
    if is_combined(run.weights):
        return "The weights of the run are several adapters, which are read as one model and not tuned as one."
    if "lora" in method.needs and config.method.kind != "lora":
        return f"{method.name} needs a LoRA adapter, and the run was tuned by {config.method.kind}."
    return ""


def _lacking(deletion: Deletion, method: Method) -> str:
    """What a method needs of the records to forget that they do not have; nothing where they have it."""
    try:
        if "refusals" in method.needs or method.name in _ANSWERS_MADE_UP:
            check_answers(deletion.forget, method.name)
    except UnlearningError as error:
        return str(error)
    lacking = sum(e.record.rejected is None for e in deletion.forget) if "alternatives" in method.needs else 0
    if lacking:
        of = len(deletion.forget)
        return f"{method.name} prefers answers given in `rejected`, and {lacking} of {of} records to forget have none."
    return ""


def decide(deletion: Deletion, policy: Policy, methods: Mapping[str, Method], spent: int = 0) -> UnlearnPlan:
    """The cheapest way that promises enough; raises `UnlearningError` where none does.

    An approximate method is taken only where no guarantee is to be had for less than training anew, or by name.
    """
    found = options(deletion, policy, methods, spent)
    possible = [o for o in found if not o.refused and _RANK[o.tier] >= _RANK[policy.least]]
    named = [o for o in possible if o.method == policy.method]
    if not possible or (policy.method is not None and not named):
        raise _impossible(policy, found)
    _check_search(policy, methods)
    guaranteed = [o for o in possible if o.tier != "approximate" and o.share is not None and o.share < 1]
    chosen = min(named or guaranteed or possible, key=_cost)
    method = methods[chosen.method]
    given = policy.settings if chosen.method == (policy.method or DEFAULT_METHOD) else {}
    settings = settled(method, given)
    if chosen.tier == "dp":
        settings |= {"epsilon": policy.epsilon, "delta": policy.delta}
    if chosen.tier == "approximate" and policy.search:
        settings = {**settings, "search": policy.search}
    counts = {
        "forget": len(deletion.forget),
        "others": len(deletion.others),
        "retain": len(deletion.retain),
        "never": len(deletion.never),
        "subjects": len({e.record.unit for e in deletion.forget}),
    }
    return UnlearnPlan(
        request=deletion.request.id,
        tier=chosen.tier,
        method=chosen.method,
        settings=settings,
        why=tuple(f"{o.tier}, {o.method}: {o.refused}" for o in found if o.refused),
        share=chosen.share,
        counts=counts,
    )


def _check_search(policy: Policy, methods: Mapping[str, Method]) -> None:
    """Refuse a search for settings of a method that was named, and that no other settings would change."""
    if not policy.search or policy.method is None:
        return
    method = methods[policy.method]
    if method.tier != "approximate" or method.control or not method.defaults:
        message = f"A search of {policy.search} trials is asked for, and {method.name} has no settings to search."
        raise UnlearningError(message, "Leave --search out, or name an approximate method.")


def _cost(option: Option) -> float:
    return float("inf") if option.share is None else option.share


def _impossible(policy: Policy, found: Sequence[Option]) -> UnlearningError:
    asked = f"the method {policy.method}" if policy.method else f"at least the tier {policy.least}"
    refused = [o for o in found if o.refused and policy.method in (None, o.method)]
    why = " ".join(o.refused if policy.method else f"{o.method}: {o.refused}" for o in refused)
    lower = [o for o in found if o.method == policy.method and not o.refused]
    if lower:
        why = f"Its tier is {lower[0].tier}, and at least {policy.least} is asked for."
    return UnlearningError(
        f"No plan gives {asked}. {why}".strip(), "Choose another --method, or a lower --at-least; retraining is exact."
    )
