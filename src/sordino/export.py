"""A trained run as a plain Hugging Face folder with a model card, and nothing of what is private."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import torch

from sordino.classifier import class_logits, head_names
from sordino.config import ModelConfig, RunConfig, recorded
from sordino.errors import ConfigError, ModelError, RunError
from sordino.model import BUNDLED, Model, load, restore, save, weights_digest
from sordino.model.combined import is_combined
from sordino.report.card import Artefact, render_card
from sordino.results import AuditReport, RunCard
from sordino.run import Run, write_atomic, write_folder
from sordino.train.reading import classes_of
from sordino.unlearn.requests.exports import remember_export

__all__ = ["export"]

Kind = Literal["float32", "bfloat16", "float16"]

# PEFT methods that are a change of weights and nothing else (PEFT's names: plain, rank-stabilised and
# weight-decomposed LoRA are all LORA).
_FOLDABLE = ("LORA", "IA3")
_OURS = ("config.json", "adapter_config.json")


def export(run: Run, out: Path, *, merge: bool = False, dtype: Kind = "float32", force: bool = False) -> Path:
    """Write the model of `run` to `out`, for transformers and PEFT; returns `out`.

    An adapter stays one, beside the base if that is no hub id; `merge` folds it into the base where that
    is exact. README.md has the findings of the audit if there was one. Raises `RunError` where the run is
    not trained, its weights or its audit are not those of this run, or `out` is taken; `ConfigError`
    where the method's changes cannot be folded in, or the weights are combined adapters; `ModelError` where
    folding in changes the logits.
    """
    card = run.card
    if card.status != "trained":
        hint = f"Finish it: `sordino train --resume {run.path}`."
        raise RunError(f"{run.path} is not trained to its end ({card.status}).", hint)
    if is_combined(run.weights):
        message = (
            f"The weights in {run.weights} are several adapters that are read as one model, by a rule of their own."
        )
        hint = "Share the folder with Sordino. What shards have learnt is one adapter where they are combined by merge."
        raise ConfigError(message, hint)
    if weights_digest(run.weights) != card.model["weights"]:
        raise RunError(f"The weights in {run.weights} are not those that training wrote.", "Restore them.")
    report = _audit(run, card)
    _check_place(run, out, force)
    config = recorded(card.config, str(run.path / "run.json"))
    model = _restored(run, config, card)
    with write_folder(out) as folder:
        artefact = _write(model, folder, config, merge=merge, dtype=dtype)
        write_atomic(folder / "README.md", render_card(card, report, artefact).encode())
        folder.chmod(0o755)
    remember_export(run, out, merged=merge)
    return out


def _audit(run: Run, card: RunCard) -> AuditReport | None:
    if not (run.path / "audit.json").exists():
        return None
    report = run.audit
    if report.provenance.get("model.weights") != card.model["weights"]:
        message = f"The audit in {run.path} is not of the weights in it."
        raise RunError(message, f"Audit them: `sordino audit {run.path}`.")
    return report


def _check_place(run: Run, out: Path, force: bool) -> None:
    place, home = out.resolve(), run.path.resolve()
    if place == home or place in home.parents or home in place.parents:
        raise RunError(f"{out} and the run {run.path} are in one another.", "Choose a folder elsewhere.")
    if not out.exists():
        return
    if not force:
        raise RunError(f"{out} exists already.", "Choose another --out, or replace it with --force.")
    if not out.is_dir() or (any(out.iterdir()) and not any((out / name).is_file() for name in _OURS)):
        raise RunError(f"{out} holds something else than a model.", "--force replaces exported models only.")


def _restored(run: Run, config: RunConfig, card: RunCard) -> Model:
    """The tuned model on the CPU; raises `RunError` where the base under its adapter has changed."""
    classes = classes_of(config, card.data.get("labels", ()))
    model = restore(dataclasses.replace(config.model, device="cpu"), config.method, run.weights, classes)
    found = card.model["base"] if config.method.kind == "full" else model.base().digest()
    if found != card.model["base"]:
        message = f"The model {config.model.path} has changed since it was tuned."
        raise RunError(message, "Restore it, or train again.")
    return model


def _write(model: Model, folder: Path, config: RunConfig, *, merge: bool, dtype: Kind) -> Artefact:
    hub = _is_hub(config.model) and _is_whole(model, config)
    base = config.model.path if hub else Path(config.model.path).name
    kept = dtype == "float32"
    if not hasattr(model.module, "peft_config"):
        _save_as(model if config.method.kind == "full" else _plain(model), folder, dtype)
        return Artefact(form="The whole model", base=base, dtype=dtype, adapter=False, hub=hub, audited=kept)
    if merge:
        _save_as(_merged(model), folder, dtype)
        form = "The whole model, its adapter folded into the weights"
        return Artefact(form=form, base=base, dtype=dtype, adapter=False, hub=hub, audited=False)
    _save_as(model, folder, dtype)
    _rename_base(folder / "adapter_config.json", base if hub else "base", config.model.revision if hub else None)
    if not hub:
        _save_as(load(dataclasses.replace(config.model, device="cpu"), classes=model.classes), folder / "base", dtype)
    form = "An adapter" if hub else "An adapter, with the base it needs in the folder base"
    return Artefact(form=form, base=base, dtype=dtype, adapter=True, hub=hub, audited=kept)


def _is_hub(config: ModelConfig) -> bool:
    return config.path != BUNDLED and not Path(config.path).is_dir()


def _is_whole(model: Model, config: RunConfig) -> bool:
    """Whether all below a head comes from the source: some lack a pooling layer, which was drawn from the seed."""
    if model.classes is None or config.method.kind == "full":
        return True
    source = dataclasses.replace(config.model, device="cpu")
    bases = [load(source, classes=dataclasses.replace(model.classes, seed=seed)).module for seed in (0, 1)]
    heads = head_names(bases[0])
    one, two = (base.state_dict() for base in bases)
    return all(torch.equal(value, two[name]) for name, value in one.items() if name.split(".")[0] not in heads)


def _save_as(model: Model, folder: Path, dtype: Kind) -> None:
    save(dataclasses.replace(model, module=model.module.to(getattr(torch, dtype))), folder)


def _rename_base(path: Path, base: str, revision: str | None) -> None:
    """Name the base as the public can find it: PEFT writes the path it was loaded from."""
    settings = json.loads(path.read_text()) | {"base_model_name_or_path": base, "revision": revision}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _merged(model: Model) -> Model:
    """The model with its adapter folded into its weights."""
    kinds = {str(config.peft_type.value) for config in model.module.peft_config.values()}
    other = sorted(kinds - set(_FOLDABLE))
    if other:
        kind = other[0].lower().replace("_", " ")
        message = f"The adapter is {kind}, which adds to what the model reads or computes: no weights hold the same."
        raise ConfigError(message, "Export it without --merge.")
    before = _logits(model)
    merged = dataclasses.replace(model, module=model.module.merge_and_unload(safe_merge=True), method=None)
    _same(before, _logits(merged), "Folding the adapter into the weights")
    return merged


def _plain(model: Model) -> Model:
    """A model of the base's own architecture with the tuned weights, where that computes the same."""
    plain = load(model.config, classes=model.classes)
    tuned = model.module.state_dict()
    plain.module.load_state_dict({name: tuned[name] for name in plain.module.state_dict() if name in tuned})
    _same(_logits(model), _logits(plain), "Leaving out what the method added to the architecture")
    return plain


def _logits(model: Model) -> torch.Tensor:
    vocabulary = int(model.module.config.get_text_config().vocab_size)
    with model.active() as module:
        ids = torch.arange(16, device=model.device)[None] * 7 % vocabulary
        if model.classes is not None:
            return class_logits(module, ids, torch.ones_like(ids)).double()
        logits: Any = module(input_ids=ids, use_cache=False).logits
        return logits.double()  # type: ignore[no-any-return]


def _same(before: torch.Tensor, after: torch.Tensor, what: str) -> None:
    # Some of it is rounding: products of adapters are summed in another order.
    worst = float((after - before).abs().max() / before.abs().max())
    if not worst <= 1e-5:
        message = f"{what} changes the logits by {worst:.1e} of the largest."
        raise ModelError(message, "Share the run's weights with Sordino, or export the adapter as it is.")
