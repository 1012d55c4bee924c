"""The same GPT-2 as a HookedTransformer of transformer-lens."""

from __future__ import annotations

from typing import Any


def hooked_transformer(module: Any) -> Any:
    """A HookedTransformer with the weights of a GPT-2 of transformers, as they are.

    Raises:
        ImportError: where transformer-lens is not installed.
    """
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    shape = module.config
    config = HookedTransformerConfig(
        n_layers=shape.n_layer,
        d_model=shape.n_embd,
        n_ctx=shape.n_positions,
        d_head=shape.n_embd // shape.n_head,
        n_heads=shape.n_head,
        d_vocab=shape.vocab_size,
        act_fn="gelu_new",
        normalization_type="LN",
        default_prepend_bos=False,
        seed=0,
    )
    model = HookedTransformer(config)
    model.load_state_dict({**model.state_dict(), **convert_gpt2_weights(module, config)})
    return model.eval()
