"""The command line: argument parsing only. stdout is data, stderr is words.

Exit codes: 0 ok · 1 a bug · 2 bad input or configuration · 3 a requirement failed · 4 inconclusive ·
130 interrupted.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

import sordino
from sordino.cli.common import Json
from sordino.cli.unlearn import unlearn
from sordino.errors import ConfigError, SordinoError

__all__ = ["app", "main"]

app = App(
    name="sordino",
    help="Fine-tune language models on private data, and know what leaked.",
    help_epilogue="Start with `sordino demo`, or with your own records: `sordino init FILE`.",
    version=sordino.__version__,
    version_flags=["--version"],
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # answered below, with what to do next
)

app.command(unlearn)

Keys = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]


@app.command
def demo(*, out: Path = Path("demo"), seed: int = 0) -> int:
    """The whole story on the built-in model and corpus, without and with differential privacy. Takes minutes.

    Makes a private corpus, fine-tunes, audits and reports, does the same again under differential privacy, and
    sets the two side by side.

    Parameters
    ----------
    out
        The folder for the corpus and the runs.
    seed
        Seeds the corpus, the coins and the training.

    """
    from sordino.commands import run_demo

    return run_demo(out, seed)


@app.command
def init(
    data: str | None = None,
    *,
    out: Path = Path("run.yaml"),
    task: Literal["causal-lm", "classification"] = "causal-lm",
    force: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Write a commented run.yaml for a file of records (JSONL, CSV, TSV, Parquet or text).

    Parameters
    ----------
    data
        Your records; columns are looked at and suggested.
    out
        Where to write the configuration.
    task
        Learn to write the records, or to tell the class of each.
    force
        Overwrite it.

    """
    from sordino.commands import run_init

    return run_init(data, out, force, task)


@app.command
def train(
    config: Path | None = None,
    *keys: Keys,
    resume: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    shards: int | None = None,
    slices: int | None = None,
    json: Json = False,
) -> int:
    """Fine-tune on private records, coins drawn and canaries planted first. Prints the run folder.

    Any key of run.yaml can be given as well, for example `--train.epochs 5 --model.path ./my-model`;
    the environment does too: `SORDINO__TRAIN__EPOCHS=5`.

    Parameters
    ----------
    config
        A run.yaml.
    resume
        Go on with this interrupted run instead.
    dry_run
        Read the records and show what would be done; load no weights.
    shards
        Train so many adapters, each on its own units, so that a deletion is exact and costs little;
        the same as `--shards.count`.
    slices
        The parts in which each of them is trained, one after the other; the same as `--shards.slices`.

    """
    from sordino.commands import run_train

    counts = {"count": shards, "slices": slices}
    named = [word for name, n in counts.items() if n is not None for word in (f"--shards.{name}", str(n))]
    return run_train(config, (*keys, *named), resume, dry_run, json)


Words = Annotated[str, Parameter(name="RUN", allow_leading_hyphen=True)]


