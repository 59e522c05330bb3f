"""Run the benchmarks and write benchmarks/RESULTS.md with the commands that made each table.

python benchmarks/run.py [NAME ...]     all, or some of: startup, signals, attacks, suite, reduction, training,
                                        clipping, shadows, records, matching, generation,
                                        extraction_suite, forgetting, demo
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"

ABOUT = {
    "startup": "## Start-up\n\n`sordino --help` must answer in under 0.5 s of CPU time.",
    "signals": (
        "## All membership scores at once\n\nThe target: at most 1.15 times the plain passes that cannot be avoided "
        "(tuned, base, lower-cased; logits computed in all) at vocabularies up to 4k, 1.3 times at 50k."
    ),
    "attacks": (
        "## Scoring from a store\n\nThe target: at least 10⁷ tokens a second for each attack that is arithmetic on "
        "what is kept, on one core. Where a machine does other work at the same time, the clock on the wall "
        "tells of that; CPU time is what an attack takes. Of a classifier's attacks a token is a record. dc_pdd, which "
        "sorts the tokens of every record, is at the target or a tenth below it."
    ),
    "suite": (
        "## The whole suite at once\n\nAll membership attacks but those on shadow models share their passes, against "
        "each attack with passes of its own; and the parts of an audit, of which all but statistics, the blind "
        "control and `compressed` are models at work. Statistics are attacks, intervals and the permutation tests."
    ),
    "reduction": (
        "## What reducing a logit costs\n\nA model of width 128 makes a logit about as cheaply as a few passes over "
        "it cost, so all sums are taken in one pass that Numba compiles."
    ),
    "training": (
        "## A training step\n\nThe target: at most 1.02 times a bare PyTorch loop of the same model, batches and "
        "optimizer, and not slower than transformers.Trainer. Below 1 is possible because padding and prompts get "
        "no logits and, where attention is causal, padding needs no mask."
    ),
    "clipping": (
        "## A private training step\n\nThe targets, as ratios to the plain step in time and peak memory: LoRA 1.03 and "
        "1.03; full at T=128 1.10 for 40M parameters and 1.18 for 10M, memory 1.05; full with checkpointing 1.35 and "
        "1.55 (book-keeping) or 1.6 and 1.10 (two-backward); 1.8 times faster than the best way of Opacus on full. "
        "The command goes on where it was stopped, and begins no row after 80 minutes.\n\n"
        "Where full tuning misses its target in time, the second table says why. What a plain step does not do are the "
        "norms and the noise. A weight of d by p costs the products of positions T(d+p)/dp of its gradient, which is a "
        "third of a step: at T = 128 that makes 8 % for GPT-2 40M and 12 % for the other three, with the head of "
        "8,192 words among them, and there is no cheaper exact way in float32: triangular products were no faster. "
        "Forming more gradients would save 3 % on Llama 10M and cost 11 % of its memory. Noise is 3 to 4 %, at 4 ns a "
        "number. In memory, two-backward keeps the graph and so is no saving here; one-by-one is. What a "
        "process takes is more than what lives in it: with freed memory given back at once "
        "(`MALLOC_MMAP_THRESHOLD_=65536`) book-keeping takes 0.94 times the plain step on Llama 40M in full, 1.01 "
        "times on Llama 10M with LoRA and 1.01 "
        "times on GPT-2 10M in full (by hand, `--measure`).\n\n"
        "LoRA on Llama 10M, two-backward under checkpointing, and the margin over Opacus miss their targets as well; "
        "no profile was made of these. The rows were measured one at a time over two hours, those of stories260k and "
        "GPT-2 while the machine did other work."
    ),
    "shadows": (
        "## Shadow models\n\nK = 16 adapters trained together: never slower than one after another, and three times as "
        "fast at 128 tokens a step or fewer. The products with the base are as many either way; what is saved are "
        "calls, which small batches are made of. The command goes on where it was stopped, and begins no row after "
        "an hour."
    ),
    "forgetting": (
        "## A step of unlearning\n\nAgainst the same losses as public implementations compute them: logits of every "
        "position, a copy of the model as the reference in every step. Both come to the same weights."
    ),
    "records": (
        "## Data of any size\n\nReading JSON lines, drawing coins with near-duplicates clustered, fingerprint and "
        "storage, each row in a process of its own. A million short records must stay under 2 GB at the peak."
    ),
    "matching": (
        "## Matching text\n\nThe longest common substring, exactly: at least 100 times as fast as the table of all "
        "pairs in Python at 800 characters. A suffix array over all records answers any number of texts."
    ),
    "generation": (
        "## Generation\n\nThe target: at least five times as fast as `model.generate` of transformers in a loop over "
        "requests, and not slower than `model.generate` on batches padded on the left. All write 50 tokens at most "
        "after beginnings of 10 to 60 tokens, with stories260k."
    ),
    "extraction_suite": (
        "## Extraction of 2,000 records\n\nThe target: `prefix`, `near` and `sampling` of an audit at least 20 times "
        "as fast as a loop over records with transformers, which tries one window of each."
    ),
    "demo": (
        "## The demonstration\n\nTwo trainings and two audits, without and with differential privacy: at most 4 "
        "minutes on two cores after installation, with nothing compiled before."
    ),
}


def _demo() -> str:
    folder = Path(tempfile.mkdtemp())
    started = time.monotonic()
    try:
        command = [sys.executable, "-m", "sordino.cli", "demo", "--out", str(folder / "demo")]
        # As on a machine that never ran it: what Numba compiles is compiled again.
        fresh = {**os.environ, "NUMBA_CACHE_DIR": str(folder / "compiled")}
        subprocess.run(command, check=True, capture_output=True, env=fresh)
        spent = time.monotonic() - started
        size = next(folder.glob("demo/*-plain-*/report.html")).stat().st_size
    finally:
        shutil.rmtree(folder)
    return f"| command | seconds | report |\n|---|---|---|\n| `sordino demo` | {spent:.0f} | {size / 1024:.0f} KiB |"


def _table(name: str) -> str:
    if name == "demo":
        return _demo()
    done = subprocess.run([sys.executable, str(HERE / f"{name}.py")], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _sections() -> dict[str, str]:
    """The sections that stand in RESULTS.md, so that one benchmark can be run again alone."""
    if not RESULTS.exists():
        return {}
    parts = RESULTS.read_text().split("\n<!-- ")[1:]
    return {part.partition(" -->")[0]: "<!-- " + part.rstrip() for part in parts}


def _write(sections: dict[str, str]) -> None:
    head = "# Benchmarks\n\nRatios are medians of interleaved rounds on one machine; absolute times are that machine's."
    body = "\n\n".join(sections[n] for n in ABOUT if n in sections)
    RESULTS.write_text(f"{head}\n\n{body}\n")


def main() -> None:
    """Run what is asked for; the file is rewritten after each, so that nothing is lost."""
    names = sys.argv[1:] or list(ABOUT)
    sections = _sections()
    for name in names:
        print(f"{name} …", file=sys.stderr, flush=True)
        threads = os.environ.get("OMP_NUM_THREADS", "default")
        where = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, OMP_NUM_THREADS={threads}"
        made = f"`python benchmarks/run.py {name}` on {datetime.now(UTC):%Y-%m-%d}, {where}."
        sections[name] = f"<!-- {name} -->\n{ABOUT[name]}\n\n{made}\n\n{_table(name)}"
        _write(sections)


if __name__ == "__main__":
    main()
