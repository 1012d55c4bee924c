"""Both engines on every toy."""

import pytest

from causalmad.testing.model_laws import MODEL_LAWS
from causalmad.testing.toys import toy


@pytest.mark.parametrize("engine", ["hooks", "nnsight"])
@pytest.mark.parametrize("law", MODEL_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", ["mlp", "linear", "conv", "gpt2", "llama", "neox"])
def test_every_engine_keeps_every_law(name, law, engine):
    law(toy(name, trusted=1, fresh=4), engine)
