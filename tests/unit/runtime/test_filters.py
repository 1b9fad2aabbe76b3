"""What must not pass, whole and as a stream;
and that no text and no pattern makes the filters slow."""

import json
import random
import time
from typing import Any

import pytest

from harness import config
from llm_runtime import errors
from llm_runtime.api.server import make_server
from llm_runtime.common.aside import in_thread
from llm_runtime.contract import FilterPattern, FiltersConfig, ServerConfig
from llm_runtime.filters import Filters, Mask
from llm_runtime.filters.finder import Finder
from llm_runtime.filters.mask import MAX_WITHHELD, masked
from llm_runtime.request import FinishReason, Sampling, TokenEvent
from unit.runtime.road import Road, job

FINDER = Finder()

SAMPLES = [
    ("mail joe.doe+x@mail.example.co.uk, ok", "mail [EMAIL], ok"),
    ("jörg@müller.de schrieb", "[EMAIL] schrieb"),
    ("call +49 (0)30 1234-567 or (555) 123-4567.", "call [PHONE] or [PHONE]."),
    ("555-123-4567 / 06 12 34 56 78 / +4915112345678", "[PHONE] / [PHONE] / [PHONE]"),
    ("card 4111 1111 1111 1111 12/25", "card [CREDIT_CARD] 12/25"),
    ("5555-5555-5555-4444, 378282246310005", "[CREDIT_CARD], [CREDIT_CARD]"),
    ("no 1234 5555555555554444 x", "no 1234 [CREDIT_CARD] x"),
    ("iban DE89 3704 0044 0532 0130 00 BIC COBADEFF", "iban [IBAN] BIC COBADEFF"),
    ("GB82WEST12345698765432.", "[IBAN]."),
    ("ssn 123-45-6789", "ssn [SSN]"),
    (
        "from 10.0.0.1 to 2001:db8::1 and fe80::1%eth0",
        "from [IP_ADDRESS] to [IP_ADDRESS] and [IP_ADDRESS]%eth0",
    ),
    ("key sk-abcdefghijklmnopqrstuvwx and AKIAIOSFODNN7EXAMPLE", "key [API_KEY] and [API_KEY]"),
    (f"llmk_web_{'x' * 43}", "[API_KEY]"),
    ("eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSMeKKF", "[API_KEY]"),
    (
        "-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc=\n-----END RSA PRIVATE KEY-----\nbye",
        "[API_KEY]\nbye",
    ),
]
INNOCENT = [
    "order 1234567890 of 2024-01-02 at 12:30:45 for 3.14159 EUR, version 1.2.3",
    "card 4111 1111 1111 1112 has a wrong sum, and so has DE88370400440532013000",
    "ssn 000-12-3456 was never issued",
    "std::vector a::b and user @home",
    "sk-short",
]


@pytest.mark.parametrize(("text", "shown"), SAMPLES)
def test_personal_data_is_masked(text: str, shown: str) -> None:
    assert masked(FINDER, text)[0] == shown


@pytest.mark.parametrize("text", INNOCENT)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert masked(FINDER, text) == (text, [])


def streamed(mask: Mask, text: str, sizes: random.Random) -> list[str]:
    out = []
    position = 0
    while position < len(text):
        size = sizes.randint(1, 7)
        out.append(mask.feed(text[position : position + size], last=False))
        position += size
    return [*out, mask.feed("", last=True)]


@pytest.mark.parametrize("seed", range(20))
def test_a_stream_shows_what_the_whole_text_would(seed: int) -> None:
    chance = random.Random(seed)
    texts = [text for text, _ in SAMPLES] + INNOCENT
    text = " ".join(chance.choices(texts, k=10))
    assert "".join(streamed(Mask(FINDER), text, chance)) == masked(FINDER, text)[0]


def test_ordinary_words_are_held_back_until_their_end_only() -> None:
    mask = Mask(FINDER)
    shown = [
        mask.feed(text, last=False)
        for text in ("Hello", " world", ", how", " are 3", " of you?", " ")
    ]
    assert "".join(shown) == "Hello world, how are 3 of you? "
    assert shown[1].startswith("Hello")


def test_what_is_held_back_is_bounded() -> None:
    mask = Mask(FINDER)
    out = "".join(mask.feed("é4" * 50, last=False) for _ in range(200)) + mask.feed("", last=True)
    assert out == "é4" * 10_000
    mask.feed("4" * (2 * MAX_WITHHELD), last=False)
    assert len(mask._withheld) <= MAX_WITHHELD