@app.command
def audit(  # noqa: PLR0913 - each is an option of its own
    *run: Words,
    model: str | None = None,
    members: str | None = None,
    nonmembers: str | None = None,
    adapter: str | None = None,
    base: str | None = None,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None,
    quantize: Literal["int8-dynamic"] | None = None,
    endpoint: str | None = None,
    tokenizer: str | None = None,
    api_key_env: str | None = None,
    out: str | None = None,
    require: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    attack: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    suite: Literal["quick", "full", "all"] | None = None,
    list_attacks: Annotated[bool, Parameter(name="--list", negative="")] = False,
    plan: Annotated[bool, Parameter(negative="")] = False,
    epsilon: float | None = None,
    truth: float | None = None,
    delta: float | None = None,
    fpr: float | None = None,
    tpr: float | None = None,
    auc: float | None = None,
    power: float | None = None,
    in_context: Annotated[bool, Parameter(negative="")] = False,
    shots: int | None = None,
    trials: int | None = None,
    unit: str | None = None,
    reveal: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
) -> int:
    """Attack a trained run, check the controls, write audit.json and report.html, print a table.

    With --model, --members and --nonmembers it audits a model that was trained elsewhere; any key of
    that audit can be given as well, for example `--data.text body --data.unit customer`.

    Parameters
    ----------
    run
        The run folder; without one, the newest in ./runs.
    model
        A model trained elsewhere: a folder, a hub id, or with --endpoint its name there.
    members
        A file of records that it was trained on.
    nonmembers
        A file of like records that it was not trained on.
    adapter
        A PEFT adapter on top of --model, which is the untuned base then.
    base
        The model as it was before it was tuned.
    dtype
        The numbers of its weights; by default as they are stored.
    quantize
        Audit it with its linear layers in int8, on CPUs.
    endpoint
        An OpenAI-compatible server, such as http://127.0.0.1:8000/v1, to ask for --model.
    tokenizer
        With --endpoint: the tokenizer of the served model (a folder or hub id); by default that of --base.
        Not needed where the server tells no log-probabilities, or with `--access text`.
    api_key_env
        With --endpoint: the environment variable that holds the key; the key is written nowhere.
    out
        The folder in which the run folder of a model trained elsewhere is made; by default runs.
    require
        A condition such as "membership.tpr@0.01fpr <= 0.05"; exit code 3 if it fails, 4 if the sample
        cannot tell. May be given several times.
    attack
        Only this membership attack (and the pre-declared one). May be given several times.
    suite
        Which membership attacks: quick (at most one more pass each), full (all but those on shadow models) or
        all. `--audit.inputs.shadows 8` and the like, after the run folder, say what they may use.
    list_attacks
        List the attacks with what they need, and stop.
    plan
        Say how many records and coins the figures below take, and stop; it needs no run.
    epsilon
        With --plan: the lower bound on ε to reach; by default 2.
    truth
        With --plan: the ε that training really has; by default twice --epsilon.
    delta
        With --plan: the δ of both; by default 1e-5.
    fpr
        With --plan: the false-positive rate of --tpr; by default 0.01.
    tpr
        With --plan: the true-positive rate to measure to a half of itself; by default 0.1.
    auc
        With --plan: the AUC to tell from chance; by default 0.55.
    power
        With --plan: how likely all that should succeed; by default 0.8.
    in_context
        Ask instead which records stood in the model's prompt: put records there by coins, attack, and write
        in-context.json. It is an audit of its own and says nothing about training.
    shots
        With --in-context: records in a prompt; by default 4.
    trials
        With --in-context: prompts, at most; by default 200.
    unit
        Answer for one unit (a customer, a patient; where records are units, a record's id) instead: what the model
        gives away of each of its records and of the personal data in them, masked.
    reveal
        With --unit: also write the records and the data in full to a file in private/ that only you can read.

    """
    from sordino.auditing import run_audit, run_audit_elsewhere, run_in_context, run_list, run_plan, run_unit

    if list_attacks:
        return run_list(json)
    figures = {
        "epsilon": epsilon, "truth": truth, "delta": delta, "fpr": fpr, "tpr": tpr, "auc": auc, "power": power,
    }  # fmt: skip
    figures_given = {name: value for name, value in figures.items() if value is not None}
    options = {
        "model": model, "members": members, "nonmembers": nonmembers, "adapter": adapter, "base": base,
        "dtype": dtype, "quantize": quantize, "endpoint": endpoint, "tokenizer": tokenizer,
        "api_key_env": api_key_env, "out": out,
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value is not None}
    prompts = {name: n for name, n in (("shots", shots), ("trials", trials)) if n is not None}
    if plan:
        _alone(
            "--plan",
            [
                *(["--in-context"] if in_context else []),
                *(f"--{n}" for n in prompts),
                *run,
                *(f"--{name}" for name in given),
                *require,
                *attack,
            ],
        )
        return run_plan(figures_given, json)
    _alone("a run or a model", [f"--{name}" for name in figures_given], "They go with --plan.")
    if unit is not None:
        others = [*(["--in-context"] if in_context else []), *(["--suite"] if suite else []), *require, *attack]
        _alone("--unit", [*others, *(f"--{name}" for name in prompts)])
        return run_unit(run, given, unit, reveal, json)
    _alone("an audit", ["--reveal"] if reveal else [], "It goes with --unit; for the page: `sordino report --reveal`.")
    if in_context:
        _alone("--in-context", [*(["--suite"] if suite else []), *require, *attack], "They are for audits of training.")
        return run_in_context(run, given, prompts, json)
    _alone("an audit of training", [f"--{name}" for name in prompts], "They go with --in-context.")
    if not given:
        return run_audit(run, require, attack, suite, json)
    words = (*run, *(("--audit.suite", suite) if suite else ()))
    return run_audit_elsewhere(words, given, require, attack, json)


@app.command
def report(
    run: Path | None = None,
    *,
    reveal: Annotated[bool, Parameter(negative="")] = False,
    out: Path | None = None,
) -> int:
    """Write the report of an audited run: one HTML file that needs nothing else.

    Parameters
    ----------
    run
        The run folder; without one, the newest in ./runs.
    reveal
        Show extracted private text instead of masking it, in a page of its own.
    out
        Where to write it; by default report.html, or report-revealed.html, in the run folder.

    """
    from sordino.commands import run_report

    return run_report(run, reveal, out)


@app.command
def export(
    run: Path | None = None,
    *,
    out: Path,
    merge: Annotated[bool, Parameter(negative="")] = False,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    force: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Write the tuned model as a plain Hugging Face folder with a model card, and nothing private.

    Parameters
    ----------
    run
        The run folder; without one, the newest in ./runs.
    out
        The folder to write.
    merge
        Fold the adapter into the weights of its base.
    dtype
        The type of the numbers.
    force
        Replace an exported model that is there.

    """
    from sordino.commands import run_export

    return run_export(run, out, merge, dtype, force)


def _alone(what: str, others: Sequence[str], hint: str = "Give it with nothing but its own options.") -> None:
    if others:
        raise ConfigError(f"{', '.join(others)} cannot be given for {what}.", hint)


def _explain(message: str, hint: str = "") -> None:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"  {hint}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    # Before torch is loaded: threads that spin while they wait take the processor from those that work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    try:
        result = app(arguments, exit_on_error=False, print_error=False)
        return int(result or 0)
    except SordinoError as error:
        _explain(error.message, error.hint)
        return 2
    except CycloptsError as error:
        _explain(str(error).strip(), "See `sordino --help`.")
        return 2
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        _explain(
            "Interrupted.",
            "`sordino train --resume RUN` goes on from the last checkpoint; the same `sordino audit` or "
            "`sordino unlearn` goes on with what it has.",
        )
        return 130
    except Exception:
        traceback.print_exc()
        _explain("This is a bug in Sordino.", "Please report it with the lines above.")
        return 1
