"""The built-in corpus, tokenizer and base model are what their pages say."""

import hashlib
import json
import math
import random
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from sordino.bundled import TINY
from sordino.bundled.corpus import (
    GRAMMAR,
    canary_sentences,
    private_corpus,
    public_corpus,
    write_jsonl,
)
from sordino.bundled.grammar import Expansion, parse_rules, read_sections, tidy
from sordino.errors import ConfigError, DataError

TICKETS = list(private_corpus(11, 400))
EMAIL = re.compile(r"[\w.]+@\w+\.example")
PHONE = re.compile(r"(?:\+1 |\()?[2-9]9\d\)?[ -][2-9]\d\d[ -]\d{4}")
CARD = re.compile(r"(?:\d{4} ?){3}\d{4}")
IBAN = re.compile(r"[A-Z]{2}\d{2}[\d ]{10,}")
# Measured 3.45; the bound leaves room for another processor, not for another model.
PERPLEXITY = 4.0


def luhn_holds(number: str) -> bool:
    """Doubling every second digit from the right (less 9 if above 9) gives a sum divisible by 10."""
    digits = [int(digit) for digit in reversed(number)]
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def iban_holds(iban: str) -> bool:
    """Move the first four characters to the end, write letters as numbers, and leave 1 modulo 97."""
    turned = iban[4:] + iban[:4]
    return int("".join(str(int(character, 36)) for character in turned)) % 97 == 1


def test_same_seed_same_corpus_and_another_seed_another():
    assert list(private_corpus(5, 20)) == list(private_corpus(5, 20))
    assert list(public_corpus(5, 30))[:10] == list(public_corpus(5, 10))
    assert not set(public_corpus(5, 30)) & set(public_corpus(6, 30))
    assert not {t.text for t in private_corpus(5, 20)} & {t.text for t in private_corpus(6, 20)}


def test_each_customer_has_two_to_six_tickets_and_a_name_of_its_own():
    counts = Counter(ticket.customer_id for ticket in TICKETS)
    assert len(counts) == 400
    assert set(counts.values()) == {2, 3, 4, 5, 6}
    assert len({ticket.name for ticket in TICKETS}) == 400
    assert len({(ticket.customer_id, ticket.name) for ticket in TICKETS}) == 400


def test_each_ticket_carries_two_to_four_facts_in_forty_to_110_words():
    for ticket in TICKETS:
        assert 40 <= len(ticket.text.split()) <= 110
        assert 2 <= len(set(ticket.facts)) == len(ticket.facts) <= 4
        assert ticket.name in ticket.facts
        assert all(fact in ticket.text for fact in ticket.facts)
        assert "{" not in ticket.text and "|" not in ticket.text and "  " not in ticket.text


def test_facts_of_a_customer_stay_the_same():
    facts: dict[str, set[str]] = {}
    for ticket in TICKETS:
        facts.setdefault(ticket.customer_id, set()).update(ticket.facts)
    assert max(map(len, facts.values())) == 5


def test_secrets_are_valid_and_belong_to_nobody():
    facts = {fact for ticket in TICKETS for fact in ticket.facts if fact != ticket.name}
    emails = {fact for fact in facts if "@" in fact}
    phones = {fact for fact in facts if PHONE.fullmatch(fact)}
    cards = {fact for fact in facts if CARD.fullmatch(fact)}
    ibans = {fact for fact in facts if fact[:2].isupper()}
    accounts = {fact for fact in facts if re.fullmatch(r"\d{10}", fact)}
    assert facts == emails | phones | cards | ibans | accounts
    assert min(map(len, (emails, phones, cards, ibans, accounts))) > 100
    assert all(EMAIL.fullmatch(email) for email in emails)
    assert all(luhn_holds(card.replace(" ", "")) for card in cards)
    assert all(iban_holds(iban.replace(" ", "")) for iban in ibans)


@pytest.mark.parametrize("break_one", [True, False])
def test_the_checks_of_this_file_notice_a_wrong_digit(break_one):
    assert luhn_holds("424242424242424" + ("3" if break_one else "2")) != break_one
    assert iban_holds("DE8937040044053201300" + ("1" if break_one else "0")) != break_one


def test_public_and_private_share_no_secret():
    def secrets(text: str) -> set[str]:
        found = [*EMAIL.findall(text), *PHONE.findall(text), *CARD.findall(text), *IBAN.findall(text)]
        return {secret.strip() for secret in [*found, *re.findall(r"\b\d{10}\b", text)]}

    public = set().union(*map(secrets, public_corpus(11, 1500)))
    private = set().union(*(secrets(ticket.text) for ticket in TICKETS))
    assert min(len(public), len(private)) > 1000
    assert not public & private


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return set(zip(words, words[1:], words[2:], strict=False))


