"""Types of the native extension (built from the C++ sources beside this file)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pronghorn.types import Accept, Draft

def isas() -> list[str]:
    """Instruction sets that this build has kernels for and this machine can run, worst first."""

def isa() -> str:
    """The instruction set in use: the best of `isas()`, or the one that PRONGHORN_ISA names.

    Raises `UnsupportedError` where PRONGHORN_ISA names a set that is unknown or cannot run here.
    """

def dot(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """Inner product of two contiguous (n,) float32 arrays, accumulated in float32.

    Raises `ValueError` where the lengths differ, and `TypeError` for another dtype or layout.
    """

def draw(logits: npt.NDArray[np.float32], temperature: float, u: float) -> int:
    """A token of logits (n,) with probability softmax(logits / temperature): the one under the point u, in
    [0, 1), of the probabilities side by side. Weights are float32, 2e-6 from exact at most for what is
    within e**-30 of the likeliest. -1 where logits are not finite or the temperature leaves them so."""

def walk(
    logits: npt.NDArray[np.float32],
    n: int,
    tokens: npt.NDArray[np.int32],
    parents: npt.NDArray[np.int32],
    temperature: float,
    seed: int,
    branch: int,
    pos: int,
) -> tuple[list[int], list[int], bool]:
    """Rows of logits (1 + nodes, n_vocab) that a walk through a draft visits, and the token that each draws
    of the first n: at temperature 0 the first of the largest, else as `draw` does with the `uniform` of its
    position, from `pos` on, and purpose 0. It goes on at the first child that holds the token. Whether
    it came to its end: not where nothing can be drawn from a row. Raises `ValueError` where shapes do not
    fit."""

def uniform(seed: int, branch: int, pos: int, purpose: int) -> float:
    """See `pronghorn.rng.uniform`; all from 0 to 2**64 - 1."""

def top(logits: npt.NDArray[np.float32], out: npt.NDArray[np.int32]) -> None:
    """Fill out (rows, n) with the ids of the largest of logits (rows, n_vocab), largest first, ties to the
    lower id, -1 past the end of a small vocabulary. NaN is never chosen."""

def room(n_rows: int, n_bytes: int) -> npt.NDArray[np.uint8]:
    """Zeros (n_rows, n_bytes) in memory as weights lie in it: from the start of a line of the cache, in huge
    pages where the system has them, spread over its memory nodes."""

def pack(
    code: npt.NDArray[np.uint8], scale: npt.NDArray[np.uint8], offset: npt.NDArray[np.uint8],
    over: npt.NDArray[np.uint8], under: npt.NDArray[np.uint8], grid: list[int], table: list[int],
    panels: npt.NDArray[np.uint8],
) -> None:  # fmt: skip
    """Fill panels (n_panels, stride), zeros so far, with codes (n_out, n_in) as `ops.panels` lays them out,
    on several threads. Factors are seen as bytes, (n_out, ..), (0, 0) where the grid has none; grid, table:
    see `Executor.add_codes`."""

def fit(
    kind: int, w: npt.NDArray[Any], weight: npt.NDArray[np.float32], grid: list[int], table: list[int],
    code: npt.NDArray[np.uint8], scale: npt.NDArray[np.uint8], offset: npt.NDArray[np.uint8],
) -> tuple[int, float]:  # fmt: skip
    """Fill code (n_out, n_in), and scale and offset as for `pack`, with the search of `quantize.fit` for w
    (n_out, n_in) of kind 0 to 2 (see `Executor`), on several threads. weight: of each input's squared error,
    empty where all count alike. Gives 0 and 0, or 1 for a NaN or an infinity, or 2 and the magnitude of a
    factor that its dtype does not hold."""

def hang(
    rows: npt.NDArray[np.int32], at: int, n_prompt: int, tokens: npt.NDArray[np.int32],
    parents: npt.NDArray[np.int32],
) -> None:  # fmt: skip
    """Write a draft's rows behind row `at` of a step, its last known token's. rows (6, n): the arrays of
    `types.Rows`, in their order. Raises `ValueError` where there is no room for them."""

def worth(
    at: list[float], price: float, chances: list[float], n_seqs: int, base: int, read: float, most: int,
    margin: float,
) -> tuple[int, float, float]:  # fmt: skip
    """Nodes to run of those with these chances, falling, `most` of them; seconds that a token takes without;
    and what a node's row adds. at, price: of `fit_steps`; base, read: rows of the step without drafts and KV
    rows that they read, for n_seqs sequences; margin: by which a step with drafts must be better. Raises
    `ValueError`."""

def fit_steps(steps: list[tuple[int, int, float]], read: float) -> tuple[list[float], float]:
    """What steps cost, by (rows, KV rows read, seconds) of some: seconds of 1, 2, 4, ... 4096 rows that read
    nothing, and of each row read, by least absolute relative errors. read: that price as it was. Raises
    `ValueError`."""

class Suffixes:
    """All substrings of texts of tokens, and what followed each: a suffix automaton, grown in amortised
    constant time, some 100 bytes a token. A place in it is (state, tokens that led there)."""

    def extend(self, tokens: list[int]) -> None:
        """Append tokens, 0 or above, to the text. Raises `ValueError`."""

    def begin(self) -> None:
        """Another text starts, with which nothing joins."""

    def __len__(self) -> int: ...
    def repeated(self) -> tuple[int, int]:
        """The longest end of the text that has occurred before."""

    def follow(self, place: tuple[int, int], tokens: list[int]) -> tuple[int, int]:
        """Go on from a place; where no substring does, from its longest end that does."""

    def draft(
        self, place: tuple[int, int], most: int, depth: int, least: int, faint: float, match: int
    ) -> tuple[float, npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float64]]:
        """What is likeliest to follow a place of `least` tokens or more, as a tree, best first and parents
        before children: how many of the nodes should stand; tokens, parents (-1: none), and as what share of
        what came after its parent each was seen. No more than `most` nodes, `depth` levels, and none less
        likely than `faint` in all. match: tokens that led to the place, 0 to take shares as they are; else a
        share counts (match + d) / (match + d + 1) of what it is where d drafted tokens lead to it."""

    def likeliest(
        self,
        others: list[Suffixes],
        end: list[int],
        most: int,
        depth: int,
        faint: float,
        longest: int,
        enough: int,
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float64]]:
        """Tokens, parents and scores of the tree of which most nodes should stand: of this text, which goes
        on, and if its repetition is shorter than `enough`, of others, where `end` is looked up. Of a match
        `longest` tokens count."""

class Ngrams:
    """Of every n-gram of a growing text, `longest` tokens down to `shortest`, where it stood last."""

    def __init__(self, longest: int, shortest: int) -> None:
        """From 1 to 64 tokens. Raises `ValueError`."""

    def extend(self, tokens: list[int]) -> None: ...
    def __len__(self) -> int: ...
    def onward(self, n: int) -> npt.NDArray[np.int32]:
        """n tokens that came after the latest earlier occurrence of the longest n-gram that the text ends
        with and that has one; if it is less than n tokens back, they are repeated. Empty where there is
        none."""

    def right(self, n: int) -> int:
        """How many of the last n tokens, 64 at most, `onward` would have told one before they came."""

    def copied(self, n: int) -> tuple[npt.NDArray[np.int32], int]:
        """n tokens that follow the place of the text that is being copied, and how many in a row it had
        right, the n-gram of `longest` by which it was found among them; it is kept until it is wrong. Empty
        where there is none."""

class Odds:
    """How often drafted nodes of a kind stood once their parent did; a kind is a number below 144 times the
    drafters. All raise `ValueError` for what is not there."""

    def __init__(self, n_drafters: int) -> None: ...
    def chance(self, kind: int) -> float: ...
    def note(self, kind: int, stood: bool) -> None: ...

class Forest:
    """Drafts of several drafters for several sequences: a tree for each, in which a node that several propose
    is one node with the best chance of any. Nodes with a chance below 0.02 are left out. All raise
    `ValueError` for what is not there."""

    def __init__(self, odds: Odds) -> None: ...
    def grow(
        self,
        shift: list[float],
        drawn: bool,
        drafts: list[tuple[int, npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float64]]],
        most: int,
    ) -> int:
        """Another tree, of the first `most` nodes of what each drafter proposes: its number, tokens, parents
        and scores. drawn: tokens are sampled."""

    def falling(self) -> list[float]:
        """Chances of all nodes of all trees to stand, their ancestors' included, largest first."""

    def run(self, n: int) -> list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], list[int]] | None]:
        """`draft` of the first n of `falling`, by tree; None for a tree that has none of them."""

    def likely(self, tree: int, by: int) -> list[int]:
        """Nodes that one drafter proposed first and that a trial runs: the likely ones, one in any case."""

    def draft(
        self, tree: int, nodes: list[int]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], list[int]]:
        """Tokens and parents of some nodes, parents first, and their drafters. They are run."""

    def learn(self, tree: int, tokens: list[int]) -> tuple[list[float], list[int], list[int]]:
        """Note which nodes the tokens that came lead to and which not, whether they were run or not. Returns
        for each drafter its shift as it is now, how many nodes that it proposed first were run, and how many
        of those stood."""

    def nodes(self, tree: int) -> list[tuple[int, int, int, float]]:
        """Token, parent, drafter and chance of each node."""

