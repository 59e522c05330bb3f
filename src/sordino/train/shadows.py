"""Shadow models: trained as the target was, each on its own random half of what the target may have been trained on.

K LoRA adapters are trained together on one base (`train.joint`). Whatever that cannot do — full weights, other
methods, classifiers — is trained one after the other by the ordinary loop, each in a run folder of its own that goes
away once it has been asked; what was asked is kept, so an interrupted queue goes on.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from sordino.config import MethodConfig, RunConfig
from sordino.evidence import digest
from sordino.records import Example, Split, content_digest
from sordino.records.store import save as save_split
from sordino.results import AuditPlan, RunCard
from sordino.run import Run
from sordino.serialize import Tokens
from sordino.signals import Ragged, Shadows, Store

__all__ = ["ShadowPlan", "draw", "together", "train_shadows"]

Ticker = Callable[[str, int], Callable[[int], None]]
# Part of every key: numbers computed under another definition are not found again.
_DEFINITION = "shadows/1"
# An adapter wants a larger rate than full weights do (Schulman et al. 2025, "LoRA Without Regret": about ten times).
_LORA_RATE = 10.0


@dataclass(frozen=True, kw_only=True)
class ShadowPlan:
    """`count` shadows drawn from `seed`; `kind` "same" as the target, or "lora" in place of full weights."""

    count: int
    kind: Literal["same", "lora"]
    seed: int

    def approximates(self, config: RunConfig) -> bool:
        """Whether adapters stand in place of another method."""
        return self.kind == "lora" and config.method.kind != "lora"

    def configured(self, config: RunConfig) -> RunConfig:
        """The configuration of a shadow of a target that `config` configured: no canaries, and nobody watches."""
        train, method = dataclasses.replace(config.train, monitor=None), config.method
        if self.approximates(config):
            train = dataclasses.replace(train, learning_rate=_LORA_RATE * train.learning_rate)
            method = MethodConfig()
        none = dataclasses.replace(config.canaries, per_level=0, audit=type(config.canaries.audit)())
        audit = AuditPlan() if config.audit.headline == "canaries" else config.audit
        return dataclasses.replace(config, method=method, train=train, canaries=none, audit=audit)

    def how(self, config: RunConfig) -> str:
        """What the shadows are, in words."""
        method = config.method.kind
        if self.approximates(config):
            return f"{self.count} LoRA adapters: an approximation, as the target was tuned by {method}"
        return f"{self.count} models trained as the target was ({method})"


def draw(groups: Sequence[str], count: int, seed: int) -> np.ndarray:
    """Which records each shadow is trained on: (count, records), a fair coin a group, from `seed`."""
    names, place = np.unique(np.asarray(groups), return_inverse=True)
    coins = np.random.default_rng(seed).random((count, len(names))) < 0.5
    drawn: np.ndarray = coins[:, place]
    return drawn


def together(config: RunConfig) -> bool:
    """Whether shadows under `config` can be trained as adapters on one base, exactly as each alone."""
    train, method, dp = config.train, config.method, config.dp
    return (
        config.task == "causal-lm"
        and config.shards is None
        and method.kind == "lora"
        and method.variant != "dora"
        and not method.dropout
        and not train.dropout
        and train.select == "last"
        and train.stop_loss is None
        and train.precision == "fp32"
        and (dp is None or (dp.clipping in ("flat", "automatic") and not dp.secure))
    )


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What the shadows of `run` are trained on and asked: `always` and the `candidates` that `included` says."""

    run: Run
    card: RunCard
    config: RunConfig
    always: Sequence[Example]
    validation: Sequence[Example]
    candidates: Sequence[Example]
    included: np.ndarray
    scored: Sequence[Tokens]
    plan: ShadowPlan
    ticker: Ticker

    @property
    def key(self) -> str:
        """A digest of all that the shadows' numbers depend on."""
        examples = (*self.always, *self.candidates)
        records = [content_digest(e.record.messages, e.record.label) + e.group for e in examples]
        asked = [digest(t.ids.tobytes(), t.target.tobytes(), str(t.label)) for t in self.scored]
        settings = msgspec.to_builtins(dataclasses.replace(self.config, name="", out=""))
        model = [str(self.card.model[name]) for name in ("base", "serializer")]
        plan = json.dumps([dataclasses.asdict(self.plan), settings], sort_keys=True, default=str)
        return digest(_DEFINITION, plan, *model, *records, "asked", *asked)

    def seed(self, number: int) -> int:
        """The seed of one shadow."""
        return int(np.random.SeedSequence([self.plan.seed, number]).generate_state(1)[0])


def train_shadows(
    run: Run, config: RunConfig, placed: Split, scored: Sequence[Tokens], plan: ShadowPlan, ticker: Ticker
) -> Shadows:
    """What `plan.count` shadows of the target that is in `run` say of `scored`, whose first are its candidates.

    All else that is scored counts as not trained on, but for records that all train on (the caller knows).
    Everything computed is kept under private/; a second call computes nothing. Raises what training raises.
    """
    candidates = list(placed.candidates)
    included = draw([e.group for e in candidates], plan.count, plan.seed)
    task = _Task(
        run=run,
        card=run.card,
        config=plan.configured(config),
        always=[e for e in placed.training if e.role == "train"],
        validation=list(placed.validation),
        candidates=candidates,
        included=included,
        scored=scored,
        plan=plan,
        ticker=ticker,
    )
    store, key = Store(run.private / "signals"), task.key
    found = store.arrays(key)
    if found is None:
        folder = run.private / "shadows" / key[:16]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        nll = _adapters(task, folder) if together(task.config) else _queue(task, folder)
        manifest = {"definition": _DEFINITION, "shadows": plan.count, "seed": plan.seed, "how": plan.how(config)}
        store.put_arrays(key, {"nll": nll}, manifest)
        shutil.rmtree(folder, ignore_errors=True)
        found = {"nll": nll}
    others = np.zeros((plan.count, len(scored) - len(candidates)), dtype=bool)
    return Shadows(nll=found["nll"], included=np.concatenate([included, others], axis=1), how=plan.how(config))


