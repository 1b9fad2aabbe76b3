"""The key-value cache's bookkeeping: which block belongs to whom, and which ones hold a known beginning of a text.

Pure: it knows block numbers and token ids, no tensors. A sequence holds its blocks by reference count, so sequences
that begin alike share the blocks of their common beginning. A block that is full is remembered under what it holds and
what comes before it; once nobody holds it, it stays findable until its room is needed, the longest unused first.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence as Run
from dataclasses import dataclass, field

BLOCK_TOKENS = 32
"""Tokens of one block: small enough to share most of a common prompt, large enough to read at full speed."""

_Key = tuple[int, tuple[int, ...]]
"""Serial number of the text before the block, and the block's own tokens. Exact: there is no hash to collide."""


@dataclass(slots=True)
class Blocks:
    """The blocks of one sequence. Token i lies in block `numbers[i // BLOCK_TOKENS]`."""

    numbers: list[int]
    root: int
    """Stands for the weights that computed it: prefixes are shared under one root only."""
    known: list[int] = field(default_factory=list)
    """Serial numbers of the leading blocks that are findable by others."""


class BlockPool:
    """`size` blocks of BLOCK_TOKENS tokens each."""

    def __init__(self, size: int, sharing: bool = True) -> None:
        """Without `sharing` nothing is ever found again."""
        self.size, self._sharing = size, sharing
        self._free = deque(range(size))
        self._holders = [0] * size
        self._found: dict[_Key, tuple[int, int]] = {}
        self._keys: dict[int, _Key] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()
        self._serials = 0

    @property
    def available(self) -> int:
        """Blocks that can be taken now: empty ones, and ones that hold only what nobody uses."""
        return len(self._free) + len(self._unused)

    @staticmethod
    def needed(tokens: int) -> int:
        """Blocks that so many tokens take."""
        return -(-tokens // BLOCK_TOKENS)

    def new_root(self) -> int:
        """A number for weights that share no prefix with any other."""
        self._serials += 1
        return self._serials

    def take(self, tokens: int, root: int, token_ids: Run[int] = ()) -> Blocks | None:
        """Room for `tokens` tokens, what is known of `token_ids` already in it; None while there is not enough."""
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
        """The sequence is over. Its end is forgotten before its beginning, which more texts share."""
        for number in reversed(blocks.numbers):
            self._release(number)
        blocks.numbers.clear()

    def skip(self, blocks: Blocks, token_ids: Run[int], computed: int) -> int:
        """How far the tokens are known by now; `computed` of them are. Found blocks take the place of empty ones.

        The last token is never skipped: what follows it has still to be computed.
        """
        if computed != len(blocks.known) * BLOCK_TOKENS:
            return computed  # Amid a block, or before one that holds nothing yet.
        while hit := self._next_known(blocks, token_ids):
            self._hold(hit[0])
            place = len(blocks.known)
            self._release(blocks.numbers[place])
            blocks.numbers[place] = hit[0]
            blocks.known.append(hit[1])
        return len(blocks.known) * BLOCK_TOKENS

    def remember(self, blocks: Blocks, token_ids: Run[int], computed: int) -> None:
        """Make the full blocks among the first `computed` tokens findable."""
        while self._sharing and (start := len(blocks.known) * BLOCK_TOKENS) + BLOCK_TOKENS <= computed:
            key = self._key(blocks, token_ids, start)
            if key not in self._found:
                self._serials += 1
                number = blocks.numbers[len(blocks.known)]
                self._found[key], self._keys[number] = (number, self._serials), key
            blocks.known.append(self._found[key][1])

    def _next_known(self, blocks: Blocks, token_ids: Run[int]) -> tuple[int, int] | None:
        """Number and serial number of the block that continues `blocks.known`."""
        start = len(blocks.known) * BLOCK_TOKENS
        if not self._sharing or start + BLOCK_TOKENS >= len(token_ids):
            return None
        return self._found.get(self._key(blocks, token_ids, start))

    def _key(self, blocks: Blocks, token_ids: Run[int], start: int) -> _Key:
        before = blocks.known[-1] if blocks.known else blocks.root
        return before, tuple(token_ids[start : start + BLOCK_TOKENS])

    def _take_one(self) -> int:
        if self._free:
            number = self._free.popleft()
        else:
            number, _ = self._unused.popitem(last=False)
            del self._found[self._keys.pop(number)]
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
