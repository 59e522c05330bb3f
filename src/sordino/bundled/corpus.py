"""Synthetic support tickets: a public corpus for the base model, a private one of customers with secrets.

Every ticket is expanded from the grammar in `tickets.grammar`; first names, last names and cities come from
Faker, all else from a seeded generator. Nobody in it exists: e-mail hosts end in `.example` (RFC 2606),
phone numbers have area codes N9X, which the North American plan leaves unassigned, and cards the prefixes
of published test cards.
"""

import datetime
import json
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sordino.bundled.grammar import Expansion, Sequence, Symbol, parse_rules, read_sections, tidy
from sordino.errors import ConfigError, DataError

if TYPE_CHECKING:
    from faker import Faker

__all__ = ["Ticket", "canary_sentences", "private_corpus", "public_corpus", "write_jsonl"]

GRAMMAR = Path(__file__).parent / "tickets.grammar"
WORDS = (40, 110)
TICKETS_A_CUSTOMER = (2, 6)
MOST_CUSTOMERS = 100_000  # beyond, different names become hard to find
SECRETS = ("email", "phone", "card", "account")
# Fixed within a ticket, so that its sentences speak of one article and one contract.
ARTICLE = ("shop", "product", "item", "other", "colour", "colour2", "error")
CONTRACT = ("plan", "plan2", "order", "amount", "amount2")
CARD_PREFIXES = ("424242", "411111", "400000", "555555", "510510", "222300")
BBAN_DIGITS = {"DE": 18, "AT": 16, "CH": 17, "DK": 14, "FI": 14}

# The header of a ticket in house style; chance alone decides, so it says nothing about the customer.
QUEUES = ("billing", "orders", "returns", "account")
CHANNELS = ("phone", "mail", "chat")
PRIORITIES = ("normal", "normal", "normal", "urgent")


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """One support ticket; `facts` are the two to four private facts in `text`, verbatim."""

    customer_id: str
    name: str
    text: str
    facts: tuple[str, ...]


def public_corpus(seed: int, n: int) -> Iterator[str]:
    """Generate the first `n` texts of the public corpus `seed`, in the style of the private tickets.

    Each is about another person. Its people and secrets are drawn apart from those of every private
    corpus, and a larger `n` continues the same texts. Raises ConfigError where `n` is negative.
    """
    if n < 0:
        raise ConfigError(f"A corpus of {n} texts was asked for.", "Ask for 0 texts or more.")
    rng, faker = _generators("public", seed)
    return (_ticket(rng, faker, _person(rng, faker))[0] for _ in range(n))


def private_corpus(seed: int, customers: int = 600) -> Iterator[Ticket]:
    """Generate the tickets of `customers` people of different names, 2 to 6 tickets each, one by one.

    Customers are drawn alike and independently, but for their names, so any random half of them is a fair
    member or non-member set. Raises ConfigError unless `customers` is 1 to 100,000.
    """
    if not 1 <= customers <= MOST_CUSTOMERS:
        hint = f"Ask for 1 to {MOST_CUSTOMERS:,} customers."
        raise ConfigError(f"A corpus of {customers:,} customers was asked for.", hint)
    return _private_tickets(seed, customers)


def write_jsonl(path: str | Path, seed: int, customers: int = 600) -> int:
    """Write a private corpus as lines of {"id", "customer", "text"} and return the number of lines.

    The texts are in house style, which the public corpus knows nothing of.
    Raises ConfigError as `private_corpus` does, DataError where the file cannot be written.
    """
    lines = []
    rng = random.Random(f"house style {seed}")
    for number, ticket in enumerate(private_corpus(seed, customers)):
        text = house_style(ticket.text, rng)
        row = {"id": f"t{number:06d}", "customer": ticket.customer_id, "text": text}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    try:
        Path(path).write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        message = f"The corpus cannot be written to {path}: {error.strerror}."
        raise DataError(message, "Choose a file in an existing, writable folder.") from error
    return len(lines)


def house_style(text: str, rng: random.Random) -> str:
    """Put the help desk's own header above a ticket: what fine-tuning on private text is for."""
    return f"#{rng.choice(QUEUES)} | {rng.choice(CHANNELS)} | {rng.choice(PRIORITIES)}\n{text}"


def canary_sentences() -> tuple[str, ...]:
    """Return twelve carrier texts in the style of the tickets, each with one `{name}` and one `{secret}`.

    The secret stands for a string of digits, with a space before it and a space or a period after it.
    """
    return read_sections(GRAMMAR)["canary"]


def _generators(corpus: str, seed: int) -> tuple[random.Random, "Faker"]:
    """Seed the generator and the Faker of one corpus; another kind or seed shares no state with them."""
    from faker import Faker  # lazily: it is slow, and reading the canaries needs none

    rng = random.Random(f"sordino/{corpus}/{seed}")
    faker = Faker("en_US")
    faker.seed_instance(rng.getrandbits(64))
    return rng, faker