class Price:
    """What something takes on the average, in seconds; 0 as long as nothing is known. The first time, which
    loads and allocates, is no measure, nor are times when somebody else had the processor."""

    seconds: float

    def __init__(self) -> None: ...
    def note(self, seconds: float) -> None: ...

class Mood:
    """What one sequence has taught of each drafter. Lists are copies: to change one, set it.

    shift: log-odds by which its chances are off; gain: what asking it gained lately, in times that a token
    takes; failed: times in a row that this was not worth its time; until: step from which on it is asked
    again. asked: drafters that proposed for the last step; tried: those of them that did not pay so far;
    tree: its place in the forest of that step, -1 where there is nothing to learn. Methods raise `ValueError`
    and `IndexError` for a drafter that is not there."""

    shift: list[float]
    gain: list[float]
    failed: list[int]
    until: list[int]
    tree: int

    def __init__(self, gain: list[float], failed: list[int], until: list[int]) -> None: ...
    @property
    def asked(self) -> list[int]: ...
    @property
    def tried(self) -> list[int]: ...
    def again(self, now: int, cheap: list[bool]) -> Mood:
        """How another sequence begins in step `now`: with what was learned here, but those that are cheap to
        ask are awake, as if they had not failed."""

    def awake(self, now: int) -> list[int]:
        """Who may be asked in this step."""

    def judge(self, d: int, gained: float, most: int, now: int) -> None:
        """Let a drafter whose asking does not pay rest, for `most` steps or a few more. gained: time that its
        nodes saved, less what their rows and asking took."""

    def rests(self, d: int) -> bool:
        """Whether it did not pay of late."""