def test_control_characters_leave_answers() -> None:
    mask = Mask(FINDER)
    assert mask.feed("a\x1b[31mb\x00\tc\r\nd\x9b", last=True) == "a[31mb\tc\r\nd"


def test_events_keep_their_number_and_their_end() -> None:
    mask = Mask(FINDER)
    first = mask.events([TokenEvent(1, "joe@exa"), TokenEvent(2, "mple.com")])
    assert [(event.token_id, event.text) for event in first] == [(1, ""), (2, "")]
    [last] = mask.events([TokenEvent(3, "!", finish_reason=FinishReason.STOP)])
    assert (last.text, last.finish_reason) == ("[EMAIL]!", FinishReason.STOP)


@pytest.mark.parametrize(
    ("regex", "text", "shown"),
    [
        (r"PRJ-\d{4}(?: v\d)?", "see PRJ-1234 v2 now", "see [project] now"),
        (r"(?i)project (?:zeus|hera)", "The Project Zeus plan", "The [project] plan"),
        (r"a(?:b|cd)*e[^x-z]?", "abcdbe! acdex", "[project] [project]x"),
    ],
)
def test_configured_patterns_are_masked_whole_and_streamed(
    regex: str, text: str, shown: str
) -> None:
    finder = Finder((FilterPattern(name="project", regex=regex),))
    assert masked(finder, text) == (shown, ["project"] * shown.count("[project]"))
    for seed in range(10):
        assert "".join(streamed(Mask(finder), text, random.Random(seed))) == shown


@pytest.mark.parametrize(
    ("regex", "why"),
    [
        ("(", "missing"),
        (r"(?=a)b", "look-around"),
        (r"(a)\1", "back-references"),
        ("a*", "empty text"),
        ("a{2000}", ""),
        ("a{4294967295}", "repetition number is too large"),
        ("a{1,99999999999999999999}", "repetition number is too large"),
    ],
)
def test_a_pattern_that_can_not_be_used_is_named_at_start(regex: str, why: str) -> None:
    with pytest.raises(errors.ConfigInvalid, match=f"house-rule.*{why}"):
        Filters(FiltersConfig(patterns=(FilterPattern(name="house-rule", regex=regex),)))


def test_no_pattern_and_no_text_makes_them_slow() -> None:
    finder = Finder((FilterPattern(name="evil", regex="(a+)+b"),))
    for text in (
        "a" * 8000,
        "1 " * 4000,
        "345 " * 2000,
        "1:" * 4000,
        "DE12 " * 1600,
        "a@" * 4000,
        "4" * 8000,
    ):
        began = time.perf_counter()
        masked(finder, text)
        assert time.perf_counter() - began < 0.1


def test_reject_names_the_kinds_and_never_the_values() -> None:
    filters = Filters(FiltersConfig(pii="Reject"))
    with pytest.raises(errors.InvalidRequest) as refused:
        filters.prompts(job("I am joe@example.com, 123-45-6789"))
    assert refused.value.code == "pii_detected"
    assert "EMAIL, SSN" in refused.value.message
    assert "joe" not in refused.value.message


def test_messages_of_all_roles_are_masked_with_all_that_they_carry() -> None:
    filters = Filters(FiltersConfig(pii="Mask"))
    messages = (
        {"role": "system", "content": "ask joe@example.com"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"arguments": '{"to": "joe@example.com"}'}}],
        },
        {"role": "tool", "content": [{"type": "text", "text": "joe@example.com"}]},
    )
    [seen] = filters.prompts(job(messages)).prompts
    assert "joe" not in repr(seen)
    assert repr(seen).count("[EMAIL]") == 3


@pytest.mark.parametrize("pii", ["Mask", "Reject"])
def test_token_ids_can_not_be_checked_and_are_refused(pii: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="token ids"):
        Filters(FiltersConfig.model_validate({"pii": pii})).prompts(job((1, 2, 3)))


def test_log_probabilities_would_show_what_is_masked_and_are_refused() -> None:
    with pytest.raises(errors.InvalidRequest, match="logprobs"):
        Filters(FiltersConfig(output="Mask")).prompts(job(sampling=Sampling(5, logprobs=0)))


def test_filters_that_are_off_touch_nothing() -> None:
    asked = job("joe@example.com")
    filters = Filters(FiltersConfig())
    assert filters.prompts(asked) is asked
    assert filters.masks(3) == []


