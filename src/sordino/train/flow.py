"""From a configuration to a trained run: read, draw coins, plant canaries, tune, and write it all down."""

import dataclasses
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

import sordino
from sordino.canaries import AuditCanary, Canary, manifest
from sordino.config import RunConfig, recorded
from sordino.deletions import leave_out, refuse_deleted
from sordino.errors import RunError
from sordino.evidence import digest
from sordino.manifest import write_manifest
from sordino.records import Example, Split, read, split, unit_words
from sordino.records.labels import label_notices, labels_of
from sordino.records.placed import tallied
from sordino.records.store import load as load_split
from sordino.records.store import save as save_split
from sordino.results import Notice, RunCard, encode
from sordino.run import Run, write_folder
from sordino.serialize import Tokens
from sordino.train.planted import (
    AUDIT_CANARIES,
    new_token_rows,
    otherwise,
    planted_tokens,
    read_audit_canaries,
)
from sordino.train.planting import Planting, plant_all
from sordino.train.progress import Monitor, Progress
from sordino.train.reading import TOKEN_NOTICES, classes_of, serializer_for, training_tokens

if TYPE_CHECKING:
    from sordino.model import Model
    from sordino.train.promise import Promise

__all__ = ["Prepared", "create", "fine_tune", "plan_of", "prepare", "train_run"]

