import numpy as np
import pytest
import torch

from causalmad import Detector, open_model
from causalmad.errors import FitError
from causalmad.inputs import Inputs
from causalmad.signatures.gram_deviation import GramDeviation
from tests.signatures.families import BLOCKS, small
from tests.twins import gram_deviation as twin
from tests.twins.resampling_profile import read, run

SITES = {"mlp": ("1", "4"), "conv": ("2", "5")}


def matrix(model, row, path, name, features=None):
    """(features, positions) as lists."""
    value = read(model, row, path, "output").double()
    value = value.flatten(1) if name == "conv" else value[:, None] if value.ndim == 1 else value.T
    return (value if features is None else value[features]).tolist()


def expected(model, rows, trusted, name, held_against, features, orders=4):
    found = [[] for _ in rows]
    paths = SITES.get(name) or [BLOCKS[name].format(i) for i in (0, 1)]
    for path, which in zip(paths, features):
        for order in range(1, (2 if name == "mlp" else orders) + 1):
            known = [twin.entries(matrix(model, row, path, name, which), order) for row in trusted]
            for i, row in enumerate(rows):
                own = twin.entries(matrix(model, row, path, name, which), order)
                found[i] += twin.deviations(own, [known[j] for j in held_against[i]], 10.0)
    return found


@pytest.mark.parametrize("name", ["mlp", "conv", "gpt2", "llama", "neox"])
def test_deviations_equal_plain_loops(name):
    toy, model = small(name, 22, 3)
    fitted = GramDeviation(most_features=4).fit(open_model(toy.model, batch_size=3), toy.trusted)
    answers = [int(run(model, row).argmax()) for row in toy.trusted.main]
    held = []
    for row in toy.fresh.main:
        same = [i for i, answer in enumerate(answers) if answer == int(run(model, row).argmax())]
        held.append(same if len(same) >= 10 else range(22))
    features = fitted.reader.features
    assert all(len(which) == 4 for which in features)
    values = expected(model, toy.fresh.main, toy.trusted.main, name, held, features)
    np.testing.assert_allclose(fitted(toy.fresh).values, values, rtol=1e-4, atol=1e-5)


def test_trusted_inputs_are_held_against_the_folds_without_them():
    toy, model = small("mlp", 40, 4)
    fitted = GramDeviation(orders=2, least=99).fit(open_model(toy.model), toy.trusted)
    fold = dict(zip(fitted.digests, fitted.folds, strict=True))
    held = [[j for j in range(40) if fold[toy.trusted.digests[j]] != fold[toy.trusted.digests[i]]] for i in range(4)]
    assert sorted(np.bincount(fitted.folds)) == [8] * 5
    values = expected(model, toy.trusted.main[:4], toy.trusted.main, "mlp", held, [slice(None)] * 2, orders=2)
    np.testing.assert_allclose(fitted(toy.trusted[:4]).values, values, rtol=1e-4, atol=1e-5)


def test_classes_with_few_trusted_inputs_share_the_bounds_of_all():
    toy, model = small("mlp", 40, 4)
    counts = np.bincount([int(run(model, row).argmax()) for row in toy.trusted.main], minlength=3)
    fitted = GramDeviation(least=int(counts.max())).fit(open_model(toy.model), toy.trusted)
    assert sorted(fitted.bounds) == [-1, int(counts.argmax())]


def images(count, seed, tied):
    """Two features over places, which are the same up to sign in every input; tied ones have the same sign."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, 16, 16, generator=draw)
    other = x if tied else -x
    return torch.cat([x, other + 0.1 * torch.randn(x.shape, generator=draw)], 1)


def test_features_that_occur_together_otherwise_deviate_though_each_is_as_usual():
    model = torch.nn.Sequential(torch.nn.Hardtanh(-99, 99), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    model = model.append(torch.nn.Linear(2, 2))
    fitted = GramDeviation("0", orders=1).fit(open_model(model), Inputs.of(images(200, 0, True)))
    normal, other = (fitted(images(50, 1, tied)).values for tied in (True, False))
    assert normal[:, 0].max() < 0.05 and other[:, 0].min() > 0.05
    assert np.median(other[:, 1]) > normal[:, 1].max()


def test_length_alone_and_scale_alone_decide_nothing():
    toy, _ = small("mlp", 40, 6)
    louder, _ = small("mlp", 40, 6)
    spec = GramDeviation("1")
    values = spec.fit(open_model(toy.model), toy.trusted)(toy.fresh).values
    with torch.no_grad():  # a model that says the same in another unit
        louder.model[0].weight.mul_(8)
        louder.model[0].bias.mul_(8)
        louder.model[3].weight.div_(8)
    again = spec.fit(open_model(louder.model), louder.trusted)(louder.fresh).values
    np.testing.assert_allclose(values, again, rtol=1e-5)
    repeated = Inputs.of({"input_ids": [torch.full((n,), 7) for n in (2, 5, 9)]})
    tokens, _ = small("gpt2", 40, 4)
    at = GramDeviation("transformer.wte").fit(open_model(tokens.model), tokens.trusted)(repeated).values
    np.testing.assert_allclose(at[1:], at[:-1], rtol=1e-5)


def test_bad_options_and_too_few_inputs_are_named():
    toy, _ = small("mlp")
    with pytest.raises(FitError, match="orders=0"):
        GramDeviation(orders=0)
    with pytest.raises(FitError, match="1 distinct trusted inputs"):
        GramDeviation().fit(open_model(toy.model), toy.trusted[:1])


def test_it_runs_in_a_detector_and_on_a_classifier_of_texts():
    toy, _ = small("bert", 40, 6)
    assert np.isfinite(Detector(GramDeviation()).fit(toy.model, toy.trusted).score(toy.fresh)).all()
