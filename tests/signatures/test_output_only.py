import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import entropy

from causalmad import open_model
from causalmad.errors import FitError
from causalmad.signatures.output_only import OutputOnly, confidence
from tests.signatures.families import small
from tests.twins import output_only as twin
from tests.twins.resampling_profile import run


@pytest.mark.parametrize("name", ["mlp", "conv", "gpt2", "llama", "neox"])
def test_it_equals_the_plain_formula(name):
    toy, model = small(name)
    values = OutputOnly().fit(open_model(toy.model, batch_size=3), toy.trusted)(toy.fresh).values
    expected = [twin.confidence(run(model, row)) for row in toy.fresh.main]
    np.testing.assert_allclose(values, expected, atol=1e-5)


def test_it_equals_scipy_and_does_not_saturate():
    logits = np.random.default_rng(0).normal(size=(30, 7)) * 20
    logits[0] = [900.0, 0, 0, 0, 0, 0, 0]
    found = confidence(torch.from_numpy(logits)).numpy()
    logs = logits - logsumexp(logits, axis=1, keepdims=True)
    expected = [logs.max(1), -logsumexp(logits, axis=1), entropy(np.exp(logs), axis=1)]
    np.testing.assert_allclose(found[:, [0, 1, 3]].T, expected, atol=1e-9)
    assert found[0, 2] == pytest.approx(900 - np.log(6)) and found[0, 0] == 0


def test_no_trusted_input_is_named():
    toy, _ = small("mlp")
    with pytest.raises(FitError, match="no trusted inputs"):
        OutputOnly().fit(open_model(toy.model), toy.trusted[:0])
