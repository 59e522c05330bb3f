"""Which attacks an audit makes, and in words why it does not make the others: none is left out in silence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sordino.attacks.base import SUITES, Attack, Suite, discover, find
from sordino.audit import asking
from sordino.audit.inputs import Context, lacking
from sordino.audit.linked import ON_LINKED, lacking_links
from sordino.audit.personal_attacks import PERSONAL
from sordino.audit.subjects import Subject
from sordino.audit.weights import has_weights
from sordino.audit.written import Written
from sordino.errors import AuditError

__all__ = ["Chosen", "choose"]

_HINT = "Give --base, an --endpoint with prompt log-probabilities, or the weights; see `sordino audit --list`."
_TEXT = frozenset({"samples"})


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The attacks to carry out, whether `secrets` of the plan are ranked, and in words what is not made.

    Those `asking` and `personal` are on models.
    """

    membership: Mapping[str, Attack]
    extraction: Mapping[str, Attack]
    asking: Mapping[str, Attack]
    personal: Mapping[str, Attack]
    left_out: tuple[str, ...]
    secrets: bool = False

    @property
    def scoring(self) -> dict[str, Attack]:
        """Those that score each record, or unit, alone."""
        return {n: a for n, a in self.membership.items() if a.level != "dataset"}

    @property
    def on_the_set(self) -> dict[str, Attack]:
        """Those that test the whole data set by the scores of the others."""
        return {n: a for n, a in self.membership.items() if a.level == "dataset"}


def choose(names: Sequence[str], context: Context) -> Chosen:
    """The attacks of the plan's suite, or those `names`, as far as the subject has what they need.

    Raises `AuditError` for a name that is not there, or that was asked for and cannot be carried out.
    """
    plan, subject = context.plan, context.collector.subject
    for name in (plan.headline, *names):
        find("membership", name, subject.task)
    known = {n: a for n, a in discover("membership").items() if subject.task in a.tasks}
    asked = set(names) | ({plan.headline} if subject.trained_here or not names else set())
    suite = {n for n, a in known.items() if SUITES.index(_suite(a, subject)) <= SUITES.index(plan.suite)}
    wanted = {n: a for n, a in known.items() if n in (asked if names else asked | suite)}
    windowed = {n: a for n, a in discover("extraction").items() if a.on == "signals" and subject.task in a.tasks}
    here = asking.names()
    asked_models = {
        n: a for n, a in discover("extraction").items() if n in (*PERSONAL, *here) and subject.task in a.tasks
    }
    larger = {n for n, a in asked_models.items() if SUITES.index(a.suite) > SUITES.index(plan.suite)}
    missing = {n: why for n, a in (known | windowed).items() if (why := _lacking(a, context))}
    missing |= {n: why for n in asked_models if n not in larger and (why := _lacking_models(n, context))}
    # What the records lack is looked for only where the models are there.
    linked = (n for n in asked_models if n in ON_LINKED and n not in larger and n not in missing)
    missing |= {n: why for n in linked if (why := lacking_links(n, context))}
    for name in names:
        if name in missing:
            hint = (
                _HINT if not _served(known[name], subject) else "See `sordino audit --list` for what each attack needs."
            )
            raise AuditError(f"The attack '{name}' cannot be carried out here: it needs {missing[name]}.", hint)
    membership = {n: a for n, a in wanted.items() if n not in missing}
    if sum(a.level != "dataset" for a in membership.values()) < 2:
        few = [n for n, a in membership.items() if a.level == "dataset"]
        missing |= dict.fromkeys(few, "the scores of two other attacks at least")
        membership = {n: a for n, a in membership.items() if n not in few}
    if not membership:
        raise AuditError("No membership attack can be carried out with this access.", _HINT)
    lacked = {n: why for n, why in missing.items() if n in wanted or n in windowed or n in asked_models}
    # What a larger suite would have is named even where it would lack something: it then says what.
    served = isinstance(subject, Written)
    later = [n for n in known if n not in wanted and not (served and n in missing)] if not names else []
    rankless = _rankless(context) if plan.secrets else ""
    return Chosen(
        membership=membership,
        secrets=bool(plan.secrets) and not rankless,
        extraction={n: a for n, a in windowed.items() if n not in missing},
        asking={n: a for n, a in asked_models.items() if n in here and n not in missing and n not in larger},
        personal={n: a for n, a in asked_models.items() if n in PERSONAL and n not in missing and n not in larger},
        left_out=(
            *_left_out(lacked, {**known, **windowed, **asked_models}, subject),
            *([f"The exposure of secrets (audit.secrets): it needs {rankless}."] if rankless else []),
            *_dearer([*later, *(() if served else sorted(larger))], {**known, **asked_models}),
        ),
    )


def _suite(attack: Attack, subject: Subject | Written) -> Suite:
    """The smallest suite that an attack is part of: what the subject gives anyway costs nothing more."""
    return "quick" if attack.inputs and attack.inputs <= subject.gives else attack.suite


def _dearer(names: Sequence[str], known: Mapping[str, Attack]) -> tuple[str, ...]:
    """Attacks that a larger suite has."""
    told = []
    for suite in SUITES[1:]:
        mine = ", ".join(n for n in names if known[n].suite == suite)
        if mine:
            made = f"`sordino audit RUN --suite {suite}` makes them, or says what they lack"
            told.append(f"Attacks that cost more ({mine}): {made}.")
    return tuple(told)


def _left_out(lacked: Mapping[str, str], known: Mapping[str, Attack], subject: Subject | Written) -> tuple[str, ...]:
    if isinstance(subject, Written):
        names = ", ".join(n for n in lacked if known[n].needs)
        seen = f"Attacks on log-probabilities ({names}): of this server only generated text was seen."
        rest = (f"The attack {n}: it needs {why}." for n, why in lacked.items() if not known[n].needs)
        return (*([seen] if names else []), *rest)
    # That no adversary was tried who sees only text stands among what is untested, whatever the attacks are.
    return tuple(f"The attack {n}: it needs {why}." for n, why in lacked.items() if known[n].needs != _TEXT)


def _lacking_models(name: str, context: Context) -> str:
    """What is missing to ask the models themselves, in words: personal data wants the untuned base as well."""
    return _lacking_pair(context) if name in PERSONAL else asking.lacking(name, context)


def _lacking_pair(context: Context) -> str:
    """What is missing to ask a model and its untuned base, both here, in words."""
    subject = context.collector.subject
    if not has_weights(subject, "tuned"):
        return "the model's weights"
    return "" if subject.has_base and has_weights(subject, "base") else "the untuned base model"


def _rankless(context: Context) -> str:
    """What is missing to rank the secrets of the plan under both models, in words."""
    return "a model that writes" if context.collector.subject.task != "causal-lm" else _lacking_pair(context)


def _served(attack: Attack, subject: Subject | Written) -> bool:
    """Whether the subject has all the statistics that an attack reads, so that something else is missing."""
    return attack.needs <= subject.gives and (subject.has_base or not attack.base)


def _lacking(attack: Attack, context: Context) -> str:
    """What an attack needs and the subject has not, in words."""
    subject = context.collector.subject
    if attack.needs == _TEXT and not isinstance(subject, Written):
        return "generated text, which only a server is asked for (--endpoint with --access text)"
    missing = sorted(attack.needs - subject.gives)
    words = ["the untuned base model"] if attack.base and not subject.has_base else []
    words += [f"{', '.join(missing)} of each token"] if missing else []
    # What is missing anyway need not be asked twice.
    words += [more] if not words and (more := lacking(attack.inputs, context)) else []
    return " and ".join(words)
