from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from causalmad.errors import ModelError, SiteError
from causalmad.inputs import Inputs
from causalmad.models import open_model
from causalmad.targets import TopMargin

Models = Callable[[str], nn.Module]


def unwrap(module: nn.Module) -> None:
    """Takes nnsight's marks off a shared model."""
    for part in module.modules():
        for name in ("forward", "__nnsight__"):
            part.__dict__.pop(name, None)


def test_plain_and_opened_models(model_of: Models, tokenizer: Any) -> None:
    module = model_of("gpt2")
    model = open_model(module, tokenizer=tokenizer, batch_size=3)
    assert (model.module, model.name, model.side, model.batch_size) == (module, "GPT2LMHeadModel", "left", 3)
    assert model.engine.name == "hooks" and not model.positional and model.tokenizer is tokenizer
    again = open_model(model, engine="nnsight", side="right")
    assert (again.module, again.engine.name, again.side, again.batch_size) == (module, "nnsight", "right", 3)
    assert again.tokenizer is tokenizer and open_model(again).engine is again.engine
    assert open_model(again, engine="hooks").engine.name == "hooks"
    assert open_model(nn.Linear(2, 2)).positional
    assert open_model(model_of("bert")).side == "right"


@pytest.mark.parametrize("kind", ["NNsight", "TransformersModel", "LanguageModel"])
def test_models_of_nnsight(kind: str, model_of: Models, tokenizer: Any, prompts: object) -> None:
    import nnsight

    module = model_of("gpt2")
    plain = open_model(module)
    wanted = plain.run(next(plain.batches(plain.inputs(prompts))), target=TopMargin()).logits
    options = {} if kind == "NNsight" else {"tokenizer": tokenizer}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapper = getattr(nnsight, kind)(module, **options)
    try:
        for engine in (None, "hooks", "nnsight"):
            model = open_model(wrapper, engine=engine)  # type: ignore[arg-type]
            assert model.module is module and model.tokenizer is (tokenizer if options else None)
            batch = next(model.batches(model.inputs(prompts)))
            place = model.sites("residual")[1].place
            run = model.run(batch, read=[place], target=TopMargin())
            torch.testing.assert_close(run.logits, wanted)
            assert run.grads[place].abs().sum() > 0
    finally:
        unwrap(module)


def test_edits_of_a_user_wrapper_are_kept_by_its_engine() -> None:
    import nnsight

    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    wrapper = nnsight.NNsight(net)
    with wrapper.edit(inplace=True):
        wrapper[1].output = wrapper[1].output * 0
    model = open_model(wrapper, engine="nnsight")
    logits = model.logits(next(model.batches(model.inputs(torch.randn(3, 4)))))
    torch.testing.assert_close(logits, net[2].bias.detach().expand(3, 2))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_remote_runs_rehearsed_here(name: str, model_of: Models, wrap: Any, prompts: object) -> None:
    """``remote="local"`` serialises a run as for a server, hides our code, and runs what comes out."""
    module = model_of(name)
    plain = open_model(module)
    batch = next(plain.batches(plain.inputs(prompts)))
    sites = plain.sites(["residual", "heads", "embedding"])
    places = list(dict.fromkeys(site.place for site in sites))
    edits = {places[1]: lambda value: sites[0].put(value, value * 0.5, batch)}
    wanted = plain.run(batch, read=places, edits=edits, target=TopMargin())
    try:
        model = open_model(wrap(module), engine="nnsight", remote="local")
        run = model.run(batch, read=places, edits=edits, target=TopMargin())
    finally:
        unwrap(module)
    torch.testing.assert_close(run.logits, wanted.logits)
    torch.testing.assert_close(run.values, wanted.values)
    torch.testing.assert_close(run.grads, wanted.grads)
    import cloudpickle

    assert "causalmad" not in cloudpickle.list_registry_pickle_by_value()


