"""Bookkeeping of the KV cache: which block belongs to which sequence,
and which blocks hold a known prefix. Pure.

The cache is divided into blocks of equal size, as memory is into pages (PagedAttention, vLLM,
2023): a sequence takes blocks as it grows, and nothing is lost to fragmentation. Sequences with the
same prefix share its blocks by reference count. A full block is indexed by its tokens and the block
before it, which makes a tree of prefixes (prefix caching, as in SGLang's RadixAttention). When no
sequence holds it any more it stays in the index until its memory is needed; the least recently used
block goes first. This module knows block numbers and token ids, no tensors.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence as Run
from dataclasses import dataclass, field

BLOCK_TOKENS = 32
"""Tokens per block: small enough to share most of a common prompt,
large enough to be read at full speed."""

_Key = tuple[int, tuple[int, ...]]
"""Serial number of the prefix before the block, and the block's own tokens.
Exact, so that no hashes can collide."""


@dataclass(slots=True)
class Blocks:
    """The blocks of one sequence. Token i lies in block `numbers[i // BLOCK_TOKENS]`."""

    numbers: list[int]
    root: int
    """Number of the weights that computed the blocks: prefixes are shared under one root only."""
    known: list[int] = field(default_factory=list)
    """Serial numbers of the leading blocks that are in the index."""


class BlockPool:
    """`size` blocks of BLOCK_TOKENS tokens each."""

    def __init__(self, size: int, sharing: bool = True) -> None:
        """Without `sharing` no block is indexed."""
        self.size = size
        self._sharing = sharing
        self._free = deque(range(size))
        """Blocks that hold nothing."""
        self._holders = [0] * size
        """Reference count of each block."""
        self._index: dict[_Key, tuple[int, int]] = {}
        """Block number and serial number of each known prefix."""
        self._keys: dict[int, _Key] = {}
        """Key of each indexed block."""
        self._unused: OrderedDict[int, None] = OrderedDict()
        """Indexed blocks that no sequence holds, the least recently used first."""
        self._serials = 0

    @property
    def available(self) -> int:
        """Number of blocks that can be taken now:
        free ones, and indexed ones that no sequence holds."""
        return len(self._free) + len(self._unused)

    @staticmethod
    def needed(tokens: int) -> int:
        """Number of blocks for so many tokens."""
        return -(-tokens // BLOCK_TOKENS)

    def new_root(self) -> int:
        """A root for weights that share no prefix with any others."""
        self._serials += 1
        return self._serials

    def take(self, tokens: int, root: int, token_ids: Run[int] = ()) -> Blocks | None:
        """Blocks for `tokens` tokens, of which the known prefix of `token_ids` is computed already;
        None if too few."""
        blocks = Blocks([], root)
        while hit := self._next_known(blocks, token_ids):
            self._hold(hit[0])
            blocks.numbers.append(hit[0])
            blocks.known.append(hit[1])
        missing = self.needed(tokens) - len(blocks.numbers)
        if missing > self.available:
            self.give_back(blocks)
            return None
        blocks.numbers += [self._take_one() for _ in range(missing)]
        return blocks

    def give_back(self, blocks: Blocks) -> None:
        """Release the blocks of a finished sequence, its end first:
        more texts share its beginning."""
        for number in reversed(blocks.numbers):
            self._release(number)
        blocks.numbers.clear()

    def skip(self, blocks: Blocks, token_ids: Run[int], computed: int) -> int:
        """Skip tokens that another sequence has computed meanwhile;
        returns how many are computed, `computed` so far.

        Indexed blocks take the place of the sequence's own. The last token is never skipped: the
        model has to compute it to predict the next.
        """
        if computed != len(blocks.known) * BLOCK_TOKENS:
            return computed  # In the middle of a block, or before one that is not full yet.
        while hit := self._next_known(blocks, token_ids):
            self._hold(hit[0])
            place = len(blocks.known)
            self._release(blocks.numbers[place])
            blocks.numbers[place] = hit[0]
            blocks.known.append(hit[1])
        return len(blocks.known) * BLOCK_TOKENS

    def remember(self, blocks: Blocks, token_ids: Run[int], computed: int) -> None:
        """Put the full blocks among the first `computed` tokens into the index."""
        while (
            self._sharing and (start := len(blocks.known) * BLOCK_TOKENS) + BLOCK_TOKENS <= computed
        ):
            key = self._key(blocks, token_ids, start)
            if key not in self._index:
                self._serials += 1
                number = blocks.numbers[len(blocks.known)]
                self._index[key] = (number, self._serials)
                self._keys[number] = key
            blocks.known.append(self._index[key][1])

    def _next_known(self, blocks: Blocks, token_ids: Run[int]) -> tuple[int, int] | None:
        """Number and serial number of the indexed block that continues `blocks.known`."""
        start = len(blocks.known) * BLOCK_TOKENS
        if not self._sharing or start + BLOCK_TOKENS >= len(token_ids):
            return None
        return self._index.get(self._key(blocks, token_ids, start))

    def _key(self, blocks: Blocks, token_ids: Run[int], start: int) -> _Key:
        before = blocks.known[-1] if blocks.known else blocks.root
        return before, tuple(token_ids[start : start + BLOCK_TOKENS])

    def _take_one(self) -> int:
        if self._free:
            number = self._free.popleft()
        else:
            number, _ = self._unused.popitem(last=False)
            del self._index[self._keys.pop(number)]
        self._holders[number] = 1
        return number

    def _hold(self, number: int) -> None:
        self._unused.pop(number, None)
        self._holders[number] += 1

    def _release(self, number: int) -> None:
        self._holders[number] -= 1
        if self._holders[number]:
            return
        if number in self._keys:
            self._unused[number] = None
        else:
            self._free.append(number)
