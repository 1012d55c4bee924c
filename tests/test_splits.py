from collections import Counter

import numpy as np
import torch

from causalmad import Inputs
from causalmad.splits import by_content, folds_of, split, with_copies

ROWS = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
# Ten contents stand twice and one four times; copies differ in their column.
PICKED = [*range(30), *range(10), 0, 0]
INPUTS = Inputs.of(
    ROWS[PICKED],
    ids=[f"i{row}" for row in range(42)],
    columns={"source": np.array([f"s{row % 5}" for row in range(42)])},
)
SHUFFLES = [np.random.default_rng(seed).permutation(42) for seed in range(3)]


def test_the_order_by_content_does_not_depend_on_the_order_of_arrival():
    first = INPUTS[by_content(INPUTS)]
    assert list(first.digests) == sorted(INPUTS.digests) and set(first.ids) == set(INPUTS.ids)
    for shuffle in SHUFFLES:
        came = INPUTS[shuffle]
        again = came[by_content(came)]
        assert again.ids == first.ids and again.columns["source"].tolist() == first.columns["source"].tolist()
        assert torch.equal(again.main, first.main)


def test_the_parts_are_the_same_in_the_same_order_however_the_inputs_come():
    fitting, held = (INPUTS[rows].ids for rows in split(INPUTS, None, 3))
    for shuffle in SHUFFLES:
        came = INPUTS[shuffle]
        assert [came[rows].ids for rows in split(came, None, 3)] == [fitting, held]


def test_one_of_each_content_calibrates_and_no_content_is_on_both_sides():
    for seed in range(20):
        fitting, held = split(INPUTS, None, seed)
        contents = [INPUTS.digests[row] for row in held]
        assert len(set(contents)) == len(contents) == 15
        assert not set(contents) & {INPUTS.digests[row] for row in fitting}
        rows, place = with_copies(INPUTS, held)
        assert sorted([*fitting, *rows]) == list(range(42))
        assert [INPUTS.digests[row] for row in rows] == [contents[k] for k in place]


def test_which_copy_calibrates_is_drawn():
    """A first or a last one would have the columns of one source, where the copies come from several."""
    counts = Counter()
    for seed in range(400):
        counts.update(INPUTS[split(INPUTS, 0.5, seed)[1]].ids)
    four = np.array([counts[f"i{row}"] for row in (0, 30, 40, 41)])
    assert four.sum() > 150 and (abs(four / four.sum() - 1 / 4) < 4 * np.sqrt(3 / 16 / four.sum())).all()


def test_folds_are_those_of_contents():
    fold = dict(zip(INPUTS.digests, folds_of(INPUTS, 3, 0), strict=True))
    for shuffle in SHUFFLES:
        came = INPUTS[shuffle]
        assert [fold[content] for content in came.digests] == folds_of(came, 3, 0).tolist()