def test_remote_runs_need_a_transformers_model_of_nnsight() -> None:
    import nnsight

    net = nn.Sequential(nn.Linear(4, 2))
    for model in (net, nnsight.NNsight(net)):
        with pytest.raises(ModelError, match="remote='local'"):
            open_model(model, engine="nnsight", remote="local")
    with pytest.raises(ModelError, match="hooks engine"):
        open_model(net, remote=True)


def test_models_of_pyvene(model_of: Models, prompts: object) -> None:
    import pyvene

    module = nn.Module()
    gpt2 = model_of("gpt2")
    wanted_flags = {name: value.requires_grad for name, value in gpt2.named_parameters()}
    try:
        wrapper = pyvene.IntervenableModel(
            pyvene.IntervenableConfig(
                [{"layer": 0, "component": "block_output", "intervention_type": pyvene.VanillaIntervention}]
            ),
            model=gpt2,
        )
        model = open_model(wrapper)
        assert model.module is gpt2 and model.architecture is not None and model.architecture.name == "gpt2"
        batch = next(model.batches(model.inputs(prompts)))
        place = model.sites("residual")[0].place
        assert model.run(batch, read=[place], target=TopMargin()).grads[place].abs().sum() > 0
    finally:
        for name, value in gpt2.named_parameters():
            value.requires_grad_(wanted_flags[name])
    del module


class HookPoint(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.hook_z = nn.Linear(8, 8), nn.Linear(8, 8), HookPoint()

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.hook_z(self.inner(x).unflatten(-1, (2, 4))).flatten(-2))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.hook_post = nn.Linear(8, 12), nn.Linear(12, 8), HookPoint()

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.hook_post(self.inner(x).relu()))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp, self.hook_mlp_out = Attention(), Mlp(), HookPoint()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.hook_mlp_out(self.mlp(x))