def _adapters(task: _Task, folder: Path) -> np.ndarray:
    """All of them at once, as adapters on one base."""
    from sordino.model import load
    from sordino.train.adapters import Adapters
    from sordino.train.joint import train_joint
    from sordino.train.joint_scores import score_all
    from sordino.train.reading import serializer_for, training_tokens

    config, count = task.config, task.plan.count
    model = load(config.model)
    examples = (*task.always, *task.candidates)
    serializer = serializer_for(config, model.tokenizer, int(task.card.model["context"]))
    tokens, owners, _ = training_tokens(examples, serializer, config.train.goldfish)
    inside = np.concatenate([np.ones((count, len(task.always)), dtype=bool), task.included], axis=1)
    subsets = [np.flatnonzero(inside[k][np.asarray(owners)]).tolist() for k in range(count)]
    adapters = Adapters(model, config.method, [task.seed(k) for k in range(count)])
    private = (
        None if config.dp is None else [_private(task, examples, owners, places, k) for k, places in enumerate(subsets)]
    )
    ticks: list[Callable[[int], None]] = []
    done = [0]

    def monitor(progress: Any, steps: int) -> None:
        if not ticks:
            ticks.append(task.ticker(f"{count} shadow models, steps", steps))
        ticks[0](progress.step - done[0])
        done[0] = progress.step

    train_joint(folder, adapters, tokens, subsets, config.train, monitor=monitor, private=private)
    asked = task.ticker(f"{count} shadow models, records", len(task.scored))
    nll: np.ndarray = score_all(model, adapters, task.scored, tick=asked)
    return nll


def _private(
    task: _Task, examples: Sequence[Example], owners: Sequence[int], places: Sequence[int], number: int
) -> Any:
    """The private training of one shadow; its secret guards nothing but repeatability, as no shadow is released."""
    import hashlib

    from sordino.train.joint_private import PrivatePart
    from sordino.train.promise import members_of, plan_for

    assert task.config.dp is not None
    # Places in what this shadow is trained on, not in what all of them are.
    members = members_of(examples, [owners[i] for i in places], task.config.dp.unit)
    secret = hashlib.blake2b(f"shadow/{task.seed(number)}".encode(), digest_size=32).digest()
    return PrivatePart(plan=plan_for(task.config, len(members)), secret=secret, members=members)


def _queue(task: _Task, folder: Path) -> np.ndarray:
    """One after the other, each as the target was trained."""
    store = Store(folder / "asked")
    tick, rows = task.ticker("shadow models", task.plan.count), []
    for number in range(task.plan.count):
        key = f"{number:04d}"
        found = store.arrays(key)
        if found is None:
            found = {"nll": _alone(task, folder / "runs", number)}
            store.put_arrays(key, found, {"shadow": number})
            shutil.rmtree(folder / "runs", ignore_errors=True)
        rows.append(np.array(found["nll"]))
        tick(1)
    return np.stack(rows)


def _alone(task: _Task, folder: Path, number: int) -> np.ndarray:
    """Train one shadow as an ordinary run, or go on with it, and ask it."""
    from sordino.collect import collect
    from sordino.collect_classes import collect_classes
    from sordino.model import restore
    from sordino.train.flow import train_run
    from sordino.train.reading import classes_of

    config = dataclasses.replace(task.config, seed=task.seed(number), name=f"shadow-{number:04d}", out=str(folder))
    shadow = _opened(folder) or _prepared(task, config, number)
    if shadow.card.status != "trained":
        train_run(shadow)
    labels = tuple(task.card.data.get("labels", ()))
    model = restore(config.model, config.method, shadow.weights, classes_of(config, labels))
    gather = collect if config.task == "causal-lm" else collect_classes
    statistics = gather(model, task.scored)
    return -Ragged(statistics.logprob, statistics.offsets).mean()


def _opened(folder: Path) -> Run | None:
    """The shadow that was being trained when training was interrupted."""
    found = sorted(folder.glob("*/run.json"))
    return Run.open(found[0].parent) if found else None


def _prepared(task: _Task, config: RunConfig, number: int) -> Run:
    """A run folder for one shadow; a candidate that it is trained on is a record like any other to it."""
    chosen = [e for e, inside in zip(task.candidates, task.included[number], strict=True) if inside]
    examples = [dataclasses.replace(e, role="train", included=True) for e in (*task.always, *chosen)]
    shutil.rmtree(Path(config.out), ignore_errors=True)
    run = Run.create(Path(config.out), config.name, digest(str(config.seed)))
    save_split(Split(examples=(*examples, *task.validation)), run.records)
    data = {**task.card.data, "fingerprint": digest(str(task.card.data["fingerprint"]), str(number))}
    card = dataclasses.replace(
        task.card, name=run.path.name, status="prepared", config=msgspec.to_builtins(config), seed=config.seed,
        data=data, model={"path": config.model.path}, training={}, privacy={}, notices=(), parent=task.card.name,
    )  # fmt: skip
    run.write_card(card)
    return run
