"""Models, data and surroundings that misbehave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.faults import data, models, surroundings

SLOW = {
    "is_compiled",
    "changes_its_output_shape_under_every_signature",
    "a_long_stream",
    "a_long_stream_of_ids",
    "constant_signatures",
}


def marked(cases: tuple[Callable[[], Any], ...]) -> list[Any]:
    return [pytest.param(case, id=case.__name__, marks=[pytest.mark.slow] * (case.__name__ in SLOW)) for case in cases]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", marked(models.CASES))
def test_models_that_misbehave(case: Callable[[], Any]) -> None:
    case()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", marked(data.CASES))
def test_data_that_misbehaves(case: Callable[[], Any]) -> None:
    case()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", marked(surroundings.CASES))
def test_surroundings_that_misbehave(case: Callable[[], Any]) -> None:
    case()
