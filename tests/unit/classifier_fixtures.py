"""Small trunks on disk for classifiers, and a labelled corpus with classes that can be learned and noise."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

CLASSES = ("billing", "delivery", "login")
WORDS = tuple(a + b for a in ("ka", "lo", "mi", "tu", "ve", "zo", "ri", "pa") for b in ("na", "se", "do", "ki", "ru"))
CUES = {"billing": "invoice", "delivery": "parcel", "login": "password"}


def write_corpus(path: Path, count: int = 240, noise: float = 0.0, seed: int = 0) -> None:
    """A CSV file of distinct texts: ten random words and a cue of the class; a share has another class."""
    rng = np.random.default_rng(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["body", "category"])
        for i in range(count):
            label = CLASSES[i % 3]
            words = [*rng.choice(WORDS, 10), CUES[label]]
            shown = CLASSES[(i + rng.integers(1, 3)) % 3] if rng.random() < noise else label
            rows.writerow([" ".join(rng.permutation(words)), shown])


def bert_tokenizer() -> Any:
    """A word-piece tokenizer of the corpus: words known whole, anything else as [UNK]."""
    named = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *CUES.values()]
    inner = Tokenizer(models.WordPiece({w: i for i, w in enumerate(named)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )


def write_bert(folder: Path, seed: int = 0) -> Path:
    """A random 2-layer BERT trunk, hidden size 32, without a head, as MiniLM comes."""
    tokenizer = bert_tokenizer()
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, pad_token_id=0, initializer_range=0.1,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_decoder(folder: Path, make_model: Any, shape: str) -> Path:
    """One of the shared small causal language models, on disk."""
    model = make_model(shape)
    model.module.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder
