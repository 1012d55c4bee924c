"""No column's unit is below a tenth of the largest of its kind."""

from __future__ import annotations

import hypothesis as hyp
import numpy as np
from hypothesis import strategies as st

from causalmad.signatures.base import Column
from causalmad.signatures.floors import with_floors
from causalmad.signatures.scaled import Scales


@hyp.given(st.lists(st.tuples(st.sampled_from(["kl", "margin"]), st.floats(1e-9, 1e3)), min_size=1, max_size=9))
def test_units_are_raised_to_a_tenth_of_the_largest_of_their_kind(pairs):
    columns = tuple(Column(f"{kind} {i}", unit=kind) for i, (kind, _) in enumerate(pairs))
    scales = Scales(columns, np.array([size for _, size in pairs]))
    found = with_floors(scales, lambda column: column.unit)
    assert found.columns == columns
    for (kind, size), raised in zip(pairs, found.sizes, strict=True):
        largest = max(other for name, other in pairs if name == kind)
        assert raised == max(size, 0.1 * largest)
