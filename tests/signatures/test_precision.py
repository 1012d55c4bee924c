"""Models of single and half precision score as the same model in double precision, to a stated part of the largest."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

from causalmad import open_model
from causalmad.signatures import AttributionPatching, EdgeAttribution, ExactAblation, ResamplingProfile
from causalmad.testing.toys import toy

# Of the largest value of a kind: about 100 roundings of single precision, 10 of the two halves.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 0.1}
SPECS = {
    "attribution-patching": AttributionPatching(("heads", "mlps", "positions"), normalise=False, log=False),
    "exact-ablation": ExactAblation("heads", by_position=False),
    "exact-ablation by position": ExactAblation("heads", donors=2),
    "resampling-profile": ResamplingProfile("positions", by="place"),
    "edge-attribution": EdgeAttribution(),
}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("name", SPECS)
def test_scores_agree_with_double_precision(name: str, family: str) -> None:
    case = toy(family, trusted=24, fresh=8)

    def opened(dtype: torch.dtype) -> Any:
        return open_model(deepcopy(case.model).to(dtype))

    fitted = SPECS[name].fit(opened(torch.float64), case.trusted, seed=0)
    exact = fitted.reduced(case.fresh)
    for dtype, tolerance in TOLERANCE.items():
        found = SPECS[name].restore(opened(dtype), fitted.state()).reduced(case.fresh)
        assert found.columns == exact.columns
        for block in dict.fromkeys(column.block for column in found.columns):
            which = [i for i, column in enumerate(found.columns) if column.block == block]
            gap = np.abs(found.values[:, which] - exact.values[:, which]).max()
            assert gap <= tolerance * np.abs(exact.values[:, which]).max(), (dtype, block)