def test_tickets_of_different_customers_are_far_apart():
    grams = [shingles(ticket.text) for ticket in TICKETS]
    columns = {gram: column for column, gram in enumerate(set().union(*grams))}
    rows = np.repeat(np.arange(len(grams)), [len(gram) for gram in grams])
    entries = (np.ones(len(rows)), (rows, [columns[gram] for row in grams for gram in row]))
    matrix = sparse.csr_matrix(entries)
    shared = (matrix @ matrix.T).toarray()
    sizes = shared.diagonal()
    jaccard = shared / (sizes[:, None] + sizes[None] - shared)
    customers = np.array([ticket.customer_id for ticket in TICKETS])
    jaccard[customers[:, None] == customers[None]] = 0
    assert jaccard.max() < 0.3
    assert np.median(jaccard.max(axis=1)) < 0.1
    assert len({ticket.text for ticket in TICKETS}) == len(TICKETS)


def test_customers_do_not_drift():
    number = np.array([int(ticket.customer_id[1:]) for ticket in TICKETS])
    late, odd = number >= 200, number % 2 == 1
    counts = CountVectorizer(min_df=3, binary=True).fit_transform(ticket.text for ticket in TICKETS)
    blind = LogisticRegression(C=0.1, max_iter=500).fit(counts[~odd], late[~odd])
    assert abs(roc_auc_score(late[odd], blind.decision_function(counts[odd])) - 0.5) < 0.07


def test_canary_carriers():
    carriers = canary_sentences()
    assert len(set(carriers)) == 12
    for carrier in carriers:
        assert 25 <= len(carrier.split()) <= 50
        assert carrier.count("{name}") == carrier.count("{secret}") == 1
        assert re.search(r" \{secret\}[ .]", carrier)
        assert carrier.format(name="A", secret="1").count("1") == 1


def test_write_jsonl(tmp_path):
    path = tmp_path / "tickets.jsonl"
    count = write_jsonl(path, 11, 10)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    tickets = list(private_corpus(11, 10))
    assert count == len(rows) == len(tickets) == len({row["id"] for row in rows})
    headers, texts = zip(*(row["text"].split("\n", 1) for row in rows), strict=True)
    assert [row["customer"] for row in rows] == [t.customer_id for t in tickets]
    assert list(texts) == [t.text for t in tickets]
    assert all(re.fullmatch(r"#[a-z]+ \| [a-z]+ \| (normal|urgent)", header) for header in headers)
    assert all(set(row) == {"id", "customer", "text"} for row in rows)


def test_bad_arguments_are_explained(tmp_path):
    with pytest.raises(ConfigError, match="-1 texts"):
        public_corpus(0, -1)
    with pytest.raises(ConfigError, match="0 customers"):
        private_corpus(0, 0)
    with pytest.raises(ConfigError, match="100,001 customers"):
        private_corpus(0, 100_001)
    with pytest.raises(DataError, match="absent"):
        write_jsonl(tmp_path / "absent" / "tickets.jsonl", 0, 1)


def test_every_symbol_of_the_grammar_leads_somewhere_and_every_section_is_used():
    sections = read_sections(GRAMMAR)
    lines = [line for name, found in sections.items() if name != "canary" for line in found]
    used = {symbol for line in lines for symbol in re.findall(r"\{([\w.]+)\}", line)}
    heads = {name.split("@")[0] for name in sections}
    given = {"name", "home", "email", "phone", "card", "account", "city", "date", "date2", "fact"}
    topics = set(sections["topic.kind"])
    for symbol in used - given:
        assert symbol in heads or {f"{symbol}.{topic}" for topic in topics} <= heads, symbol
    roots = {"form", *sections["form"], "topic.kind", "host", "canary", *(f"fact.{fact}" for fact in given)}
    for head in heads - used - roots:
        stem, _, topic = head.rpartition(".")
        assert stem in used and topic in topics, head
    assert all(line.count("(") == line.count(")") for line in lines)


