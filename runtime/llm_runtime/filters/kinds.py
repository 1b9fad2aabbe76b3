"""The kinds of personal data: a pattern for each,
and checksums that tell, say, a card number from any other number.

All patterns run on RE2, in time linear in the text.
The `check` of a candidate also sees the text around it.
"""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass

Span = tuple[int, int]
Check = Callable[[bytes, int, int], list[Span]]
"""(text, start and end of a candidate) → the parts of it that are real matches."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of personal data. A match is replaced by its `name`, as `[EMAIL]`."""

    name: str
    regex: str
    check: Check | None = None
    needs: bytes = b""
    """A match contains at least one of these bytes, a cheap test before the pattern;
    empty if there is none."""


DIGITS = b"0123456789"
LETTER = "A-Za-z\u0080-\U0010ffff"
WORD = LETTER + "0-9"

_TOKENS = (
    r"sk-[A-Za-z0-9_-]{20,}",  # OpenAI, Anthropic and their like
    r"[rs]k_(?:live|test)_[A-Za-z0-9]{16,}",  # Stripe
    r"gh[opsur]_[A-Za-z0-9]{36,}",
    r"github_pat_[A-Za-z0-9_]{22,}",
    r"glpat-[A-Za-z0-9_-]{20,}",
    r"xox[abeoprs]-[A-Za-z0-9-]{10,}",  # Slack
    r"(?:AKIA|ASIA)[A-Z0-9]{16}",  # AWS
    r"AIza[A-Za-z0-9_-]{35}",  # Google
    r"hf_[A-Za-z0-9]{30,}",
    r"npm_[A-Za-z0-9]{36}",
    r"pypi-[A-Za-z0-9_-]{50,}",
    r"llmk_[A-Za-z0-9-]{1,64}_[A-Za-z0-9]{43}",
    r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",  # JSON Web Token
)
_PRIVATE_KEY = (
    r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----[A-Za-z0-9+/=\s]+-----END [A-Z ]{0,20}PRIVATE KEY-----"
)

_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_PHONES = (
    r"\+[1-9][0-9]{0,2}(?:[ ./-]?\(?[0-9]{1,5}\)?){2,6}",  # international
    r"\b00[1-9](?:[ ./-]?\(?[0-9]{1,5}\)?){3,6}",
    r"\(0?[0-9]{2,4}\) ?[0-9]{3,4}[ .-][0-9]{3,4}",
    r"\b(?:1[ .-])?[2-9][0-9]{2}[ .-][0-9]{3}[ .-][0-9]{4}",  # North America
    r"\b0[1-9][0-9]{1,3}[ /-][0-9]{3,4}[ -]?[0-9]{3,5}",  # with a trunk 0
    r"\b0[1-9](?:[ .][0-9]{2}){4}",  # France
)

IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL", 19: "MK SI", 20: "AT BA EE KZ LT LU XK", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST", 26: "IS TR", 27: "FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB PL SV",
        29: "BR EG PS QA UA", 30: "JO KW MU", 31: "MT SC", 32: "LC",
    }.items()
    for country in countries.split()
}  # fmt: skip
"""Characters of an account number by country, from the IBAN registry."""
SPACE = ord(" ")

_GROUP = re.compile(rb"[0-9]+")
_DOUBLED = bytes.maketrans(b"0123456789", b"0246813579")
MAX_GROUPS = 6


def _luhn(digits: bytes) -> bool:
    return (
        sum(digits[-1::-2]) + sum(digits[-2::-2].translate(_DOUBLED)) - 48 * len(digits)
    ) % 10 == 0


def _cards(text: bytes, start: int, end: int) -> list[Span]:
    """Find card numbers between other numbers:
    windows of whole groups with a valid Luhn checksum, longest first."""
    groups = [match.span() for match in _GROUP.finditer(text, start, end)]
    found = list[Span]()
    first = 0
    while first < len(groups):
        last = _card(text, groups, first)
        if last is not None:
            found.append((groups[first][0], groups[last][1]))
        first = first + 1 if last is None else last + 1
    return found


def _card(text: bytes, groups: list[Span], first: int) -> int | None:
    """The last group of the card number that begins with group `first`."""
    begin = groups[first][0]
    if text[begin] not in b"23456" or text[begin - 1 : begin] == b"+":
        return None
    for last in range(min(len(groups), first + MAX_GROUPS) - 1, first - 1, -1):
        digits = b"".join([text[a:b] for a, b in groups[first : last + 1]])
        if 13 <= len(digits) <= 19 and _luhn(digits):
            return last
    return None


def _iban(text: bytes, start: int, end: int) -> list[Span]:
    """Check the ISO 7064 checksum (mod 97 = 1).
    The length cuts off text that looks like one more group."""
    length = IBAN_LENGTHS[text[start : start + 2].decode()]
    stop = start
    while length and stop < end:
        length -= text[stop] != SPACE
        stop += 1
    compact = text[start:stop].replace(b" ", b"")
    turned = compact[4:] + compact[:4]
    good = not length and int("".join([str(int(chr(letter), 36)) for letter in turned])) % 97 == 1
    return [(start, stop)] if good else []


def _ssn(text: bytes, start: int, end: int) -> list[Span]:
    area, group, serial = text[start:end].split(b"-")
    never_issued = (
        area in (b"000", b"666") or area[:1] == b"9" or group == b"00" or serial == b"0000"
    )
    return [] if never_issued else [(start, end)]


def _address(text: bytes, start: int, end: int) -> list[Span]:
    if text[start:end].endswith(b":") and not text[start:end].endswith(b"::"):
        end -= 1
    candidate = text[start:end].decode()
    # Not an address: `a::b` is C++, `12:30:45` a time.
    if not any(letter.isdigit() for letter in candidate) or _touches(text, start, end):
        return []
    try:
        ipaddress.IPv6Address(candidate)
    except ValueError:
        return []
    return [(start, end)]


def _phone(text: bytes, start: int, end: int) -> list[Span]:
    digits = sum(48 <= letter <= 57 for letter in text[start:end])
    return [(start, end)] if 7 <= digits <= 15 and not _touches(text, start, end) else []


def _touches(text: bytes, start: int, end: int) -> bool:
    """Whether the candidate is part of a longer word or number."""
    return text[max(0, start - 1) : start].isalnum() or text[end : end + 1].isalnum()


KINDS = (
    Kind("API_KEY", rf"\b(?:{'|'.join(_TOKENS)})|{_PRIVATE_KEY}"),
    Kind(
        "EMAIL",
        rf"[{WORD}][{WORD}._%+'-]{{0,63}}@(?:[{WORD}-]{{1,63}}\.){{1,8}}[{LETTER}]{{2,24}}",
        needs=b"@",
    ),
    Kind(
        "IBAN",
        rf"\b(?:{'|'.join(IBAN_LENGTHS)})[0-9]{{2}}(?: ?[A-Z0-9]{{4}}){{2,7}}(?: ?[A-Z0-9]{{1,3}})?\b",
        _iban,
        DIGITS,
    ),
    Kind("CREDIT_CARD", r"\b[0-9](?:[ -]?[0-9]){12,}\b", _cards, DIGITS),
    Kind("SSN", r"\b[0-9]{3}-[0-9]{2}-[0-9]{4}\b", _ssn, DIGITS),
    Kind("IP_ADDRESS", rf"\b(?:{_OCTET}\.){{3}}{_OCTET}\b", needs=b"."),
    Kind(
        "IP_ADDRESS",
        r"[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?:\.[0-9]{1,3}){0,3}",
        _address,
        b":",
    ),
    Kind("PHONE", "|".join(_PHONES), _phone, DIGITS),
)
