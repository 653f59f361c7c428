from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from ds_rag.data.dataset import Example, TokenTable
from ds_rag.data.loader import GROUP, BatchOptions, Loader, TrainTokens, deal

PAD = 999


def table(texts: list[list[int]]) -> TokenTable:
    return TokenTable(np.array([t for x in texts for t in x], np.int32), np.cumsum([len(x) for x in texts]))


def made(rows: int, seed: int = 0):
    """Rows with 1 to 3 of `rows` passages each, texts of 1 to 40 tokens, whose first token names the text."""
    rng = np.random.default_rng(seed)
    texts = [[n] + [7] * int(rng.integers(0, 40)) for n in range(rows)]
    examples = []
    for n in range(rows):
        own = tuple(dict.fromkeys(rng.integers(0, rows, rng.integers(1, 4)).tolist()))
        split = int(rng.integers(0, len(own) + 1))
        examples.append(Example(f"q{n}", ("a",), own[:split], own[split:]))
    tokens = TrainTokens(*(table([[k * 1000 + t[0], *t[1:]] for t in texts]) for k in range(5)))
    return examples, tokens


def loader(rows: int = 50, batch: int = 4, accumulation: int = 1, rank: int = 0, world: int = 1, seed: int = 0):
    return Loader(*made(rows), BatchOptions(batch, accumulation, rank, world, seed, PAD))


def rows_seen(of: Loader, steps: int) -> list[int]:
    return [r for step in range(steps) for r in of.rows_of(step)]


