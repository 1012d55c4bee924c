import numpy as np
import pytest
import torch

from causalmad import Detector, open_model
from causalmad.errors import FitError
from causalmad.inputs import Inputs
from causalmad.signatures.topological_trajectory import TopologicalTrajectory
from tests.signatures.families import BLOCKS, small
from tests.twins import topological_trajectory as twin
from tests.twins.resampling_profile import read, run


def states(model, rows, name):
    """Per row: activations at both sites, and the answer."""
    paths = {"mlp": ("1", "4"), "conv": ("2", "5")}.get(name) or [BLOCKS[name].format(i) for i in (0, 1)]

    def value(row, path):
        found = read(model, row, path, "output").double()
        return (found.mean((1, 2)) if name == "conv" else found if found.ndim == 1 else found[-1]).numpy()

    return [([value(row, path) for path in paths], int(run(model, row).argmax())) for row in rows]


@pytest.mark.parametrize("anchor", ["each layer", "last"])
@pytest.mark.parametrize("name", ["mlp", "conv", "gpt2", "llama", "neox"])
def test_ranks_equal_sorting_in_plain_loops(name, anchor):
    toy, model = small(name, 30, 8)
    fitted = TopologicalTrajectory(anchor=anchor).fit(open_model(toy.model, batch_size=3), toy.trusted)
    known = states(model, toy.trusted.main, name)
    trusted, answers = [np.stack([row[0][i] for row in known]) for i in (0, 1)], [row[1] for row in known]
    fresh = [twin.ranks(*row, trusted, answers, anchor) for row in states(model, toy.fresh.main, name)]
    np.testing.assert_allclose(fitted(toy.fresh).values, fresh, atol=1e-6)
    own = [twin.ranks(*row, trusted, answers, anchor, own=i) for i, row in enumerate(known)]
    np.testing.assert_allclose(fitted(toy.trusted).values, own, atol=1e-6)


def identity(count):
    """Vectors whose own largest entry is the answer: activations of the two sites are the vector itself."""
    return torch.nn.Sequential(
        torch.nn.Identity(), torch.nn.ELU(1e-9), torch.nn.ELU(1e-9), torch.nn.Linear(count, count)
    )


def test_ranks_by_hand():
    model = identity(2)
    with torch.no_grad():
        model[3].weight.copy_(torch.eye(2))
        model[3].bias.zero_()
    trusted = torch.tensor([[1.0, 0], [3, 0], [1, 1.5], [2, 2.5], [3, 4]])  # two of class 0, three of class 1
    fitted = TopologicalTrajectory(("1", "2")).fit(open_model(model), Inputs.of(trusted))
    new = torch.tensor([[2.1, 2.0], [3, 0.2], [1, 1.2]])
    # (2.1, 2) is of class 0: the nearest of that class is (3, 0), with (2, 2.5) and (1, 1.5) before it.
    expected = np.log([3, 1, 1]) / np.log(6)
    np.testing.assert_allclose(fitted(new).values, np.stack([expected, expected], 1), atol=1e-6)
    # Itself is left out: of four others, (3, 0) is the nearest of class 0 to (1, 0), and (1, 1.5) is nearer.
    np.testing.assert_allclose(fitted(trusted[:1]).values, np.log(2) / np.log(5), atol=1e-6)


def test_an_answer_that_no_trusted_input_gets_is_the_farthest():
    model = identity(3)
    with torch.no_grad():
        model[3].weight.copy_(torch.eye(3))
        model[3].bias.zero_()
    trusted = torch.rand(9, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1, 0])
    fitted = TopologicalTrajectory("1").fit(open_model(model), Inputs.of(trusted))
    assert fitted(torch.tensor([[0.1, 0.1, 0.5]])).values.tolist() == [[1.0]]


def test_the_kept_inputs_are_a_seeded_subset_of_distinct_contents_in_any_order():
    toy, _ = small("mlp", 30, 8)
    model = open_model(toy.model)
    doubled = Inputs.of(torch.cat([toy.trusted.main, toy.trusted.main]))
    whole = TopologicalTrajectory().fit(model, doubled)
    assert sorted(whole.digests) == sorted(toy.trusted.digests)
    few, again = (TopologicalTrajectory(most=10).fit(model, part, 1) for part in (toy.trusted, toy.trusted[::-1]))
    assert len(few.digests) == 10 and few.digests == again.digests
    assert few.digests != TopologicalTrajectory(most=10).fit(model, toy.trusted, 2).digests
    assert set(few.digests) < set(toy.trusted.digests)


def test_bad_options_and_too_few_inputs_are_named():
    toy, _ = small("mlp")
    with pytest.raises(FitError, match="anchor='first'"):
        TopologicalTrajectory(anchor="first")
    with pytest.raises(FitError, match="most=1"):
        TopologicalTrajectory(most=1)
    with pytest.raises(FitError, match="1 distinct trusted inputs"):
        TopologicalTrajectory().fit(open_model(toy.model), toy.trusted[:1])


def test_it_runs_in_a_detector_and_on_a_classifier_of_texts():
    toy, _ = small("bert", 40, 6)
    fitted = Detector(TopologicalTrajectory()).fit(toy.model, toy.trusted)
    assert np.isfinite(fitted.score(toy.fresh)).all()
