"""Tiny models of every known architecture, built in memory, and what they are called with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

VOCABULARY = 50
CAUSAL = ("gpt2", "neox", "llama", "mistral", "qwen2", "gemma2")
EVERY = (*CAUSAL, "bert", "vit")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def build(name: str) -> nn.Module:
    """A model of two layers and four heads, 32 wide, with seeded weights, in training mode as users have them."""
    import transformers as hf

    rope: dict[str, Any] = {"num_key_value_heads": 2, "max_position_embeddings": 64}
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    words: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    models: dict[str, Callable[[], nn.Module]] = {
        "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(n_layer=2, n_head=4, n_embd=32, n_positions=64, **words)),
        "neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**sizes, **words, max_position_embeddings=64)),
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, **words, **rope)),
        "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**sizes, **words, **rope)),
        "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**sizes, **words, **rope)),
        "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**sizes, **words, **rope, head_dim=8)),
        "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**sizes, **words, **rope, head_dim=8)),
        "gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**sizes, **words, **rope, head_dim=8)),
        "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(**sizes, **words, num_labels=3)),
        "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=3)),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models[name]()
        # Initial weights are so small that almost nothing depends on anything.
        with torch.no_grad():
            for value in model.parameters():
                value.mul_(3 if value.ndim > 1 else 1)
    return model.train()


_BUILT: dict[str, nn.Module] = {}


@pytest.fixture
def model_of() -> Callable[[str], nn.Module]:
    """A function from an architecture's name to its model, built once a session: no test may change it."""

    def get(name: str) -> nn.Module:
        if name not in _BUILT:
            _BUILT[name] = build(name)
        return _BUILT[name]

    return get


@pytest.fixture(params=EVERY)
def any_model(request: pytest.FixtureRequest, model_of: Callable[[str], nn.Module]) -> nn.Module:
    return model_of(request.param)


@pytest.fixture
def prompts() -> list[dict[str, torch.Tensor]]:
    """Token rows of differing length."""
    draw = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(2, VOCABULARY, (size,), generator=draw)} for size in (3, 7, 5, 4)]


@pytest.fixture
def images() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))}


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A word-level tokenizer of the words w2 ... w49."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    known = {"<pad>": 0, "<end>": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    words = Tokenizer(models.WordLevel(known, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<end>", pad_token="<pad>", eos_token="<end>")


@pytest.fixture(autouse=True)
def same_random_state() -> Iterator[None]:
    """Every test starts from the same global random state."""
    torch.manual_seed(1234)
    yield


@pytest.fixture
def wrap(tokenizer: Any) -> Callable[[nn.Module], Any]:
    """A function that wraps a model as nnsight's users do."""

    def get(model: nn.Module) -> Any:
        import nnsight

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return nnsight.TransformersModel(model, tokenizer=tokenizer, task="text-generation")

    return get