@pytest.mark.parametrize(("rows", "batch"), [(50, 4), (64, 4), (7, 4), (3, 8), (1000, 8), (129, 64)])
def test_every_row_is_seen_equally_often(rows, batch):
    of = loader(rows, batch)
    for epochs in (1, 2, 5):
        steps = -(-rows * epochs // batch)
        seen = Counter(rows_seen(of, steps)[: rows * epochs])
        assert seen == Counter({r: epochs for r in range(rows)})
    assert of.steps_per_epoch == rows / batch


@pytest.mark.parametrize("rows", [20, 50, 64, 130])
def test_a_row_does_not_meet_itself_in_a_batch_of_one_epoch(rows):
    """In-batch negatives would be the row's own passages."""
    of, batch = loader(rows, 4), 4
    for step in range(3 * rows // batch):
        within = divmod(step * batch, rows)[0] == divmod(step * batch + batch - 1, rows)[0]
        if within:
            assert len(set(of.rows_of(step))) == batch


def test_epochs_differ_and_the_seed_decides():
    of = loader(64, 4)
    first, second = rows_seen(of, 16), [r for step in range(16, 32) for r in of.rows_of(step)]
    assert first != second
    assert first == rows_seen(loader(64, 4), 16)
    assert first != rows_seen(loader(64, 4, seed=1), 16)


def test_a_step_does_not_depend_on_the_steps_before():
    """A resumed run starts in the middle."""
    walked = loader(50, 4)
    in_order = [walked.rows_of(step) for step in range(40)]
    for step in (39, 0, 13, 12, 25):
        assert loader(50, 4).rows_of(step) == in_order[step]
        assert walked.rows_of(step) == in_order[step]


def test_two_ranks_see_what_one_sees_in_two_micro_batches():
    for step in range(30):
        one = [b.rows for b in loader(accumulation=4).micro_batches(step)]
        two = [loader(accumulation=2, rank=r, world=2).micro_batches(step) for r in (0, 1)]
        assert one == [part.rows for pair in zip(*two, strict=True) for part in pair]
        assert [r for rows in one for r in rows] == loader(batch=16).rows_of(step)


def padding(of: Loader, batches: list[list[int]]) -> int:
    """Padded positions of the query tokens."""
    lengths = of.tokens.queries.lengths
    return sum(int(len(b) * lengths[b].max() - lengths[b].sum()) for b in batches)


def test_length_groups_pad_less_than_chance():
    of = loader(2000, 8)
    of.lengths = of.tokens.queries.lengths
    ours = [of.rows_of(step) for step in range(250)]
    random = np.random.default_rng(5).permutation(2000).reshape(250, 8)
    assert padding(of, ours) < 0.3 * padding(of, random.tolist())
    means = [of.lengths[b].mean() for b in ours[:GROUP]]
    assert sorted(means) not in (means, means[::-1]), "lengths must not come in order"


def test_length_groups_hold_where_epochs_end_within_a_batch():
    of = loader(1003, 8)
    of.lengths = of.tokens.queries.lengths
    later = [of.rows_of(step) for step in range(376, 626)]  # epochs 4 and 5
    random = np.random.default_rng(5).integers(0, 1003, (250, 8))
    assert padding(of, later) < 0.35 * padding(of, random.tolist())


def test_a_batch_holds_its_rows_texts():
    of = loader()
    for step in range(10):
        (batch,) = of.micro_batches(step)
        assert batch.rows == of.rows_of(step)
        pool = batch.passages.ids_BT[:, 0] - 1000
        assert len(set(pool.tolist())) == len(pool), "every passage once"
        for b, r in enumerate(batch.rows):
            example, length = of.rows[r], len(of.tokens.queries[r])
            assert batch.queries.ids_BT[b, :length].tolist() == of.tokens.queries[r].tolist()
            assert (batch.queries.ids_BT[b, length:] == PAD).all()
            assert batch.queries.mask_BT[b].tolist() == [1] * length + [0] * (len(batch.queries.mask_BT[b]) - length)
            assert set(pool[batch.own_BN[b]].tolist()) == set(example.own)
            assert set(pool[batch.positive_BN[b]].tolist()) == set(example.positives)
            assert (batch.query_ids[b][0], batch.answer_ids[b][0]) == (2000 + r, 4000 + r)
        assert [x[0] - 3000 for x in batch.passage_ids] == pool.tolist()
        assert batch.queries.ids_BT.dtype == torch.int64
        assert batch.passages.mask_BT.sum(1).max() == batch.passages.mask_BT.shape[1], "no wider than the longest"


def test_a_passage_of_two_rows_is_one_column_and_nobodys_negative():
    rows = [Example("q0", ("a",), (5,), (3,)), Example("q1", ("b",), (3,), (5, 6))]
    _, tokens = made(10)
    batch = Loader(rows, tokens, BatchOptions(2, 1, 0, 1, 0, PAD)).collate([0, 1])
    assert batch.passages.ids_BT[:, 0].tolist() == [1005, 1003, 1006]
    assert batch.own_BN.tolist() == [[True, True, False], [True, True, True]]
    assert batch.positive_BN.tolist() == [[True, False, False], [False, True, False]]


def test_without_a_generator():
    rows, tokens = made(10)
    batch = Loader(rows, TrainTokens(tokens.queries, tokens.passages), BatchOptions(2, 1, 0, 1, 0, PAD)).collate([1, 2])
    assert (batch.query_ids, batch.passage_ids, batch.answer_ids) == ([], [], [])


def test_answers_are_masked_by_position():
    rows, tokens = made(10)
    batch = Loader(rows, tokens, BatchOptions(3, 1, 0, 1, 0, PAD)).collate([0, 1, 2])
    lengths = [len(a) for a in batch.answer_ids]
    assert batch.answer_mask_BT.sum(1).tolist() == lengths
    assert batch.answer_mask_BT.shape == (3, max(lengths))
    assert batch.to("cpu").answer_mask_BT.equal(batch.answer_mask_BT)


def shared(rank: int, world: int, batch: int = 4, accumulation: int = 2, rows: int = 50) -> Loader:
    return Loader(*made(rows), BatchOptions(batch, accumulation, rank, world, 0, PAD, shared_pool=True))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_pool_of_the_world_is_the_joined_batch_and_every_text_has_one_rank(world):
    for step in range(10):
        joined = loader(batch=4 * world, accumulation=2).micro_batches(step)
        of_ranks = [shared(rank, world).micro_batches(step) for rank in range(world)]
        for m, whole in enumerate(joined):
            parts = [batches[m] for batches in of_ranks]
            for rank, part in enumerate(parts):
                assert part.rows == whole.rows and part.copies == world
                assert torch.equal(part.own_BN, whole.own_BN) and torch.equal(part.positive_BN, whole.positive_BN)
                for a, b in zip(part.passage_ids, whole.passage_ids, strict=True):
                    assert np.array_equal(a, b)
                if world > 1:
                    own = part.shares[rank]
                    assert part.queries.ids_BT[:, 0].tolist() == whole.queries.ids_BT[own.rows, 0].tolist()
                    assert part.passages.ids_BT[:, 0].tolist() == whole.passages.ids_BT[own.columns, 0].tolist()
            if world > 1:
                assert all(part.shares == parts[0].shares for part in parts)
                for side, count in (("rows", len(whole.rows)), ("columns", whole.own_BN.shape[1])):
                    dealt = [n for share in parts[0].shares for n in getattr(share, side)]
                    assert sorted(dealt) == list(range(count))


def test_a_rank_without_a_passage_embeds_one_in_vain():
    examples = [Example(f"q{n}", ("a",), (0,), ()) for n in range(6)]
    tokens = TrainTokens(*(table([[n, 7] for n in range(6)]) for _ in range(5)))
    of = [Loader(examples, tokens, BatchOptions(2, 1, rank, 3, 0, PAD, True)) for rank in range(3)]
    batches = [loader.micro_batches(0)[0] for loader in of]
    assert [share.columns for share in batches[0].shares] == [[0], [], []]
    assert all(len(batch.passages.ids_BT) == 1 for batch in batches)


def test_deal_evens_out_lengths():
    lengths = [9, 1, 8, 2, 7, 3, 6, 4]
    hands = deal(lengths, 3)
    totals = [sum(lengths[n] for n in hand) for hand in hands]
    assert sorted(n for hand in hands for n in hand) == list(range(8)) and max(totals) - min(totals) <= 2


ROWS = [
    Example("q0", ("a",), (5,), (3, 8), (), (8,)),  # 3 is unlabelled, 8 a labelled negative
    Example("q1", ("b",), (), (6,)),
    Example("q2", ("c",), (), ()),  # a query and an answer alone
]
FOUND = np.array([[9, 5, 3], [6, 1, -1], [4, 5, 0]])


def offered(keep_own: bool, found: np.ndarray | None = FOUND, rank: int = 0, world: int = 1) -> Loader:
    of = Loader(ROWS, made(10)[1], BatchOptions(2, 1, rank, world, 0, PAD, world > 1, keep_own))
    of.offer(found)
    return of


@pytest.mark.parametrize(
    ("keep_own", "wanted"),
    [(False, [(5, 8, 9, 3), (6, 1), (4, 5, 0)]), (True, [(5, 3, 8, 9), (6, 1), (4, 5, 0)])],
    ids=["index", "both"],
)
def test_rows_bring_what_the_index_found_for_them(keep_own, wanted):
    of = offered(keep_own)
    assert [of.passages_of(r) for r in range(3)] == wanted
    batch = of.collate([0, 1, 2])
    pool = [n - 1000 for n in batch.passages.ids_BT[:, 0].tolist()]
    assert pool == list(dict.fromkeys(p for passages in wanted for p in passages))
    for n, passages in enumerate(wanted):
        assert {pool[c] for c in batch.own_BN[n].nonzero()[:, 0].tolist()} == set(passages)
        assert {pool[c] for c in batch.positive_BN[n].nonzero()[:, 0].tolist()} == set(ROWS[n].positives)
    assert [x[0] - 3000 for x in batch.passage_ids] == pool


def test_an_unlabelled_candidate_is_replaced_and_labels_stay():
    """The ways differ: 3 stays of its own accord with `both` alone, where the index did not find it."""
    elsewhere = np.array([[9, 5, 2], [1, 0, -1], [4, 5, 0]])
    index, both = offered(False, elsewhere), offered(True, elsewhere)
    assert index.passages_of(0) == (5, 8, 9, 2) and both.passages_of(0) == (5, 3, 8, 9, 2)
    assert index.passages_of(1) == (1, 0) and both.passages_of(1) == (6, 1, 0)


def test_without_an_offer_rows_bring_their_own():
    for keep_own in (False, True):
        of = offered(keep_own)
        of.offer(None)
        assert [of.passages_of(r) for r in range(3)] == [row.own for row in ROWS]


def test_the_order_of_rows_does_not_depend_on_the_offer():
    examples, tokens = made(50)
    plain, of = (Loader(examples, tokens, BatchOptions(4, 1, 0, 1, 0, PAD, keep_own=False)) for _ in range(2))
    of.offer(np.zeros((50, 1), np.int64))
    assert [of.rows_of(step) for step in range(20)] == [plain.rows_of(step) for step in range(20)]


def test_ranks_of_a_common_pool_share_what_was_found():
    ranks = [offered(False, rank=r, world=2).collate_shard([0, 1, 2]) for r in range(2)]
    alone = offered(False).collate([0, 1, 2])
    for batch in ranks:
        assert torch.equal(batch.own_BN, alone.own_BN) and torch.equal(batch.positive_BN, alone.positive_BN)
    dealt = [c for share in ranks[0].shares for c in share.columns]
    assert sorted(dealt) == list(range(alone.own_BN.shape[1]))


def test_a_rows_length_is_its_query_and_the_mean_of_its_passages():
    """With queries of one length, it is the passages that say which rows lie together."""
    sizes = np.random.default_rng(3).permutation(64) + 1
    queries, passages = table([[1, 2]] * 64), table([[7] * int(n) for n in sizes])
    rows = [Example(f"q{n}", ("a",), (n,), ((n + 1) % 64,)) for n in range(63)] + [Example("alone", ("a",), (), ())]
    of = Loader(rows, TrainTokens(queries, passages), BatchOptions(4, 1, 0, 1, 0, PAD))
    wanted = [2 + (int(sizes[n]) + int(sizes[n + 1])) // 2 for n in range(63)]
    assert of.lengths.tolist() == [*wanted, 2]
    single = [Example(f"q{n}", ("a",), (n,), ()) for n in range(64)]
    of = Loader(single, TrainTokens(queries, passages), BatchOptions(4, 1, 0, 1, 0, PAD))
    for step in range(16):
        lengths = sorted(int(sizes[r]) for r in of.rows_of(step))
        assert lengths[-1] - lengths[0] == 3, "neighbours in length"
