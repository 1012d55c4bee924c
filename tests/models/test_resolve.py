from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from causalmad.errors import SiteError
from causalmad.models import open_model
from causalmad.sites import Site
from tests.conftest import CAUSAL

Models = Callable[[str], nn.Module]

PROJECTION = {
    "gpt2": "transformer.h.{}.attn.c_proj",
    "neox": "gpt_neox.layers.{}.attention.dense",
    "llama": "model.layers.{}.self_attn.o_proj",
    "mistral": "model.layers.{}.self_attn.o_proj",
    "qwen2": "model.layers.{}.self_attn.o_proj",
    "gemma2": "model.layers.{}.self_attn.o_proj",
    "bert": "bert.encoder.layer.{}.attention.output.dense",
    "vit": "vit.layers.{}.attention.o_proj",
}


@pytest.mark.parametrize("name", PROJECTION)
def test_roles_are_where_the_architecture_has_them(name: str, model_of: Models) -> None:
    model = open_model(model_of(name))
    assert model.architecture is not None and (model.architecture.layers, model.architecture.heads) == (2, 4)
    block = model.architecture.block
    assert [site.path for site in model.sites("residual")] == [block.format(0), block.format(1)]
    assert len(model.sites("attentions")) == len(model.sites("mlps")) == len(model.sites("neurons")) == 2
    assert all(site.side == "input" for site in model.sites("neurons"))
    heads = model.sites("heads")
    assert [site.heads for site in heads] == [(head,) for _ in range(2) for head in range(4)]
    assert {(site.path, site.side) for site in heads} == {(PROJECTION[name].format(n), "input") for n in range(2)}
    assert len(model.sites("embedding")) == 1
    assert model.sites(["residual", "mlps", "residual"]) == (*model.sites("residual"), *model.sites("mlps"))


@pytest.mark.parametrize("name", PROJECTION)
def test_text_forms_are_found_again(name: str, model_of: Models) -> None:
    model = open_model(model_of(name))
    for site in model.sites(["residual@-1", "attentions", "heads@all", "mlps@all:max", "neurons@0", "embedding"]):
        assert model.sites(str(site)) == (site,)
    attention = model.sites("attentions")[1].path
    (site,) = model.sites(f"{attention}#head=1,3@-1")
    assert site == Site(PROJECTION[name].format(1), "input", heads=(1, 3), position=-1, head_count=4)


def test_headless_models_have_the_same_roles() -> None:
    import transformers as hf

    model = open_model(hf.GPT2Model(hf.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=9, n_positions=4)))
    assert [str(site) for site in model.sites("residual")] == ["h.0"]
    assert [str(site) for site in model.sites("heads")] == [f"h.0.attn.c_proj:input#head={n}" for n in range(2)]


def test_globs_stand_for_one_part_of_a_path(model_of: Models) -> None:
    model = open_model(model_of("gpt2"))
    assert [site.path for site in model.sites("transformer.h.*")] == ["transformer.h.0", "transformer.h.1"]
    assert [site.path for site in model.sites("transformer.h.*.mlp")] == ["transformer.h.0.mlp", "transformer.h.1.mlp"]
    assert [site.path for site in model.sites("transformer.h.?.ln_*")] == [
        f"transformer.h.{n}.ln_{k}" for n in range(2) for k in (1, 2)
    ]
    assert [str(s) for s in model.sites("transformer.h.*.attn#head=2@-1")] == [
        f"transformer.h.{n}.attn.c_proj:input#head=2@-1" for n in range(2)
    ]


def test_unknown_sites_name_the_nearest_three(model_of: Models) -> None:
    model = open_model(model_of("gpt2"))
    with pytest.raises(SiteError, match=r"blocks run 0\.\.1") as raised:
        model.sites("transformer.h.7")
    assert len(raised.value.tries) == 3 and {"transformer.h.0", "transformer.h.1"} <= set(raised.value.tries)
    with pytest.raises(SiteError, match="nothing in GPT2LMHeadModel matches"):
        model.sites("transformer.layers.*")
    with pytest.raises(SiteError, match=r"heads 0\.\.3"):
        model.sites("transformer.h.0.attn#head=4")


@pytest.mark.parametrize("path", ["transformer.h.0.mlp", "transformer.h.0.attn.c_attn", "transformer.h.0"])
def test_heads_only_where_they_are_separate(path: str, model_of: Models) -> None:
    with pytest.raises(SiteError, match="not separate"):
        open_model(model_of("gpt2")).sites(f"{path}#head=0")


def test_other_modules_by_path_and_layers() -> None:
    model = open_model(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 2)))
    assert [str(site) for site in model.sites("layers")] == ["1"]
    assert [str(site) for site in model.sites("0:input")] == ["0:input"]
    with pytest.raises(SiteError, match="role 'heads' is not known for Sequential") as raised:
        model.sites("heads")
    assert "'layers'" in raised.value.tries
    with pytest.raises(SiteError, match="heads are not known"):
        model.sites("0#head=1")
    linear = open_model(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)))
    assert [str(site) for site in linear.sites("layers")] == ["0"]
    deep = nn.Sequential(nn.Linear(4, 8), nn.Sequential(), nn.Tanh(), nn.Linear(8, 2), nn.Softmax(-1))
    assert [str(site) for site in open_model(deep).sites("layers@all")] == ["2@all"]
    with pytest.raises(SiteError, match="no parts"):
        open_model(nn.Linear(2, 2)).sites("layers")


@pytest.mark.parametrize("name", CAUSAL)
def test_heads_at_the_projection_add_up_to_the_attention(name: str, model_of: Models, prompts: object) -> None:
    """Cutting one head at the projection's input takes away exactly that head's part of the projection's output."""
    module = model_of(name)
    model = open_model(module)
    batch = next(model.batches(model.inputs(prompts)))
    site = model.sites("heads")[1]
    after = site.place._replace(side="output")
    cut = {site.place: lambda value: site.put(value, torch.zeros(()), batch)}
    clean = model.run(batch, read=[site.place, after], output=False).values
    without = model.run(batch, read=[after], edits=cut, output=False).values[after]
    weight = dict(module.named_parameters())[f"{site.path}.weight"].detach()
    weight = weight if type(dict(module.named_modules())[site.path]).__name__ == "Conv1D" else weight.T
    part = weight.unflatten(0, (4, -1))[1]
    torch.testing.assert_close(clean[after] - without, site.take(clean[site.place], batch) @ part, atol=1e-5, rtol=1e-5)
