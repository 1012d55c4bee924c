"""Buffers that no checkpoint holds: another formula is another model, other last digits are not."""

import json
from copy import deepcopy

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn

from causalmad.models.computed import computed, first_change, record
from causalmad.models.fingerprint import parameter_digests


class Holds(nn.Module):
    """A module that computes a buffer, and keeps another in its checkpoints."""

    def __init__(self, value):
        super().__init__()
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("made", value, persistent=False)


def change(before, after):
    """What is said of a buffer that was one value and is another, the record having been in a file."""
    return first_change(json.loads(json.dumps(record(Holds(before)))), Holds(after))


def llama(**options):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    torch.manual_seed(0)
    return hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=20, max_position_embeddings=64, **sizes, **options))


def rope(base, kind="default", **options):
    return {"rope_theta": base, "rope_parameters": {"rope_theta": base, "rope_type": kind, **options}}


def test_rotary_frequencies_of_another_base_are_noticed_and_the_same_ones_computed_again_are_not():
    model = llama(**rope(10_000.0))
    saved = json.loads(json.dumps(record(model)))
    assert any("inv_freq" in name for name in saved)
    again = llama(**rope(10_000.0))
    assert first_change(saved, model) is None and first_change(saved, again) is None
    for other in (rope(500_000.0), rope(10_000.0, "linear", factor=2.0), rope(10_010.0)):
        changed = llama(**other)
        assert parameter_digests(changed) == parameter_digests(model)
        assert "inv_freq" in (first_change(saved, changed) or "")


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_frequencies_in_another_precision_are_the_same_ones(kind):
    made = 1 / 10_000 ** (torch.arange(0, 64, 2) / 64)
    assert change(made, made.to(kind)) is None and change(made.to(kind), made) is None
    assert change(made, (1 / 500_000 ** (torch.arange(0, 64, 2) / 64)).to(kind)) is not None


def test_a_table_of_sines_from_frequencies_with_another_last_digit_is_the_same_one():
    frequencies = 1 / 10_000 ** (torch.arange(0, 64, 2) / 64)
    nudged = torch.nextafter(frequencies, torch.full((), 2.0))
    nudged[::3] = frequencies[::3]  # the first of them is one, whoever computes it
    tables = [torch.sin(torch.arange(4096.0)[:, None] * each) for each in (frequencies, nudged)]
    assert not torch.equal(*tables) and change(*tables) is None
    assert change(tables[0], torch.sin(torch.arange(4096.0)[:, None] * frequencies / 2)) is not None


def test_one_number_of_a_table_is_noticed():
    table = torch.randn(300, 400, generator=torch.Generator().manual_seed(0))
    for at in ((0, 0), (17, 333), (299, 399)):
        other = table.clone()
        other[at] += 1
        assert change(table, table.clone()) is None and change(table, other) is not None


def test_masks_types_and_shapes_count():
    mask = torch.full((40, 40), -torch.inf).triu(1)
    assert change(mask, mask.clone()) is None
    assert change(mask, torch.full((40, 40), -torch.inf).triu(2)) is not None
    assert change(mask, mask.bool()) is not None and change(mask, mask[:39]) is not None
    assert change(torch.arange(5), torch.arange(5)) is None and change(torch.arange(5), torch.arange(5) + 1) is not None
    assert change(torch.tensor([np.nan, 1.0]), torch.tensor([np.nan, 1.0])) is None
    assert change(torch.empty(0), torch.empty(0)) is None and change(torch.zeros(3), torch.tensor(0.0)) is not None
    on_meta = Holds(torch.ones(3, device="meta"))
    assert first_change(record(on_meta), deepcopy(on_meta)) is None


def test_only_what_no_checkpoint_holds_is_recorded_and_what_a_version_lacks_is_passed_over():
    model = Holds(torch.ones(3))
    assert [name for name, _ in computed(model)] == ["made"] == list(record(model))
    assert first_change({"gone": {"digest": "0"}}, model) is None
    assert first_change({}, model) is None
