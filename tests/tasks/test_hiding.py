import pytest
import torch

from causalmad.tasks.hiding import MEMORY, SHRINKAGE, MahalanobisPenalty, Moments, squared_distances


def plain(values: torch.Tensor, normal: torch.Tensor, running: Moments, shrinkage: float) -> torch.Tensor:
    """The same distances, with autograd through the inverse."""
    rows = values[normal]
    centre = MEMORY * running.first + (1 - MEMORY) * rows.mean(0)
    second = MEMORY * running.second + (1 - MEMORY) * rows.T @ rows / len(rows)
    covariance = second - torch.outer(centre, centre)
    shrunk = (1 - shrinkage) * covariance + shrinkage * covariance.diagonal().diag()
    off = values - centre
    return (off * torch.linalg.solve(shrunk, off.T).T).sum(1)


@pytest.mark.parametrize("shrinkage", [SHRINKAGE, 0.005])
def test_values_and_gradients_equal_those_through_the_inverse(shrinkage):
    draw = torch.Generator().manual_seed(0)
    values = torch.rand(60, 5, dtype=torch.double, generator=draw, requires_grad=True)
    normal = torch.arange(60) < 40
    running = Moments.of(torch.rand(100, 5, dtype=torch.double, generator=draw) + 0.1)
    weights = torch.rand(60, dtype=torch.double, generator=draw)
    slow = plain(values, normal, running, shrinkage)
    fast = squared_distances(values, normal, running, Moments.of(values.detach()[normal]), shrinkage)
    torch.testing.assert_close(fast, slow)
    (expected,) = torch.autograd.grad((slow.log() * weights).sum(), values)
    (found,) = torch.autograd.grad((fast.log() * weights).sum(), values)
    torch.testing.assert_close(found, expected)


def test_penalises_being_too_odd_and_too_typical_alike():
    draw = torch.Generator().manual_seed(0)
    normal = torch.randn(2000, 4, generator=draw)
    where = torch.arange(4000) >= 2000
    penalties = {}
    for scale in (0.5, 1.0, 2.0):
        rows = torch.cat([normal, scale * torch.randn(2000, 4, generator=draw)])
        penalties[scale] = MahalanobisPenalty()([rows[:, :2], rows[:, 2:]], where).item()
    assert penalties[1.0] < 0.05
    assert min(penalties[0.5], penalties[2.0]) > 1
    assert abs(penalties[0.5] / penalties[2.0] - 1) < 0.2


def test_dead_units_do_no_harm():
    rows = torch.rand(40, 6, generator=torch.Generator().manual_seed(0))
    rows[:, 2:4] = 0
    rows.requires_grad_()
    penalty = MahalanobisPenalty()
    for _ in range(3):
        value = penalty([rows], torch.arange(40) >= 20)
    value.backward()
    assert torch.isfinite(value)
    assert torch.all(torch.isfinite(rows.grad))


def test_moments_follow():
    moments = Moments.zero(1)
    for value in (1.0, 3.0):
        moments.follow(Moments(torch.tensor([value]), torch.tensor([[value]])))
    assert moments.first.item() == 2  # the plain average at first