def test_a_pattern_that_can_not_be_used_ends_the_start_before_the_model_is_loaded() -> None:
    filters = FiltersConfig(patterns=(FilterPattern(name="house-rule", regex="("),))
    settings = config(ServerConfig(filters=filters))
    with pytest.raises(errors.ConfigInvalid, match="house-rule"):
        make_server(settings, in_thread(lambda: pytest.fail("loaded")))


PATTERNS = (FilterPattern(name="secret", regex="project zeus"),)
MAIL = "joe@mail.example"
CARD = 4111111111111111
CALL = {"id": "c", "type": "function", "function": {"name": "pay", "arguments": {}}}
TOOL = {
    "type": "function",
    "function": {"name": "pay", "description": "", "parameters": {"type": "object"}},
}


def tool(**function: Any) -> dict[str, Any]:
    return {**TOOL, "function": {**TOOL["function"], **function}}


def calling(**function: Any) -> dict[str, Any]:
    call = {**CALL, "function": {**CALL["function"], **function}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"tools": (tool(description=f"writes to {MAIL}"),)}, "EMAIL"),
        ({"tools": (tool(parameters={"properties": {"to": {"enum": [MAIL]}}}),)}, "EMAIL"),
        ({"tools": (tool(parameters={"properties": {MAIL: {}}}),)}, "EMAIL"),
        ({"tools": (tool(parameters={"properties": {"n": {"const": CARD}}}),)}, "CREDIT_CARD"),
        ({"prompt": (calling(arguments={"card": CARD}),)}, "CREDIT_CARD"),
        ({"prompt": (calling(arguments={"card": float(CARD)}),)}, "CREDIT_CARD"),
        ({"prompt": (calling(arguments={"type": MAIL}),)}, "EMAIL"),
        ({"prompt": (calling(arguments={MAIL: True}),)}, "EMAIL"),
        ({"prompt": (calling(name=MAIL),)}, "EMAIL"),
        ({"prompt": ({"role": "user", "content": "x", "name": MAIL},)}, "EMAIL"),
        ({"prompt": ({"role": "assistant", "content": "x", "reasoning_content": MAIL},)}, "EMAIL"),
        ({"template_options": {"documents": [{"id": CARD, MAIL: 1}]}}, "EMAIL"),
    ],
)
def test_whatever_a_template_may_write_is_looked_at(fields: dict[str, Any], kind: str) -> None:
    asked = job(**{"prompt": ({"role": "user", "content": "hi"},), **fields})
    seen = Filters(FiltersConfig(pii="Mask")).prompts(asked)
    shown = json.dumps([seen.prompts, seen.tools, dict(seen.template_options)])
    assert f"[{kind}]" in shown
    assert MAIL not in shown
    assert str(CARD) not in shown
    with pytest.raises(errors.InvalidRequest, match=kind):
        Filters(FiltersConfig(pii="Reject")).prompts(asked)


def test_numbers_and_words_that_are_nothing_special_stay_what_they_are() -> None:
    asked = job(
        (
            {"role": "user", "content": "hi"},
            calling(arguments={"n": 7, "x": 0.5, "yes": True, "no": None, "type": "a"}),
        ),
        tools=(
            tool(
                parameters={
                    "type": "object",
                    "properties": {"n": {"type": "integer", "maximum": 10**6}},
                }
            ),
        ),
    )
    assert Filters(FiltersConfig(pii="Mask")).prompts(asked) == asked


def test_the_name_of_a_function_can_not_be_masked() -> None:
    with pytest.raises(
        errors.InvalidRequest, match="name of a function holds personal data"
    ) as caught:
        Filters(FiltersConfig(pii="Mask")).prompts(job(tools=(tool(name=str(CARD)),)))
    assert str(CARD) not in caught.value.message


@pytest.mark.parametrize("pii", ["Mask", "Reject"])
async def test_the_prompt_is_looked_at_as_the_model_reads_it(pii: Any) -> None:
    """The template of these tests writes role and content beside each other:
    only together are they an address."""
    settings = config(
        ServerConfig(filters=FiltersConfig(pii=pii, patterns=PATTERNS)),
        system_prompt="ask help@us.example",
    )
    road = Road(settings=settings)
    apart = ({"role": "user", "content": "project"}, {"role": "zeus", "content": "is late"})
    with pytest.raises(errors.InvalidRequest, match="secret"):
        await road.pipeline.start(job(apart))
    road.assert_nothing_is_held()
    await road.answer(({"role": "user", "content": "what the server itself says passes"},))
