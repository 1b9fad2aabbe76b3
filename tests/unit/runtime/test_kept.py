"""What is kept of many tenants: bounded in number and size,
and nobody loses anything to somebody who has more."""

from llm_runtime.cache.answer import Answer, AnswerChoice
from llm_runtime.cache.idempotency import IdempotencyKeys
from llm_runtime.common.kept import Kept
from llm_runtime.contract import SessionsConfig
from llm_runtime.request import FinishReason, TokenEvent
from llm_runtime.sessions import Sessions, conversations
from llm_runtime.sessions.conversations import size_of


def test_who_has_most_loses_its_oldest() -> None:
    kept: Kept[str] = Kept(4, 1000, 60)
    kept.put("quiet", "a", "mine", 1)
    for number in range(100):
        kept.put(f"loud {number}", "b", "theirs", 1)
    assert kept.get("quiet") == "mine"
    assert [key for key, _ in kept.items()] == ["quiet", "loud 97", "loud 98", "loud 99"]


def test_of_its_own_a_tenant_loses_what_it_has_not_used_for_longest() -> None:
    kept: Kept[int] = Kept(2, 1000, 60)
    kept.put("first", "a", 1, 1)
    kept.put("second", "a", 2, 1)
    assert kept.get("first")
    kept.put("third", "a", 3, 1)
    assert (kept.get("first"), kept.get("second"), kept.get("third")) == (1, None, 3)


def test_bytes_count_as_numbers_do() -> None:
    kept: Kept[int] = Kept(100, 100, 60)
    kept.put("small", "a", 1, 10)
    for number in range(10):
        kept.put(f"large {number}", "b", number, 40)
    assert kept.get("small") == 1
    assert len(kept) == 3
    kept.put("larger than all", "c", 0, 101)
    assert (kept.get("larger than all"), kept.get("small")) == (None, 1)


def test_what_is_over_leaves_no_share_behind() -> None:
    now = 0.0
    kept: Kept[int] = Kept(10, 100, 60, lambda: now)
    kept.put("a", "a", 1, 90)
    now = 61.0
    assert (kept.get("a"), len(kept)) == (None, 0)
    kept.put("b", "b", 2, 90)
    assert kept.get("b") == 2


async def test_ten_thousand_sessions_of_one_key_throw_out_nobody_elses() -> None:
    sessions = Sessions(SessionsConfig(max_sessions=50))
    await sessions.append("quiet", "s", [{"role": "user", "content": "remember me"}])
    for number in range(200):
        await sessions.append("loud", str(number), [{"role": "user", "content": "x"}])
    assert await sessions.history("quiet", "s") == [{"role": "user", "content": "remember me"}]


async def test_one_conversation_has_a_bound_in_bytes() -> None:
    sessions = Sessions(SessionsConfig())
    for number in range(100):
        turn = [
            {"role": "user", "content": f"{number} " + "x" * 31_000},
            {"role": "assistant", "content": "yes"},
        ]
        await sessions.append("a", "s", turn)
    kept = await sessions.history("a", "s")
    assert size_of(kept) <= conversations.SESSION_BYTES
    assert kept[0]["role"] == "user"
    assert kept[-2]["content"].startswith("99 ")


async def test_idempotent_answers_of_one_key_throw_out_nobody_elses() -> None:
    keys = IdempotencyKeys(entries=10)
    answer = Answer(
        1, (AnswerChoice((TokenEvent(None, "yes", finish_reason=FinishReason.STOP),), 1),)
    )
    for tenant, name in [("quiet", "k"), *(("loud", str(number)) for number in range(100))]:
        turn = keys.claim(tenant, name, "digest")
        assert not isinstance(turn, Answer)
        turn.keep(answer)
    assert keys.claim("quiet", "k", "digest") == answer
