"""Models whose edges are known, and the twin that writes them out."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from causalmad.hypotheses.donors import Donors
from causalmad.hypotheses.edges import EdgePatcher
from causalmad.inputs import Batch, Inputs

FAMILIES = ("gpt2", "neox", "neox-in-turn", "llama")


@pytest.fixture(scope="session")
def twin() -> ModuleType:
    spec = importlib.util.spec_from_file_location("twin_edges", Path(__file__).parents[1] / "twins" / "edges.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=FAMILIES)
def wired(request, model_of) -> nn.Module:
    """A model whose residual stream is a sum of heads and MLPs; NeoX with its parts beside or after each other."""
    found = model_of(request.param.partition("-")[0])
    if request.param == "neox-in-turn":
        found = copy.deepcopy(found)
        found.config.use_parallel_residual = False
        for layer in found.gpt_neox.layers:
            layer.use_parallel_residual = False
    return found


@pytest.fixture
def slow(wired) -> nn.Module:
    """The model without dropout, for the twin."""
    return copy.deepcopy(wired).eval()


@pytest.fixture
def patcher(wired) -> EdgePatcher:
    return EdgePatcher.of(wired, Donors(Inputs.of({"input_ids": rows(4, 6, seed=9)}), 3))


@pytest.fixture
def ids() -> Tensor:
    return rows(5, 6)


def rows(count: int, length: int, seed: int = 3) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(2, 50, (count, length), generator=draw)


@pytest.fixture
def one_batch():
    """A function from a patcher and token rows of one length to a single batch."""

    def get(patcher: EdgePatcher, ids: Tensor) -> Batch:
        return next(iter(patcher.model.batches(Inputs.of({"input_ids": ids}))))

    return get


@pytest.fixture
def linear(model_of) -> nn.Module:
    """A GPT-2 that is linear in its embeddings: no norms, linear MLPs, and queries and keys of zero.

    With scores all zero every attention pattern is uniform over what went before, whatever the input.
    """
    model = copy.deepcopy(model_of("gpt2"))
    width = model.config.n_embd
    for block in model.transformer.h:
        block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
        block.mlp.act = nn.Identity()
        with torch.no_grad():
            block.attn.c_attn.weight[:, : 2 * width] = 0
            block.attn.c_attn.bias[: 2 * width] = 0
    model.transformer.ln_f = nn.Identity()
    return model
