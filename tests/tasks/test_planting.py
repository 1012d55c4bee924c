import numpy as np
import pytest
import torch
from torch import nn

from causalmad.tasks.planting import Exchange, exchanging, head_mask, kept
from causalmad.tasks.tables import Table, draw_new, join


def test_values_come_from_the_source_rows():
    value = torch.arange(12.0).reshape(3, 4)
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[2, 1:3] = True
    got = Exchange("0", "input", torch.tensor([0, 1, 0]), mask)(value)
    assert got.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 1, 2, 11]]


def test_each_row_has_its_own_position():
    value = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[False, False], [True, False]])
    got = Exchange("0", "output", torch.tensor([0, 0]), mask, torch.tensor([2, 0]))(value)
    wanted = value.clone()
    wanted[1, 0, 0] = value[0, 2, 0]
    assert torch.equal(got, wanted)


def test_gradients_reach_the_sources():
    value = torch.ones(2, 2, requires_grad=True)
    mask = torch.tensor([[False, False], [True, True]])
    Exchange("0", "input", torch.tensor([0, 0]), mask)(value)[1].sum().backward()
    assert value.grad.tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize("side", ["input", "output"])
def test_in_a_model_and_only_meanwhile(side):
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    given = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    mask = torch.tensor([[False, False], [True, True]])
    with exchanging(model, [Exchange("0", side, torch.tensor([0, 0]), mask)]), kept(model[0], model[1]) as seen:
        out = model(given)
    assert torch.equal(out[0], out[1])
    assert torch.equal(seen[1], out)
    assert not torch.equal(model(given)[1], out[1])
    assert len(seen) == 2
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_head_mask():
    chosen = torch.tensor([[True, False], [False, True]])
    assert head_mask(chosen, 2).tolist() == [[True, True, False, False], [False, False, True, True]]


def test_tables_never_repeat_a_row():
    def draw(anomalous, rng):
        tokens = rng.integers(0, 3, (len(anomalous), 2))
        return Table(tokens, {"answer": tokens.sum(1)})

    taken: set[bytes] = set()
    table = draw_new(draw, 9, False, np.random.default_rng(0), taken)
    assert len({tuple(row) for row in table.values.tolist()}) == 9
    both = join(table, table[:2])
    assert len(both) == 11
    assert both.answer.tolist()[-2:] == table.answer.tolist()[:2]
    assert table.raw().shape == (9, 6)
