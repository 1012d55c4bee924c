import copy

import numpy as np
import pytest
import torch

from causalmad import open_model
from causalmad.errors import FitError
from causalmad.signatures import ProbeShift
from causalmad.testing.toys import toy
from tests.twins import probes as twin

MADE = toy("mlp", trusted=60, fresh=5)
PLAIN = copy.deepcopy(MADE.model).eval()
with torch.no_grad():
    PLAIN[5].bias -= PLAIN(MADE.trusted.main).mean(0)  # so that every class is somebody's answer
MODEL = open_model(PLAIN)


@pytest.mark.parametrize(("site", "layer"), [("1", 0), ("4", 0)])
def test_both_gradients_are_of_the_same_tensor(site, layer):
    fitted = ProbeShift("blocks", sites=site).fit(MODEL, MADE.trusted)
    probes = fitted.probes
    assert probes.classes.tolist() == [0, 1, 2]
    mean = MADE.trusted.main.mean(0)
    for inputs, rows in ((MADE.fresh, range(5)), (MADE.trusted, range(8))):
        found, which = fitted.reduced(inputs), probes.which(inputs)
        for i in rows:
            weights, bias = probes.weights[0][which[i]].float(), probes.biases[0][which[i]].float()
            x = inputs.main[i]
            top = int(PLAIN(x[None]).argmax())
            parts = twin.shift(PLAIN, int(site) + 1, lambda v, w=weights, b=bias: v @ w + b, x, mean, top)
            blocks = [parts[slice(*span)] for span in MADE.trusted.blocks.values()]
            expected = [part.sum() for part in blocks] + [part.abs().sum() for part in blocks]
            np.testing.assert_allclose(found.values[i], expected, rtol=1e-3, atol=1e-4)


def test_a_probe_that_is_the_head_itself_shows_no_shift():
    fitted = ProbeShift("blocks", sites="4").fit(MODEL, MADE.trusted)
    head = PLAIN[5]
    count = len(fitted.probes.weights[0])
    object.__setattr__(fitted.probes, "weights", (head.weight.detach().T.double().expand(count, -1, -1),))
    object.__setattr__(fitted.probes, "biases", (head.bias.detach().double().expand(count, -1),))
    assert np.abs(fitted.reduced(MADE.fresh).values).max() < 1e-5


def test_only_units_before_a_probe_count():
    made = toy("gpt2", trusted=40, fresh=4)
    fitted = ProbeShift(("heads", "mlps", "positions")).fit(open_model(made.model), made.trusted)
    first, second = fitted.before
    assert first == {"heads": (0, 1), "mlps": (0,), "positions": (0,)}
    assert second == {"heads": (0, 1, 2, 3), "mlps": (0, 1), "positions": (0,)}
    names = [column.name for column in fitted.columns]
    assert any(name.startswith("transformer.h.0@-1 heads sum") for name in names) and len(names) == len(set(names))
    with pytest.raises(FitError, match="before any"):
        ProbeShift("neurons", sites="transformer.h.0.ln_1").fit(open_model(made.model), made.trusted)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_both_engines_give_the_same(name):
    made = toy(name, trusted=24, fresh=4)
    spec = ProbeShift(
        sites={"gpt2": "transformer.h.1", "llama": "model.layers.0", "bert": "bert.encoder.layer.1"}[name]
    )
    found = [spec.fit(open_model(made.model, engine=e), made.trusted)(made.fresh).values for e in ("hooks", "nnsight")]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-5)


def test_an_operation_in_place_after_the_probe_changes_nothing():
    plain, inplace = (
        torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.ReLU(b), torch.nn.Linear(8, 3)) for b in (0, 1)
    )
    inplace.load_state_dict(plain.state_dict())
    spec = ProbeShift("blocks", sites="0")
    found = [spec.fit(open_model(m), MADE.trusted)(MADE.fresh).values for m in (plain, inplace)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_named_errors():
    for wrong in ({"baseline": "donors"}, {"classes": 0}):
        with pytest.raises(FitError):
            ProbeShift(**wrong)
    with pytest.raises(FitError):
        ProbeShift("nothing").fit(MODEL, MADE.trusted)
