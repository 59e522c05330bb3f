"""National identity numbers by their forms and check digits, country by country."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from typing import Any

from sordino.errors import ConfigError, did_you_mean
from sordino.pii.spans import Span

__all__ = ["NATIONAL_IDS", "NationalId", "NationalIds"]

# How far before a number a word may stand that says what it is.
_NEAR = 60


@dataclass(frozen=True, kw_only=True)
class NationalId:
    """An identity number of `country` (ISO 3166): the `form` it is written in, and the module that checks it.

    Numbers that are digits alone pass their check by chance once in ten or eleven times: of those, one of `words`
    must stand shortly before. A form with a date, letters or two check digits speaks for itself.
    """

    kind: str
    country: str
    module: str
    form: str
    words: tuple[str, ...] = ()
    score: float = 0.9

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """The form, standing on its own."""
        return re.compile(rf"(?<![\w.-])(?:{self.form})(?![\w]|[.-]\d)", re.IGNORECASE)

    @cached_property
    def near(self) -> re.Pattern[str]:
        """Any of the words."""
        return re.compile(rf"\b(?:{'|'.join(map(re.escape, self.words))})\b", re.IGNORECASE)


def _id(kind: str, module: str, form: str, *words: str, country: str = "") -> NationalId:
    country = country or module.partition(".")[0].strip("_").upper()
    return NationalId(kind=kind, country=country, module=f"stdnum.{module}", form=form, words=words)


_CNP = r"[1-8]\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{6}"
NATIONAL_IDS = (
    _id("UK_NHS", "gb.nhs", r"\d{3}[ -]?\d{3}[ -]?\d{4}", "nhs", "national health", "health service"),
    _id("CA_SIN", "ca.sin", r"\d{3}[ -]?\d{3}[ -]?\d{3}", "sin", "social insurance", "nas", "assurance sociale"),
    _id("AU_TFN", "au.tfn", r"\d{3} ?\d{3} ?\d{2,3}", "tfn", "tax file"),
    _id("IN_AADHAAR", "in_.aadhaar", r"[2-9]\d{3} ?\d{4} ?\d{4}", "aadhaar", "aadhar", "uidai"),
    _id("ES_NIF", "es.dni", r"\d{8}-?[A-Z]"),
    _id("ES_NIE", "es.nie", r"[XYZ]-?\d{7}-?[A-Z]"),
    _id("IT_FISCAL_CODE", "it.codicefiscale", r"[A-Z]{6}\d{2}[A-Z]\d{2}[A-Z]\d{3}[A-Z]"),
    _id("FR_NIR", "fr.nir", r"[12][ ]?\d{2}[ ]?\d{2}[ ]?(?:\d{2}|2[AB])[ ]?\d{3}[ ]?\d{3}[ ]?\d{2}"),
    _id("DE_TAX_ID", "de.idnr", r"\d{2} ?\d{3} ?\d{3} ?\d{3}",
        "idnr", "steuer-id", "steuerid", "steueridentifikationsnummer", "identifikationsnummer", "tax id"),
    _id("NL_BSN", "nl.bsn", r"\d{4}\.?\d{2}\.?\d{3}", "bsn", "burgerservicenummer", "sofinummer"),
    _id("BE_NN", "be.nn", r"\d{2}\.?\d{2}\.?\d{2}-?\d{3}\.?\d{2}"),
    _id("CH_AHV", "ch.ssn", r"756\.?\d{4}\.?\d{4}\.?\d{2}"),
    _id("PL_PESEL", "pl.pesel", r"\d{11}", "pesel"),
    _id("CZ_RC", "cz.rc", r"\d{6}/\d{4}"),
    _id("RO_CNP", "ro.cnp", _CNP),
    _id("BG_EGN", "bg.egn", r"\d{10}", "egn", "егн"),
    _id("EE_IK", "ee.ik", r"[1-8]\d{10}", "isikukood", "asmens kodas", "personal code"),
    _id("FI_PERSONAL_IDENTITY_CODE", "fi.hetu", r"\d{6}[-+A-FU-Y]\d{3}[0-9A-Y]"),
    _id("SE_PERSONNUMMER", "se.personnummer", r"(?:\d{2})?\d{6}[-+]\d{4}"),
    _id("NO_FODSELSNUMMER", "no.fodselsnummer", r"\d{6} ?\d{5}"),
    _id("PT_NIF", "pt.nif", r"\d{3} ?\d{3} ?\d{3}", "nif", "contribuinte"),
    _id("HR_OIB", "hr.oib", r"\d{11}", "oib"),
    _id("TR_KIMLIK", "tr.tckimlik", r"[1-9]\d{10}", "kimlik", "tckn"),
    _id("ZA_ID", "za.idnr", r"\d{6} ?\d{4} ?[01]\d{2}", "id", "identity", "identiteit"),
    _id("BR_CPF", "br.cpf", r"\d{3}\.\d{3}\.\d{3}-\d{2}|\d{9}-?\d{2}"),
    _id("KR_RRN", "kr.rrn", r"\d{6}-\d{7}"),
)  # fmt: skip
"""The numbers that are known; US social security numbers have no check digit and are among `patterns`."""


@dataclass(frozen=True)
class NationalIds:
    """A detector of the identity numbers of `countries` (ISO 3166; default: of all that are known).

    Raises `ConfigError` for a country without one.
    """

    countries: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse countries of which no number is known."""
        known = {one.country for one in NATIONAL_IDS}
        for country in self.countries or ():
            if country.upper() not in known:
                message = f"No identity number with a check digit is known for the country '{country}'."
                raise ConfigError(message, did_you_mean(country.upper(), known))

    @cached_property
    def chosen(self) -> Sequence[NationalId]:
        """The numbers that are looked for."""
        wanted = None if self.countries is None else {country.upper() for country in self.countries}
        return [one for one in NATIONAL_IDS if wanted is None or one.country in wanted]

    def __call__(self, text: str) -> Iterator[Span]:
        """The identity numbers in `text`."""
        if sum(character.isdigit() for character in text) < 7:
            return
        for one in self.chosen:
            for found in one.pattern.finditer(text):
                if one.words and not one.near.search(text, max(0, found.start() - _NEAR), found.start()):
                    continue
                if _checker(one.module).is_valid(found[0]):
                    yield Span(*found.span(), one.kind, one.score)


@cache
def _checker(module: str) -> Any:
    return import_module(module)
