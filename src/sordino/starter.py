"""The commented run.yaml that `sordino init` writes."""

from collections.abc import Mapping
from pathlib import Path

__all__ = ["starter"]

_COLUMNS = ("text", "prompt", "completion", "messages", "label", "rejected", "spans", "id", "unit")

_TEMPLATE = """\
# A run of Sordino: fine-tune on private records, then `sordino audit`. Every key but data.path has
# the default shown. Change any of them here, as SORDINO__TRAIN__EPOCHS=5, or as --train.epochs 5.
name: {name}
task: {task:<14} # causal-lm (learn to write the records) or classification (learn the class in data.label)
out: runs            # runs are written to folders in here
seed: {seed:<14} # decides coins, canaries, batches and adapters; keep it secret: it gives coins away

data:
  path: {path}
  format: auto       # auto, jsonl, csv, tsv, json, parquet, text (a line a record), text-folder (a file a record),
                     # datasets (a folder that save_to_disk wrote)
{columns}  unit_rows: null    # or: so many consecutive rows are one unit
  subset: null       # of a data set on the hub, where path is hub:owner/name
  split: null        # of a data set on the hub, or of a folder that save_to_disk wrote
  revision: null     # a branch, tag or commit of a data set on the hub

model:
  path: sordino-tiny # the built-in model; or a folder with config.json and *.safetensors; or a hub id
  revision: null     # a branch, tag or commit of a hub id
  remote_code: false # true runs code that comes with the model: read it first
  device: auto       # auto, cpu, cuda, mps

split:
  candidates: 0.4    # share of the units that are audit candidates: each is trained on with probability 1/2
  validation: 0.1    # share of the units that only measure utility
  near_duplicates: 0.8 # records at least this similar (Jaccard of 3-word shingles) share a coin; 0 switches it off

canaries:            # synthetic records with a random secret, planted to test the audit itself
  per_level: 8       # canaries a repetition level, each trained on with probability 1/2; 0: none
  levels: [1, 2, 4, 8, 16, 32]
  digits: 5
  share: 0.25        # canary copies are at most this share of the records
  audit:             # many canaries of one kind, planted once each: a lower bound on epsilon. See docs/canaries.md
    design: secret   # secret, in-distribution, high-perplexity, bigram, new-token
    count: 0         # each trained on with probability 1/2; 0: none
  # templates: ["In the style of your records: the code of {{name}} is {{secret}}."]

method:
  kind: lora         # lora, full, prefix, prompt, ia3, bitfit, head, adapters: see docs/fine-tuning.md
  variant: plain     # of lora: plain, rslora, dora, ffa
  rank: 16           # of lora, as alpha, dropout and targets
  alpha: 32.0
  dropout: 0.0
  targets: all-linear # or a list of module names
  virtual_tokens: 20 # of prefix and prompt; they take away from the context
  bottleneck: 64     # units of an adapter, of adapters

train:
  epochs: 3
  batch_size: 8      # records an optimizer step
  accumulation: 1    # parts a step is done in; more parts, less memory
  learning_rate: 2.0e-4
  schedule: cosine   # cosine, linear, constant
  warmup: 0.05       # share of the steps
  weight_decay: 0.0
  clip: 1.0          # largest gradient norm; 0: none
  max_length: null   # tokens a record; null: the model's context, at most 1024
  too_long: truncate # truncate, split (trained in pieces), refuse
  checkpoint_every: 100 # steps
  validate_every: null # steps; null: once an epoch
  select: last       # last or best (by validation loss)
  precision: fp32    # of matrix products: fp32, bf16, or fp16 (CUDA only); weights stay fp32
  gradient_checkpointing: false # true computes activations twice and keeps fewer: less memory, slower
  per_sample: auto   # how private training gets norms: book-keeping, two-backward, one-by-one; auto: what fits
  memory: null       # GiB that training may use, for auto and --dry-run; null: all that the device has
  goldfish: 0        # k: leave 1 in k tokens out of the loss, always the same ones; 0: none
  dropout: null      # probability of all dropout the model has, while tuning; null: as the model came
  stop_loss: null    # end at the first validation loss (nats) that is no higher
  monitor: null      # {{every: 100}}: score the planted canaries every 100 steps; they change nothing

dp: null             # differential privacy; {{epsilon: 8}} is enough. See docs/differential-privacy.md for its keys:
                     # epsilon or noise_multiplier, delta, unit (subject, record, cluster), relation,
                     # sampler (poisson, fixed-size, shuffled), loss (mean, sum), clip_norm, clipping (flat, automatic,
                     # per-layer, adaptive), quantile, records_per_unit, secure, seed

shards: null         # {{count: 8, slices: 4, combine: merge}}: trained in shards, so that a deletion is exact and
                     # cheap; combine: merge (the mean of the adapters) or ensemble (of their probabilities)

audit:               # fixed before training, so that nothing can be chosen by what the audit sees
  headline: reference # the attack of the lower bound on epsilon; or canaries: those of canaries.audit
  fpr: [0.1, 0.01, 0.001]
  bound: one-run     # one-run: ε of any mechanism; f-dp: tighter, of Gaussian mechanisms only
  guess_share: 0.2   # share of the coins that the lower bound guesses
  confidence: 0.95
  delta: 1.0e-5
  shuffles: 999      # of every permutation test
  prefix_tokens: 50  # of discoverable extraction
  suffix_tokens: 50
  token_forwards: 150000 # what the exact rank of one canary may cost before it is sampled
  require: []        # for example ["membership.auc <= 0.6", "extraction.prefix.excess <= 0.01"]
  suite: quick       # quick: attacks of at most one more pass; full: all but those on shadow models; all
  sampling:          # how likely, and after how many queries, a model that is sampled from writes a passage
    decodings:       # the first one is that of the headline
      - {{temperature: 1.0, top_k: null, top_p: 1.0}}
      - {{temperature: 1.0, top_k: 40, top_p: 1.0}}
      - {{temperature: 1.0, top_k: null, top_p: 0.95}}
      - {{temperature: 0.7, top_k: null, top_p: 1.0}}
      - {{temperature: 0.3, top_k: null, top_p: 1.0}}
    queries: [1, 10, 100, 1000, 10000, 100000, 1000000]
    limit: 1000      # queries of the headline
    chance: 0.5      # a record is out if they give it with this probability
  personal:          # the budget of attacks on names, numbers and the like; data.spans has your own labels
    mentions: 100    # entities asked about, trained on and as many not
    candidates: 100  # values that each is chosen from
    samples: 64      # continuations at the place of each, for --suite all
    texts: 256       # written from nothing, and searched
    text_tokens: 128
    regions: [US]    # countries whose telephone numbers need no country code
    soft_tokens: 20  # of a soft prompt trained on known people, for --suite all
    soft_steps: 80
    recovery_people: 10 # known people on whom the model is fine-tuned a little, for --suite all
    recovery_steps: 40
  near_bound:        # for --suite all: passages that sampling gives but for some tokens, at least how likely
    records: 50      # searched around, trained on and as many not
    beam: 16
    distance: 0.1    # share of a passage's tokens that may differ
  soft_prompt:       # for --suite all: vectors before the beginning of a record, trained on known records
    tokens: 20       # how many vectors
    steps: 80        # of their training
    learning_rate: 1.0e-2
    smoothing: 0.7   # weight of the 5 tokens of highest loss of each passage; 0: none
    records: 100     # asked about, trained on and as many not
  generated:         # for --suite full: texts written from nothing and after beginnings, ranked and looked up
    texts: 64        # in each of three ways
    tokens: 64
  secrets: []        # of formats you know: [{{kind: PIN, format: "[0-9]{{4}}"}}]; see docs/extraction.md
  inputs:            # what attacks may use besides; these, the suite and secrets may also be chosen at the audit
    known: 500       # records of which the adversary knows, on each side; none of them is judged
    shadows: 16      # shadow models
    shadow_kind: auto # same (as the target was trained), lora (adapters in place of full weights); auto: same
    masked_lm: null  # a masked language model that writes neighbours of a record; null: the untuned model does
    neighbours: 10   # of each record
    replaced: 0.3    # share of its tokens
    span: 2          # tokens in a row
    shots: 8         # known records in the prefix of recall
    samples: 10      # continuations of a record, for attacks on text alone
"""

