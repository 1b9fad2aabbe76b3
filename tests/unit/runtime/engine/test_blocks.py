"""Block bookkeeping: room is never given twice, and only what is equal is found again."""

import random

from llm_runtime.engine.blocks import BLOCK_TOKENS, BlockPool, Blocks

B = BLOCK_TOKENS
ROOT = -1


def computed(pool: BlockPool, tokens: list[int], root: int = ROOT) -> Blocks:
    """A sequence that has run to the end of `tokens`."""
    blocks = pool.take(len(tokens), root)
    assert blocks
    pool.skip(blocks, tokens, 0)
    pool.remember(blocks, tokens, len(tokens))
    return blocks


def known(pool: BlockPool, tokens: list[int], root: int = ROOT) -> int:
    blocks = pool.take(len(tokens), root, tokens)
    assert blocks
    pool.give_back(blocks)
    return len(blocks.known) * B


def test_blocks_are_counted_by_what_the_tokens_fill() -> None:
    assert [BlockPool.needed(tokens) for tokens in (1, B, B + 1, 3 * B)] == [1, 1, 2, 3]


def test_a_pool_gives_no_more_than_it_has_and_takes_it_back() -> None:
    pool = BlockPool(3)
    first = pool.take(2 * B, ROOT)
    assert first
    assert pool.take(2 * B, ROOT) is None
    pool.give_back(first)
    assert pool.available == 3


def test_a_common_beginning_is_found_in_whole_blocks() -> None:
    pool = BlockPool(16)
    computed(pool, [7] * B + [8] * B + [9] * 5)
    assert known(pool, [7] * B + [8] * B + [1] * 9) == 2 * B
    assert known(pool, [7] * B + [1] * B) == B
    assert known(pool, [8] * B + [7] * B) == 0


def test_the_last_token_is_always_left_to_compute() -> None:
    pool = BlockPool(16)
    computed(pool, [7] * (2 * B))
    assert known(pool, [7] * (2 * B)) == B


def test_shared_blocks_are_the_same_blocks() -> None:
    pool = BlockPool(16)
    first = computed(pool, [7] * B + [8] * 4)
    second = pool.take(B + 9, ROOT)
    assert second
    pool.skip(second, [7] * B + [9] * 9, 0)
    assert second.numbers[0] == first.numbers[0]
    pool.give_back(first)
    assert known(pool, [7] * B + [1] * 2) == B


def test_other_weights_share_nothing() -> None:
    pool = BlockPool(16)
    one = pool.new_root()
    other = pool.new_root()
    computed(pool, [7] * (2 * B), one)
    assert known(pool, [7] * (2 * B), other) == 0


def test_a_beginning_outlives_its_sequence_until_its_room_is_needed() -> None:
    pool = BlockPool(4)
    pool.give_back(computed(pool, [7] * (2 * B)))
    assert known(pool, [7] * (2 * B) + [1]) == 2 * B
    other = pool.take(2 * B, ROOT, [8] * (2 * B))
    assert other, "empty blocks go first"
    pool.give_back(other)
    assert known(pool, [7] * (2 * B) + [1]) == 2 * B
    everything = pool.take(4 * B, ROOT)
    assert everything
    pool.give_back(everything)
    assert known(pool, [7] * (2 * B) + [1]) == 0


def test_the_end_of_an_old_text_goes_before_its_beginning() -> None:
    pool = BlockPool(3)
    pool.give_back(computed(pool, [7] * (3 * B)))
    pool.take(B, ROOT)
    blocks = Blocks([*pool.take(B, 1).numbers, 0, 0], ROOT)  # type: ignore[union-attr]
    assert pool.skip(blocks, [7] * (2 * B), 0) == B


def test_a_sequence_joins_a_beginning_that_another_computes_meanwhile() -> None:
    pool = BlockPool(16)
    tokens = [7] * (4 * B)
    slow = pool.take(4 * B, ROOT)
    assert slow
    assert pool.skip(slow, tokens, 0) == 0
    pool.remember(slow, tokens, B)
    computed(pool, tokens)
    assert pool.skip(slow, tokens, B) == 3 * B


def test_known_blocks_need_no_room() -> None:
    pool = BlockPool(4)
    pool.give_back(computed(pool, [7] * (3 * B)))
    blocks = pool.take(4 * B, ROOT, [7] * (3 * B) + [1])
    assert blocks
    assert len(blocks.known) == 3


def test_room_that_is_refused_leaves_everything_as_it_was() -> None:
    pool = BlockPool(4)
    pool.give_back(computed(pool, [7] * (2 * B)))
    assert pool.take(9 * B, ROOT, [7] * (9 * B)) is None
    assert pool.available == 4
    assert known(pool, [7] * (2 * B) + [1]) == 2 * B


def test_without_sharing_nothing_is_found() -> None:
    pool = BlockPool(16, sharing=False)
    computed(pool, [7] * (2 * B))
    assert known(pool, [7] * (2 * B)) == 0


def test_a_thousand_random_comings_and_goings_lose_and_double_nothing() -> None:
    chance = random.Random(5)
    pool = BlockPool(40)
    held = list[tuple[Blocks, list[int]]]()
    for _ in range(1000):
        tokens = [chance.randrange(2) for _ in range(B)][:1] * B + [
            chance.randrange(3)
        ] * chance.randrange(1, 4 * B)
        blocks = pool.take(len(tokens), ROOT)
        if blocks is None or chance.random() < 0.5:
            if blocks:
                held.append((blocks, tokens))
                pool.remember(blocks, tokens, pool.skip(blocks, tokens, 0))
                pool.remember(blocks, tokens, len(tokens))
            for _ in range(min(len(held), chance.randrange(3))):
                pool.give_back(held.pop(chance.randrange(len(held)))[0])
        else:
            pool.give_back(blocks)
        used = {number for blocks, _ in held for number in blocks.numbers}
        assert pool.available == pool.size - len(used)
    for blocks, _ in held:
        pool.give_back(blocks)
    assert pool.available == pool.size