def test_grammar_engine(tmp_path):
    path = tmp_path / "small.grammar"
    path.write_text("# note\n[s]\n{x} (a|b (c|)), {k}-{k}.\n[x]\nany\n[x.t]\ntopic\n[x.t@v]\nvoice\n[k]\n1\n2\n")
    rules = parse_rules(path)

    def texts(topic: str, voice: str) -> set[str]:
        drafts = (
            Expansion(
                rng=random.Random(i),
                rules=rules,
                topic=topic,
                voice=voice,
                constants=frozenset("k"),
                values={},
            )
            for i in range(200)
        )
        return {tidy(draft.symbol("s")) for draft in drafts}

    tails = {f"{middle}, {k}-{k}." for middle in ("a", "b", "b c") for k in "12"}
    assert texts("t", "v") == {f"Voice {tail}" for tail in tails}
    assert texts("t", "w") == {f"Topic {tail}" for tail in tails}
    assert texts("u", "v") == {f"Any {tail}" for tail in tails}


def test_the_corpus_needs_no_torch_and_reading_canaries_no_faker():
    code = (
        "import sys; from sordino.bundled import corpus; corpus.canary_sentences();"
        "assert 'faker' not in sys.modules; list(corpus.private_corpus(0, 1));"
        "assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def model():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(TINY).eval()


def test_tokenizer_is_fast_and_adds_nothing(tokenizer):
    assert tokenizer.is_fast
    assert len(tokenizer) == tokenizer.vocab_size == 2048
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<pad>")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    assert tokenizer("x").input_ids == [tokenizer.convert_tokens_to_ids("x")]
    assert tokenizer("<s>x</s>").input_ids == [0, *tokenizer("x").input_ids, 1]


@settings(max_examples=200, deadline=None)
@given(st.text())
@example("naïve 👩‍💻 日本語 \t\n  two  spaces \x00 end ")
@example("</s> and <pad> in a text")
def test_tokenizer_round_trips_any_text(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_every_digit_is_a_token_of_its_own(tokenizer):
    digits = {token for token in tokenizer.get_vocab() if re.search(r"\d", token)}
    assert digits == set("0123456789")
    assert tokenizer.tokenize("code 1905.") == [*tokenizer.tokenize("code "), "1", "9", "0", "5", "."]
    # A secret is tokenized the same wherever a space stands before it, and a period or a space after it.
    for carrier in canary_sentences():
        tokens = tokenizer.tokenize(carrier.format(name="Ada Example", secret="8041"))
        start = tokens.index("8")
        assert tokens[start - 1 : start + 4] == ["Ġ", "8", "0", "4", "1"]


def test_offsets_tile_the_text(tokenizer):
    text = TICKETS[0].text
    offsets = tokenizer(text, return_offsets_mapping=True).offset_mapping
    assert "".join(text[start:end] for start, end in offsets) == text
    ids = tokenizer(text).input_ids
    assert [tokenizer.decode([token]) for token in ids] == [text[start:end] for start, end in offsets]


def perplexity(model, tokenizer, texts: list[str]) -> float:
    import torch

    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([[0, *tokenizer(text).input_ids, 1]])
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=ids).loss) * (ids.numel() - 1)
        count += ids.numel() - 1
    return math.exp(total / count)


def test_model_reads_fresh_texts_and_knows_no_private_one(model, tokenizer):
    public = perplexity(model, tokenizer, list(public_corpus(99, 150)))
    private = perplexity(model, tokenizer, [ticket.text for ticket in TICKETS[::10]])
    assert public < PERPLEXITY
    assert abs(private / public - 1) < 0.05


def test_model_is_small_and_fits_its_tokenizer(model, tokenizer):
    assert model.num_parameters() < 1.1e6
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.max_position_embeddings == tokenizer.model_max_length == 512
    assert (TINY / "model.safetensors").stat().st_size <= 5_000_000
    assert max(len(tokenizer(ticket.text).input_ids) for ticket in TICKETS) < 300


def test_readme_of_the_model_is_true(model, tokenizer):
    readme = (TINY / "README.md").read_text(encoding="utf-8")
    digests = dict(re.findall(r"\| (\S+) \| `([0-9a-f]{64})` \|", readme))
    files = {path.name for path in TINY.iterdir()} - {"README.md"}
    assert set(digests) == files
    for name, digest in digests.items():
        assert hashlib.sha256((TINY / name).read_bytes()).hexdigest() == digest, name
    stated = [float(value) for value in re.findall(r"\) \| (\d+\.\d+) \|", readme)]
    measured = perplexity(model, tokenizer, list(public_corpus(2, 150)))
    assert len(stated) == 2
    assert max(stated) < PERPLEXITY
    assert abs(measured / stated[0] - 1) < 0.05