def _private_tickets(seed: int, customers: int) -> Iterator[Ticket]:
    """Walk through the customers of a private corpus."""
    rng, faker = _generators("private", seed)
    names: set[str] = set()
    for index in range(customers):
        person = _person(rng, faker)
        while person["name"] in names:
            person = _person(rng, faker)
        names.add(person["name"])
        for _ in range(rng.randint(*TICKETS_A_CUSTOMER)):
            text, facts = _ticket(rng, faker, person)
            yield Ticket(customer_id=f"c{index:05d}", name=person["name"], text=text, facts=facts)


def _ticket(rng: random.Random, faker: "Faker", person: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """Draw a ticket of `person` until it has `WORDS` words; return it and the private facts in it."""
    rules, sections, city = parse_rules(GRAMMAR), read_sections(GRAMMAR), faker.city()
    while True:
        form = rng.choice(sections["form"])
        draft = Expansion(
            rng=rng,
            rules=rules,
            topic=rng.choice(sections["topic.kind"]),
            voice="note" if form == "note" else "customer",
            constants=frozenset((*ARTICLE, *CONTRACT)),
            values={**person, "city": city, **_dates(rng)},
        )
        skeleton = rng.choice(rules[form])
        kinds = _fact_kinds(rng, skeleton)
        queue = iter(kinds)
        slots = (Symbol(f"fact.{next(queue)}") if slot == Symbol("fact") else slot for slot in skeleton)
        text = tidy(draft.sequence(tuple(slots)))
        if WORDS[0] <= len(text.split()) <= WORDS[1]:
            signed = ("name",) if Symbol("sign") in skeleton else ()
            return text, tuple(person[kind] for kind in (*kinds, *signed))


def _fact_kinds(rng: random.Random, skeleton: Sequence) -> list[str]:
    """Choose the fact of each `{fact}` of a form: the name, mostly first, and different secrets."""
    count = skeleton.count(Symbol("fact"))
    if Symbol("sign") in skeleton:
        return rng.sample(SECRETS, count)
    kinds = ["name", *rng.sample(SECRETS, count - 1)]
    if rng.random() < 0.4:
        rng.shuffle(kinds)
    return kinds


def _person(rng: random.Random, faker: "Faker") -> dict[str, str]:
    """Invent a customer: name, home and the four secrets."""
    first, last = faker.first_name(), faker.last_name()
    return {
        "name": f"{first} {last}",
        "home": faker.city(),
        "email": _email(rng, first, last),
        "phone": _phone(rng),
        "card": _card(rng),
        "account": _iban(rng) if rng.random() < 0.5 else _digits(rng, 10),
    }


def _dates(rng: random.Random) -> dict[str, str]:
    """Draw two days of a year in order, written `3 May` or `May 3`."""
    first, second = sorted(rng.sample(range(365), 2))
    pattern = rng.choice(("{d.day} {d:%B}", "{d:%B} {d.day}"))
    start = datetime.date(2025, 1, 1)
    days = (start + datetime.timedelta(days=offset) for offset in (first, second))
    return dict(zip(("date", "date2"), (pattern.format(d=day) for day in days), strict=True))


def _email(rng: random.Random, first: str, last: str) -> str:
    """Make up an address of a person at an invented host under `.example`."""
    given, family = (re.sub(r"[^a-z]", "", part.lower()) for part in (first, last))
    shapes = (f"{given}.{family}", f"{given[0]}{family}", f"{given}_{family[0]}", f"{family}.{given[0]}")
    host = rng.choice(read_sections(GRAMMAR)["host"])
    return f"{rng.choice(shapes)}{_digits(rng, rng.choice((2, 3, 4)))}@{host}.example"


def _phone(rng: random.Random) -> str:
    """Make up a North American number that no one can have: its area code is N9X."""
    area, exchange = f"{rng.randint(2, 9)}9{rng.randint(0, 9)}", f"{rng.randint(2, 9)}{_digits(rng, 2)}"
    return rng.choice(("({}) {}-{}", "{}-{}-{}", "+1 {} {} {}")).format(area, exchange, _digits(rng, 4))


def _card(rng: random.Random) -> str:
    """Make up a 16-digit card number with a test prefix and a valid check digit (Luhn, ISO/IEC 7812-1)."""
    body = rng.choice(CARD_PREFIXES) + _digits(rng, 9)
    total = sum(sum(divmod(int(digit) * (2 - i % 2), 10)) for i, digit in enumerate(body))
    return _grouped(rng, f"{body}{-total % 10}")


def _iban(rng: random.Random) -> str:
    """Make up an IBAN with valid check digits (ISO 13616, modulo 97)."""
    country = rng.choice(sorted(BBAN_DIGITS))
    bban = _digits(rng, BBAN_DIGITS[country])
    letters = "".join(str(int(letter, 36)) for letter in country)
    return _grouped(rng, f"{country}{98 - int(f'{bban}{letters}00') % 97:02d}{bban}")


def _grouped(rng: random.Random, number: str) -> str:
    """Write `number` as one word or in groups of four."""
    return number if rng.random() < 0.5 else " ".join(re.findall(".{1,4}", number))


def _digits(rng: random.Random, count: int) -> str:
    """Draw a string of `count` digits."""
    return f"{rng.randrange(10**count):0{count}d}"