class Panel:
    """Whom of several drafters it pays to ask, and which of their nodes to run: what all sequences have
    taught.

    clock: steps; purse: seconds that asking those may take that did not pay; steps: seconds of steps in which
    somebody was asked; token, row: seconds that a token takes without drafts, and that a node's row adds. All
    raise `ValueError` for what does not belong together."""

    HOPE: float  # of a token's time, which asking a drafter is thought to gain at first
    RECENT: float  # weight of the last asking
    IDLE: float  # and of one in company whose drafts were not worth running
    MARGIN: float  # by which a step with drafts must be better than one without
    TRIALS: float  # share of the time of steps for drafts that seem not to pay
    clock: int
    purse: float
    steps: float
    token: float
    row: float

    def __init__(self, names: list[str], spend: float, telling: list[int]) -> None:
        """spend: share of the time of steps for asking drafters that did not pay; telling: those that know
        when they would have been right, and where a sequence is alone are not asked at other times."""

    def sleeps(self, n_seqs: int, same: bool) -> bool:
        """A step begins. Whether nobody is asked in it; same: its sequences are those that `wake` saw
        last."""

    def hope(self, mood: Mood, d: int) -> None:
        """One that rests but would have been right of late hopes anew."""

    def goes_on(self, same: bool, depth: int) -> bool:
        """Whether those are asked that were in the step before, since they all pay and nobody else wakes.
        depth: rows that a draft may be deep, the least of the sequences'."""

    def wake(
        self, moods: list[Mood], depths: Sequence[int], own: list[int], step: float
    ) -> list[tuple[int, list[int]]]:
        """Drafters that are asked, and for which sequences: those that pay; and those that did not pay so
        far, of each drafter all together, once what is saved is enough for that. own: tokens of its own that
        a sequence has; step: seconds that the step takes without drafts."""

    def begin(self) -> Mood:
        """Of a new sequence."""

    def choose(
        self,
        moods: list[Mood],
        answers: list[tuple[int, list[int], list[Draft], float]],
        drawn: list[bool],
        nodes: int,
        at: list[float],
        price: float,
        base: int,
        read: float,
        rows: int,
    ) -> list[tuple[int, npt.NDArray[np.int32], npt.NDArray[np.int32], str]] | None:
        """Join what drafters answered, and say what to run: sequences, tokens, parents, and who proposed
        them; None where nobody proposed anything.

        answers: a drafter, the sequences it was asked for, their drafts (none where it passes), seconds that
        it took; drawn: whether a sequence's tokens are sampled; nodes: of one sequence, at most; at, price:
        of `fit_steps`; base, read: rows of the step without drafts, and KV rows that they read; rows: that it
        has room for."""

    def learn(self, moods: list[Mood], drafts: Sequence[Draft], accepts: Sequence[Accept]) -> None:
        """What became of the drafts that were run, and what came instead."""

    def told(self, d: int, seconds: float) -> None:
        """So long it took to tell a drafter what became of a sequence's draft."""

    def judge(self, mood: Mood, run: list[int], stood: list[int], own: float) -> None:
        """Let those of a sequence that were not worth their time rest. run, stood: nodes by the drafter that
        proposed them first, [] where there are none at all; own: seconds that the asking took beside the
        drafters."""

    def affords(self, seconds: float) -> bool:
        """Whether a trial of so many seconds at most is within its share; if so it is booked."""

    def price(self, d: int, first: bool = False) -> Price:
        """Of asking a drafter for a sequence; for the first time, when it has a prompt to read."""