class Lens(nn.Module):
    """The surface of TransformerLens's HookedTransformer."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.cfg, self.tokenizer = SimpleNamespace(n_heads=2), tokenizer
        self.embed, self.hook_embed = nn.Embedding(50, 8), HookPoint()
        self.blocks, self.unembed = nn.ModuleList([Block(), Block()]), nn.Linear(8, 50)

    @property
    def hook_dict(self) -> dict[str, nn.Module]:
        return {name: part for name, part in self.named_modules() if isinstance(part, HookPoint)}

    def forward(self, input: Tensor, return_type: str = "logits", attention_mask: Tensor | None = None) -> Tensor:
        assert attention_mask is not None and attention_mask.shape == input.shape
        x = self.hook_embed(self.embed(input))
        for block in self.blocks:
            x = block(x)
        return self.unembed(x)


@pytest.mark.parametrize("engine", ["hooks", "nnsight"])
def test_models_like_those_of_transformer_lens(engine: str, tokenizer: Any) -> None:
    lens = Lens(tokenizer)
    model = open_model(lens, engine=engine)  # type: ignore[arg-type]
    assert model.positional and model.tokenizer is tokenizer and model.side == "left"
    assert [str(site) for site in model.sites("heads")][:2] == [
        "blocks.0.attn.hook_z#head=0",
        "blocks.0.attn.hook_z#head=1",
    ]
    assert [str(site) for site in model.sites("neurons")] == ["blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post"]
    assert [str(site) for site in model.sites(["embedding", "mlps"])] == [
        "hook_embed",
        "blocks.0.hook_mlp_out",
        "blocks.1.hook_mlp_out",
    ]
    assert model.sites("blocks.1.attn#head=0") == (model.sites("heads")[2],)
    batch = next(model.batches(model.inputs(["w3 w4", "w5 w6 w7", "w8"])))
    site = model.sites("heads")[1].at(-1)
    run = model.run(batch, read=[site.place], target=TopMargin())
    assert site.take(run.values[site.place], batch).shape == (3, 4)
    assert run.grads[site.place].shape == (3, 3, 2, 4)
    assert run.logits is not None and run.logits.shape == (3, 50)


def test_models_like_the_bridges_of_transformer_lens() -> None:
    def bridge(original: nn.Module | None = None, **parts: nn.Module) -> nn.Module:
        module = nn.Module()
        if original is not None:
            module.add_module("_original_component", original)
        for name, part in parts.items():
            module.add_module(name, part)
        return module

    block = bridge(bridge(attn=bridge(o=nn.Linear(8, 8)), mlp=bridge(nn.Linear(8, 8))))
    lens = bridge(embed=nn.Embedding(50, 8), blocks=nn.ModuleList([block]))
    lens.cfg, lens.hook_dict = SimpleNamespace(n_heads=2), {}  # type: ignore[assignment]
    model = open_model(lens)
    assert model.positional and model.architecture is not None and model.architecture.name == "transformer_bridge"
    assert [str(site) for site in model.sites("heads")] == [
        f"blocks.0._original_component.attn.o:input#head={head}" for head in range(2)
    ]
    with pytest.raises(SiteError, match="'neurons' is not known"):
        model.sites("neurons")


@pytest.mark.parametrize("thing", ["gpt2", None, 3, object(), nn.Linear])
def test_what_is_no_model(thing: object) -> None:
    with pytest.raises(ModelError, match="is no model"):
        open_model(thing)


def test_unknown_engines() -> None:
    with pytest.raises(ModelError, match="no engine 'magic'"):
        open_model(nn.Linear(2, 2), engine="magic")  # type: ignore[arg-type]


def test_scripted_modules_are_refused_by_nnsight_and_run_under_hooks() -> None:
    script = torch.jit.trace(nn.Linear(4, 2), torch.randn(1, 4))
    model = open_model(script)
    assert model.logits(next(model.batches(Inputs.of(torch.randn(3, 4))))).shape == (3, 2)
    model = open_model(script, engine="nnsight")
    with pytest.raises(ModelError, match="nnsight cannot open"):
        model.logits(next(model.batches(Inputs.of(torch.randn(3, 4)))))


def test_nnsight_is_imported_only_for_its_engine() -> None:
    """Its import patches torch.Tensor and object, which is the user's choice to make."""
    code = (
        "import sys, torch; from torch import nn; from causalmad.models import open_model\n"
        "before = torch.Tensor.backward; model = open_model(nn.Linear(2, 2))\n"
        "model.logits(next(model.batches(model.inputs(torch.ones(1, 2)))))\n"
        "assert not {'nnsight', 'pyvene', 'captum', 'transformers'} & set(sys.modules), sys.modules.keys()\n"
        "assert torch.Tensor.backward is before and not hasattr(object(), 'save')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_compiled_models_are_read_as_they_were_written() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model = open_model(torch.compile(net, backend="eager"))
    assert model.module is net and [str(site) for site in model.sites("layers")] == ["1"]


def test_fingerprints(model_of: Models) -> None:
    from causalmad.models.fingerprint import first_difference

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    model = open_model(net)
    before, parts = model.fingerprint(), model.parameter_fingerprints()
    assert before == open_model(net, engine="nnsight").fingerprint() and set(parts) == set(net.state_dict())
    assert first_difference(parts, model.parameter_fingerprints()) is None
    with torch.no_grad():
        net[1].running_mean[0] += 1
    assert model.fingerprint() != before
    assert first_difference(parts, model.parameter_fingerprints()) == "parameter '1.running_mean' differs"
    less = {name: part for name, part in parts.items() if name != "0.bias"}
    assert first_difference(parts, less) == "parameter '0.bias' is missing"
    assert first_difference(less, parts) == "parameter '0.bias' is new"
    assert model.fingerprint() != open_model(net.double()).fingerprint()


def test_a_tokenizer_that_cannot_be_called_is_refused_at_once() -> None:
    with pytest.raises(ModelError, match=r"^tokenizer='gpt2'") as caught:
        open_model(nn.Linear(2, 2), tokenizer="gpt2")  # type: ignore[arg-type]
    assert "from_pretrained('gpt2')" in caught.value.tries[0]