Say = Callable[[str], None]
_NO_CANARIES = (
    "A classifier writes no text: no canaries are planted and nothing is extracted. Without canaries, an audit "
    "can find a leak but call nothing clean."
)
_SILENT: Say = lambda text: None  # noqa: E731 - a named default reads better than a def


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Records with roles and coins, the canaries among them, and what was noticed on the way."""

    split: Split
    canaries: tuple[Canary, ...]
    unit_kind: str
    fingerprint: str
    notices: tuple[Notice, ...]
    audit_canaries: tuple[AuditCanary, ...] = ()

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The classes of a classifier's records, sorted; none for a language model."""
        return labels_of(self.split.examples)

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many records, units and coins play which role."""
        return tallied(self.split.examples)


def prepare(config: RunConfig) -> Prepared:
    """Read the records, draw every coin and plant the canaries, without touching a model.

    What the ledger in `config.out` says was deleted is left out, after the coins: no other record's moves.
    """
    dataset = read(config.data)
    placed = leave_out(split(dataset, config.split, config.seed), config.out, dataset.unit_kind)
    notices = [*dataset.notices, *placed.notices]
    planting = Planting()
    if config.task == "classification":
        notices += label_notices(placed.examples, str(config.data.label))
        notices.append(Notice(kind="no-canaries", count=0, message=_NO_CANARIES))
    elif config.split.candidates:
        planting = plant_all(dataset, placed, config)
        notices += planting.notices
    return Prepared(
        split=placed.with_canaries(planting.examples),
        canaries=planting.canaries,
        unit_kind=dataset.unit_kind,
        # That of the data as read, with what was left out: runs on one fingerprint add up their losses of privacy.
        fingerprint=dataset.fingerprint,
        notices=tuple(notices),
        audit_canaries=planting.audit_canaries,
    )


def create(config: RunConfig, prepared: Prepared) -> Run:
    """Make the run folder and write the records, the coins and the card, before any training."""
    settings = msgspec.to_builtins(config)
    run = Run.create(Path(config.out), config.name, digest(encode(settings)))
    save_split(prepared.split, run.records)
    run.write_private("canaries.json", manifest(prepared.canaries))
    if prepared.audit_canaries:
        run.write_private(AUDIT_CANARIES, manifest(prepared.audit_canaries))
    run.write_card(
        RunCard(
            name=run.path.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            status="prepared",
            config=settings,
            seed=config.seed,
            data={
                "source": config.data.path,
                "fingerprint": prepared.fingerprint,
                "unit": prepared.unit_kind,
                "counts": prepared.counts,
                **({"labels": list(prepared.labels)} if prepared.labels else {}),
            },
            model={"path": config.model.path},
            environment=_environment(),
            notices=prepared.notices,
            plan=config.audit,
        )
    )
    write_manifest(run)
    return run


def fine_tune(config: RunConfig, *, say: Say = _SILENT, monitor: Monitor = lambda progress, steps: None) -> Run:
    """Read the records, draw the coins, plant the canaries and train, to a run folder under `config.out`."""
    return train_run(create(config, prepare(config)), say=say, monitor=monitor)


def _environment() -> dict[str, str]:
    import torch
    import transformers

    return {
        "sordino": sordino.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
    }


def train_run(run: Run, *, say: Say = _SILENT, monitor: Monitor = lambda progress, steps: None) -> Run:
    """Train the prepared (or interrupted) `run` to its end and write its weights.

    Raises `RunError` where it is trained already or another process is at it, `TrainingError` where
    training cannot go on; the last checkpoint then stays.
    """
    from sordino.model import save, weights_digest
    from sordino.train.loop import train
    from sordino.train.monitor import watching

    with run.lock():
        run.tidy()
        card = run.card
        if card.status == "external":
            raise RunError(f"{run.path} is an audit of a model trained elsewhere.", "There is nothing to train in it.")
        if card.status == "unlearning":
            raise RunError(f"{run.path} is being made to forget, not trained.", "Go on with `sordino unlearn run`.")
        if card.status == "trained":
            raise RunError(f"{run.path} is trained already.", f"Audit it: `sordino audit {run.path}`.")
        config = recorded(card.config, str(run.path / "run.json"))
        refuse_deleted(load_split(run.records).training, run.path, str(card.data.get("unit", "record")))
        ready = _ready(run, card, config, say)
        promise: Promise | None = None
        way: dict[str, str] = {}
        with new_token_rows(run, ready.model, read_audit_canaries(run)):
            monitor = watching(run, ready.model, ready.canaries, config.train, monitor)
            if config.shards is not None:
                progress = _in_shards(run, ready, config, say, monitor)
            elif config.dp is None:
                tokens = (ready.training, ready.validation)
                progress = train(run, ready.model, tokens, config.train, seed=config.seed, monitor=monitor)
                if config.train.stop_loss is not None:
                    say(_stopping(progress, config.train.stop_loss))
            else:
                progress, promise, way = _privately(run, ready, config, say, monitor)
        if config.shards is None:
            with write_folder(run.weights) as folder:
                save(ready.model, folder)
        kept = {**promise.keep(progress.clip_norm), **way} if promise else {}
        run.write_card(_finished(ready.card, progress, kept, weights_digest(run.weights)))
        run.event("trained", step=progress.step, tokens=progress.tokens, seconds=round(progress.seconds, 3))
    return run


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """A model to be tuned and what it is tuned on: sequences, of which `owners` tells whose example each is of."""

    card: RunCard
    model: "Model"
    training: Sequence[Tokens]
    owners: Sequence[int]
    validation: Sequence[Tokens]
    examples: Sequence[Example]
    canaries: Sequence[Tokens] = ()


def _ready(run: Run, card: RunCard, config: RunConfig, say: Say) -> _Ready:
    """Load the model and the records of `run`, and say in its card what was found."""
    from sordino.model import attach, load, pick_device, tokenizer_digest
    from sordino.model.methods.extra_rows import first_new
    from sordino.train.dropout import with_dropout
    from sordino.train.objective import check_precision

    check_precision(config.train.precision, pick_device(config.model.device))
    say(f"loading {config.model.path}")
    labels = card.data.get("labels", ())
    base = load(config.model, classes=classes_of(config, labels))
    base_digest = base.digest()
    _same_base(card, base_digest)
    placed = load_split(run.records)
    notices = with_dropout(base.module, config.train.dropout) if config.train.dropout is not None else []
    model = attach(base, config.method, config.seed)
    serializer = serializer_for(config, base.tokenizer, model.context, labels)
    canaries = read_audit_canaries(run)
    new = first_new(model.module) if canaries else 0
    special = otherwise(canaries, serializer, new)
    training, owners, found = training_tokens(placed.training, serializer, config.train.goldfish, special)
    validation, _, more = training_tokens(placed.validation, serializer)
    for notice in [*notices, *found, *more]:
        say(notice.message)
    counts = _parameters(model.module)
    about = {
        "path": config.model.path,
        "base": base_digest,
        "tokenizer": tokenizer_digest(base),
        "serializer": serializer.rule,
        "context": model.context,
        "max_length": serializer.max_length,
        **counts,
        **({} if config.shards is None else {"shards": msgspec.to_builtins(config.shards)}),
    }
    before = (n for n in card.notices if n.kind not in {*TOKEN_NOTICES, "dropout"})
    card = dataclasses.replace(card, status="training", model=about, notices=(*before, *notices, *found))
    run.write_card(card)
    say(f"{counts['trainable']:,} of {counts['parameters']:,} parameters are tuned on {len(training):,} sequences")
    return _Ready(
        card=card,
        model=model,
        training=training,
        owners=owners,
        validation=validation,
        examples=placed.training,
        canaries=planted_tokens(run, placed.canaries, serializer, new) if config.train.monitor else (),
    )


def _privately(
    run: Run, ready: _Ready, config: RunConfig, say: Say, monitor: Monitor
) -> "tuple[Progress, Promise, dict[str, str]]":
    """Train under differential privacy; the promise is yet to be ended, once the weights are saved."""
    from sordino.train.loop import train
    from sordino.train.objective import private_scale
    from sordino.train.per_sample import at_once, choose
    from sordino.train.private import PrivateSteps
    from sordino.train.promise import Promise, members_of, plan_for, uncovered

    assert config.dp is not None
    model, members = ready.model, members_of(ready.examples, ready.owners, config.dp.unit)
    promise = Promise.of(run, ready.card, plan_for(config, len(members)), uncovered(config.train))
    for sentence in (promise.plan.sentence(), *promise.entry.warnings):
        say(sentence)
    way = choose(config, at_once(promise.plan, members, ready.training, config.train.accumulation), model.classes)
    say(f"per-sample gradients: {way}")
    tokens = (ready.training, ready.validation)
    with promise.mechanism(model.module, way.mode, private_scale(config.train.precision)) as mechanism:
        private = PrivateSteps(model, ready.training, members, mechanism)
        progress = train(run, model, tokens, config.train, seed=config.seed, monitor=monitor, private=private)
    return progress, promise, {"per-sample gradients": str(way)}


def _in_shards(run: Run, ready: _Ready, config: RunConfig, say: Say, monitor: Monitor) -> "Progress":
    """Train one adapter a shard, and write what they are together as the weights of `run`."""
    from sordino.train.sharded import Sequences, train_shards

    data = Sequences(examples=ready.examples, tokens=ready.training, owners=ready.owners, validation=ready.validation)
    return train_shards(run, ready.model, config, data, say=say, monitor=monitor)


def _finished(card: RunCard, progress: Progress, privacy: dict[str, Any], weights: str) -> RunCard:
    # The loss on training data is no part of what differential privacy lets out.
    unsaid = {"log_bytes", "clip_norm"} | ({"loss"} if privacy else set())
    unsaid |= set() if card.data.get("labels") else {"accuracy"}
    unsaid |= {"stopped"} if card.config["train"].get("stop_loss") is None else set()
    return dataclasses.replace(
        card,
        status="trained",
        training={k: v for k, v in dataclasses.asdict(progress).items() if k not in unsaid},
        privacy=privacy,
        model={**card.model, "weights": weights},
    )


def _stopping(progress: Progress, target: float) -> str:
    if progress.stopped:
        return f"stopped at step {progress.step:,}: the validation loss, {progress.validation:.4g}, is low enough"
    best = "not measured" if progress.best is None else f"{progress.best:.4g} at best"
    return f"the validation loss never came down to train.stop_loss ({target:g}): {best}"


def _same_base(card: RunCard, found: str) -> None:
    known = card.model.get("base")
    if known is not None and known != found:
        message = f"The model {card.model['path']} has changed since this run began ({known} → {found})."
        raise RunError(message, "Restore it, or start a new run.")


def _parameters(module: Any) -> dict[str, int]:
    return {
        "parameters": sum(p.numel() for p in module.parameters()),
        "trainable": sum(p.numel() for p in module.parameters() if p.requires_grad),
    }


def plan_of(config: RunConfig, prepared: Prepared) -> dict[str, Any]:
    """What training would do, without loading weights: counts, tokens, steps, parameters and memory."""
    import math

    from sordino.model import count_parameters, load_tokenizer
    from sordino.train.memory import plan_memory
    from sordino.train.per_sample import at_once, private_rows
    from sordino.train.promise import earlier, members_of, plan_for, together

    tokenizer = load_tokenizer(config.model)
    classes = classes_of(config, prepared.labels)
    shape = count_parameters(config.model, config.method, classes)
    serializer = serializer_for(config, tokenizer, shape["context"], prepared.labels)
    examples = prepared.split.training
    special = otherwise(prepared.audit_canaries, serializer, len(tokenizer))
    tokens, owners, notices = training_tokens(examples, serializer, config.train.goldfish, special)
    # Where units fall is drawn when training begins: until then, stages of one size are taken.
    stages = 1 if config.shards is None else config.shards.count * config.shards.slices
    steps = math.ceil(len(tokens) / stages / config.train.batch_size) * config.train.epochs * stages
    longest = max((len(t) for t in tokens), default=0)
    promised: dict[str, Any] = {}
    if config.dp is None:
        memory = plan_memory(config, len(tokens), longest, classes)
    else:
        members = members_of(examples, owners, config.dp.unit)
        plan = plan_for(config, len(members))
        before = together(earlier(Path(config.out), prepared.fingerprint), plan)
        steps, promised = plan.steps, {**plan.described(), **before, "curve": plan.curve()}
        memory = private_rows(config, at_once(plan, members, tokens, config.train.accumulation), classes)
    return {
        **prepared.counts,
        "unit": unit_words(prepared.unit_kind),
        **({"classes": len(prepared.labels)} if prepared.labels else {}),
        "sequences": len(tokens),
        "tokens an epoch": sum(len(t) if prepared.labels else int(t.target.sum()) for t in tokens),
        "longest sequence": longest,
        **{TOKEN_NOTICES[notice.kind]: notice.count for notice in notices},
        "steps": steps,
        **_planned_shards(config),
        **promised,
        "parameters": shape["parameters"],
        "trainable": shape["trainable"],
        **memory,
    }


def _planned_shards(config: RunConfig) -> dict[str, Any]:
    from sordino.train.shard_plan import formula

    if config.shards is None:
        return {}
    shards = config.shards
    share = f"{formula(shards.count, shards.slices):.1%} of training anew"
    return {"shards": shards.count, "slices": shards.slices, "deletion of one unit": share}