class Probe:
    """What the machine can do at most, with the instruction set in use (`isa()`).

    Holds `n_bytes` of memory, shared out among `n_threads`; it should be far more than the caches hold.
    """

    def __init__(self, n_threads: int, n_bytes: int) -> None: ...
    def read(self, n_threads: int, n_bytes: int) -> float:
        """Bytes a second that so many threads read together of a working set of `n_bytes`; one that caches
        can hold is there already."""

    def peak(self, kind: str, n_threads: int) -> float:
        """Operations a second on registers, a multiply-add being two. kind: "fp32"; "bf16" products of
        pairs into float32; "int8" products of four into 32 bits. 0 where the set has none."""

    @staticmethod
    def round_trip() -> float:
        """Seconds that a cache line takes to another core and back; 0 where the machine is too busy to
        tell."""

class Executor:
    """Packs a model's weights, plans its tape and runs steps; `run.native` is its caller.

    Kinds of matrices: 0 float32, 1 bfloat16, 2 float16 (both as uint16), 3 E4M3 (as uint8) with scales. Kinds
    of stored KV: 0 float32, 1 bfloat16, 2 int8 with scales. Registers, matrices, vectors and tables are
    numbers, in the order in which they were added.
    """

    def __init__(
        self, isa: str, n_threads: int, n_vocab: int, n_layers: int, n_heads: int, n_kv: int,
        head_dim: int, widths: list[int], beside: Executor | None = None,
    ) -> None:  # fmt: skip
        """beside: one whose threads this one uses too. The two run in turns: a call while the other works
        raises `RuntimeError`."""
    def add_matrix(self, kind: int, w: npt.NDArray[Any], scale: npt.NDArray[np.float32]) -> int:
        """Pack a matrix (n_out, n_in), any strides, for products; scale (n_out,), empty without."""

    def add_codes(
        self, panels: npt.NDArray[np.uint8], scale: npt.NDArray[np.float32], n_out: int, n_in: int,
        grid: list[int], table: list[int],
    ) -> int:  # fmt: skip
        """A matrix as `ops.panels` lays it out, kept and read where it lies if that is on a cache line's
        boundary, else copied; scale (n_out,), empty but for groups of a whole row. grid: bits, group,
        centred, scale (0 float16, 1 bfloat16, 2 float32, 3 two), offset (0 none, 1 value, 2 zero, 3 two),
        activations."""

    def set_order(self, matrix: int, order: npt.NDArray[np.int32]) -> None:
        """Column i of a matrix of codes belongs to input order[i]; each input once."""

    def add_rows(self, kind: int, w: npt.NDArray[Any], scale: npt.NDArray[np.float32]) -> int:
        """Keep a contiguous matrix as it is, to be read by rows."""

    def add_shared(self, of: Executor, matrix: int) -> int:
        """A matrix of another executor, which lives on for it; nothing is copied."""

    def add_vector(self, v: npt.NDArray[np.float32]) -> int: ...
    def add_table(self, freq: npt.NDArray[np.float32], half: int, gain: float) -> int:
        """A rotary table; freq (half,), or empty when each step brings frequencies."""

    def add_op(
        self, kind: str, ins: list[int], out: int, mats: list[int], vecs: list[int], ints: list[int],
        floats: list[float],
    ) -> None: ...  # fmt: skip
    def set_zones(
        self, open_kind: int, open_member: int, open_at: list[int], sealed_kind: int,
        sealed_member: int, sealed_at: list[int], codes: list[list[int]], tables: list[list[float]],
        group: list[int], index: list[int],
    ) -> None:  # fmt: skip
        """Bytes of a head's page and offsets of its k, v, ks, vs in both zones; of a sealed zone of kind 3
        what the codes of keys and of values mean: bits, group, offset, channels, turn, levels (0 numbers, 1 a
        table, 2 E4M3), rank, spikes and channels of a page, and tables; the group of each (layer, head) and
        its place there."""

    def set_upon(self, rows: list[int], beside: list[int], n_other: int, block: int) -> None:
        """Where each (layer, head) has its sealed pages of bfloat16 in a block of `block` bytes, if some lie
        on others: rows, and beside them factors (2, 16) and then `n_other` keys and values, 0 for none."""

    def set_select(
        self, sources: list[int], score: int, heads: int, pages: list[int], cover: float,
        keep: int, like: float, n: int, at: list[int], stride: int, block: int, size: int,
        part: int, turn: npt.NDArray[np.float32], book: npt.NDArray[np.float32],
    ) -> None:  # fmt: skip
        """`types.Choice`, by `Selector.sources`. score (0 bounds, 1 dots, 2 labels, 3 keys, 4 codes);
        heads (0 max, 1 sum, 2 vote); pages: read, first, last, span; keep (0 no, 1 else all, 2 else own); n:
        vectors or channels of a page, codes of a row; at: offsets of the fields of a block's first head (lo,
        hi; mean; channel, label, unit; code); stride: from head to head; block: bytes of a block; size: of a
        page's fields. Of codes, for each layer and head: part: turned channels of a book; turn: what turns
        queries, (dim, n * part filled up to 16s); book: (n, part, 256)."""

    @property
    def kept_ints(self) -> int:
        """Integers that a sequence keeps of a choice; 0 where nothing is kept."""

    def chosen(self, row: int, head: int) -> list[int]:
        """Sealed pages that a row's queries of a KV head read in the last step, by the last layer that chose;
        empty where all were read."""

    def finish(self) -> None:
        """Plan. Raises `ValueError` where the tape contradicts itself."""

    def run(
        self, ids: npt.NDArray[np.int32], pos: npt.NDArray[np.int32], span: npt.NDArray[np.int32],
        seq: npt.NDArray[np.int32], parent: npt.NDArray[np.int32], want: npt.NDArray[np.int32],
        kvs: list[Any], freqs: list[npt.NDArray[np.float32]], freq_of: list[npt.NDArray[np.int32]],
        logits: npt.NDArray[np.float32], taps: list[npt.NDArray[np.float32]],
        kept: list[npt.NDArray[np.int32]], seen: list[npt.NDArray[np.uint8]],
    ) -> None:  # fmt: skip
        """One step; writes logits (n_want, n_vocab) and taps. kept: for each sequence `kept_ints` integers,
        zeros at first, or none; or an empty list. seen: for each sequence (n_layers * n_kv, its sealed
        pages or more), where 1 is written for those that attention reads, and 2 stands for those that are not
        in memory: the system is asked for them where a row chooses them; or an empty list. Raises
        `ValueError` for rows out of range, `TypeError` for another dtype, `RuntimeError` while another call
        is at work."""

    def commit(
        self, row: npt.NDArray[np.int32], addr: npt.NDArray[np.uint64], slot: npt.NDArray[np.int32]
    ) -> None:
        """Copy rows of the last step to rows `slot` of the open blocks at `addr`."""

    def look(
        self, kv: Any, layer: int, q: npt.NDArray[np.float32], pos: npt.NDArray[np.int32], scale: float,
        softcap: float, window: int, what: int, out: npt.NDArray[np.float32],
    ) -> None:  # fmt: skip
        """What queries q (n_heads, r, dim) at positions pos (r,) see of a sequence's rows, see
        `kv.look.Look`: fills out (n_heads, n) or (n_heads * r, n) as far as a head has rows. Raises as `run`
        does."""

    def portions(self) -> list[tuple[list[str], list[int]]]:
        """The parts of the plan: names of their ops, numbers of their matrices."""

    def start_profile(self) -> None:
        """Count from now on where steps spend their time."""

    def stop_profile(self) -> list[list[tuple[int, int]]]:
        """For each thread, nanoseconds before the first part and in each part of `portions`, and how many of
        them it waited for others."""

    @property
    def n_threads(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that the attention of the last step read, all layers and heads; pages that
        several rows read together count once."""