_WORDS = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")
_MEANING = {
    "text": "column of plain-text records",
    "prompt": "columns of prompt and completion; only completions are trained on",
    "completion": "",
    "messages": "column of chat messages: a list of {role, content}",
    "label": "column of classes, for task: classification",
    "rejected": "column of answers liked less than the record's own; not trained on, but read by attacks on them",
    "spans": "column of labelled personal data, for attacks on it: a list of {entity_type, start, end}",
    "id": "column of record ids; null: a hash of the content",
    "unit": "column that says whom a record belongs to (customer, patient, author); null: every record is its own",
}


def starter(path: Path | str, columns: Mapping[str, str], task: str = "causal-lm", seed: int = 0) -> str:
    """A commented configuration for the records at `path`, with the `columns` found in them."""
    lines = []
    for key in _COLUMNS:
        value = _quoted(columns[key]) if key in columns else "null"
        text = f"  {key}: {value}"
        lines.append(f"{text:<21}# {_MEANING[key]}".rstrip(" #") if _MEANING[key] else text)
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in Path(path).stem.lower()) or "run"
    return _TEMPLATE.format(
        name=_quoted(name), task=task, seed=seed, path=_quoted(str(path)), columns="\n".join(lines) + "\n"
    )


def _quoted(text: str) -> str:
    # A path or a column may hold characters, or be a word, that means something in YAML.
    plain = all(c.isalnum() or c in "-_./" for c in text) and text[0].isalpha() and text.lower() not in _WORDS
    return text if plain else "'" + text.replace("'", "''") + "'"
