from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from causalmad.errors import InputsError
from causalmad.inputs import Batch, Inputs
from causalmad.models import open_model
from causalmad.packing import pack, unpack
from causalmad.rows import Row, as_inputs

WORDS = ["w3 w4 w5", "w6", "w7 w8 w9 w10"]
IDS = [[3, 4, 5], [6], [7, 8, 9, 10]]
GPT2 = ("input_ids", "attention_mask", "position_ids", "inputs_embeds", "token_type_ids", "labels")


def rows(inputs: Inputs, name: int | str = "input_ids") -> list[list[int]]:
    return [row.tolist() for row in inputs.fields[name]]


def test_texts(tokenizer: Any) -> None:
    inputs = Inputs.of(WORDS, tokenizer=tokenizer, accepts=GPT2)
    assert rows(inputs) == IDS and inputs.tokens and inputs.lengths.tolist() == [3, 1, 4]
    assert inputs.columns["text"].tolist() == WORDS
    table = [{"prompt": text, "kind": k, "label": k > 1} for k, text in enumerate(WORDS)]
    inputs = Inputs.of(table, tokenizer=tokenizer, accepts=GPT2)
    assert rows(inputs) == IDS and inputs.columns["kind"].tolist() == [0, 1, 2]
    assert inputs.columns["label"].dtype == bool
    with pytest.raises(InputsError, match="without a tokenizer"):
        Inputs.of(WORDS)


def test_padded_tensors_lose_their_padding_on_either_side(tokenizer: Any) -> None:
    for side in ("left", "right"):
        encoded = tokenizer(WORDS, padding=True, padding_side=side, return_tensors="pt")
        inputs = Inputs.of(dict(encoded), accepts=GPT2)
        assert rows(inputs) == IDS and set(inputs.fields) <= {"input_ids", "token_type_ids"}
        plain = Inputs.of(
            [{name: [0] * len(row) if name != "input_ids" else row for name in inputs.fields} for row in IDS],
            accepts=GPT2,
        )
        assert inputs.ids == plain.ids
    positional = {0: encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
    assert rows(Inputs.of(positional), 0) == IDS
    with pytest.raises(InputsError, match="holes"):
        Inputs.of({"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.tensor([[1, 0, 1]])})
    with pytest.raises(InputsError, match="no tokens"):
        Inputs.of({"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.tensor([[1, 1, 1], [0, 0, 0]])})


def test_embeddings_keep_their_mask() -> None:
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    inputs = Inputs.of({"attention_mask": mask, "inputs_embeds": torch.randn(2, 3, 4)}, accepts=GPT2)
    assert not inputs.tokens and inputs.fields["attention_mask"][0].tolist() == [0, 1, 1]


def test_double_precision_is_kept_for_models_in_double_precision() -> None:
    x = np.random.default_rng(0).normal(size=(9, 4)) + 1.7e9  # seconds since 1970
    double, single = open_model(nn.Linear(4, 2).double()), open_model(nn.Linear(4, 2))
    lines = [Row(str(i), {"x": row.tolist()}) for i, row in enumerate(x)]
    wide = [double.inputs(x), double.inputs(torch.as_tensor(x)), double.inputs([{0: row.tolist()} for row in x])]
    wide += [as_inputs(lines, double), double.inputs(wide[0])]
    for inputs in wide:
        assert inputs.main.dtype == torch.float64 and inputs.digests == wide[0].digests  # type: ignore[union-attr]
        assert torch.equal(next(double.batches(inputs)).main, torch.as_tensor(x))
    assert len(set(wide[0].digests)) == 9
    again = unpack(*pack(wide[0]))
    assert again.digests == wide[0].digests and again.main.dtype == torch.float64  # type: ignore[union-attr]
    # What the model is called with counts: to a model in single precision these are one and the same input.
    narrow = [single.inputs(x), single.inputs(x.astype("float32")), as_inputs(lines, single)]
    for inputs in narrow:
        assert inputs.main.dtype == torch.float32 and inputs.digests == narrow[0].digests  # type: ignore[union-attr]
    exact = x.astype("float32").astype("float64")
    assert double.inputs(exact).digests == narrow[0].digests  # as long as single precision holds it, in whichever
    missing = np.array([[np.nan, 1.5], [np.inf, 2.0]])
    assert Inputs.of(missing, dtype=torch.float64).digests == Inputs.of(missing).digests


def test_complex_numbers_are_refused() -> None:
    for data in (torch.ones(3, 4) * 1j, np.ones((3, 4)) * 1j, {"x": [[1j, 2.0], [3.0, 4.0]]}):
        with pytest.raises(InputsError, match="complex numbers") as caught:
            Inputs.of(data, accepts=("x",))
        assert "view_as_real" in str(caught.value)


class Tokens(nn.Module):
    """A network of one's own, whose tokens have another name and whose logits stand at every token."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(12, 6), nn.Linear(6, 3)

    def forward(self, tokens: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.head(self.words(tokens).cumsum(1))


@pytest.mark.parametrize("mask_first", [True, False])
def test_tokens_under_another_name_lose_their_padding(mask_first: bool) -> None:
    model = open_model(Tokens())
    tokens = torch.tensor([[3, 4, 5, 0], [6, 0, 0, 0], [7, 8, 9, 10]])
    table = {"tokens": tokens, "attention_mask": (tokens > 0).long()}
    inputs = model.inputs(dict(reversed(table.items())) if mask_first else table)
    assert list(inputs.fields) == ["tokens"] and rows(inputs, "tokens") == IDS
    for batch in model.batches(inputs):  # of one length each, since the mask is ignored
        own = [model.module(torch.tensor([IDS[row]]))[:, -1] for row in batch.rows]
        torch.testing.assert_close(model.logits(batch), torch.cat(own).detach())
    # A mask of something else is an input like any other, as it is beside numbers.
    other = model.inputs({"tokens": tokens, "attention_mask": torch.ones(3, 2).long()})
    assert list(other.fields) == ["tokens", "attention_mask"] and other.main.shape == (3, 4)
    numbers = model.inputs({"tokens": torch.ones(3, 4), "attention_mask": torch.ones(3, 4).long()})
    assert list(numbers.fields) == ["tokens", "attention_mask"]


class Two(nn.Module):
    """A network of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.head((self.first(x * mask) + 3 * self.second(y)).relu())


def test_the_order_of_a_dict_decides_nothing() -> None:
    values = {"x": torch.randn(7, 4), "mask": torch.ones(7, 4), "y": torch.randn(7, 4)}
    backwards = dict(reversed(values.items()))
    model = open_model(Two())
    plain = model.inputs(values)
    assert list(plain.fields) == ["x", "y", "mask"]  # in the order of the arguments, and what goes beside them last
    lines = [Row(str(i), {name: rows[i].tolist() for name, rows in backwards.items()}) for i in range(7)]
    for inputs in (model.inputs(backwards), as_inputs(lines, model)):
        assert list(inputs.fields) == list(plain.fields) and inputs.digests == plain.digests
        assert inputs.ids == plain.ids and torch.equal(inputs.main, plain.main)  # type: ignore[arg-type]
    positions = Inputs.of({1: values["y"], 0: values["x"]})
    assert list(positions.fields) == [0, 1]
    assert list(Inputs.of(backwards, accepts=set(values)).fields) == ["y", "x", "mask"]


def test_tensors_arrays_and_loaders_are_the_same_inputs() -> None:
    x = np.random.default_rng(0).normal(size=(7, 4))
    inputs = Inputs.of(x)
    assert isinstance(inputs.main, torch.Tensor) and inputs.main.dtype == torch.float32 and not inputs.tokens
    y = torch.arange(7)
    state = torch.get_rng_state()
    forms: list[Any] = [
        torch.as_tensor(x),
        list(torch.as_tensor(x).float()),
        list(x),
        {0: x},
        DataLoader(TensorDataset(torch.as_tensor(x), y), batch_size=3),
        DataLoader(list(torch.as_tensor(x)), batch_size=2),
        inputs,
    ]
    for form in forms:
        again = Inputs.of(form)
        assert again.ids == inputs.ids and again.digests == inputs.digests
        assert isinstance(again.main, torch.Tensor) and again.main.equal(inputs.main)
    assert torch.get_rng_state().equal(state)
    assert Inputs.of(forms[4]).columns["label"].tolist() == y.tolist()
    dicts = DataLoader([{"input_ids": torch.tensor([k, k])} for k in range(5)], batch_size=2)
    assert rows(Inputs.of(dicts)) == [[k, k] for k in range(5)]


def test_data_sets(tokenizer: Any) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"text": WORDS, "label": [0, 1, 0], "id": ["a", "b", "c"]})
    inputs = Inputs.of(data, tokenizer=tokenizer, accepts=GPT2)
    assert rows(inputs) == IDS and inputs.ids == ("a", "b", "c") and inputs.columns["label"].tolist() == [0, 1, 0]
    data = datasets.Dataset.from_dict({"input_ids": IDS, "attention_mask": [[1] * len(row) for row in IDS]})
    assert rows(Inputs.of(data, accepts=GPT2)) == IDS
    for form in ("torch", "numpy", "pandas", "arrow"):
        assert rows(Inputs.of(data.with_format(form), accepts=GPT2)) == IDS


def test_data_sets_with_a_transform_and_streamed_ones(tokenizer: Any) -> None:
    datasets = pytest.importorskip("datasets")
    kept = datasets.Dataset.from_dict({"words": WORDS, "label": [0, 1, 0]})
    data = kept.with_transform(lambda batch: {"x": [[float(len(text))] for text in batch["words"]]})
    inputs = Inputs.of(data, accepts=("x",))
    assert inputs.main.tolist() == [[8.0], [2.0], [12.0]] and not inputs.columns  # type: ignore[union-attr]
    known = kept.to_iterable_dataset()
    unknown = datasets.IterableDataset.from_generator(lambda: ({"text": text, "label": 1} for text in WORDS))
    assert unknown.column_names is None
    for stream in (known, unknown):
        inputs = Inputs.of(stream, tokenizer=tokenizer, accepts=GPT2)
        assert rows(inputs) == IDS and len(inputs.columns["label"]) == 3


@pytest.mark.parametrize("types", [[0, 1, 1], [0, 0, 0], None])
def test_a_tokenizers_types_of_tokens_are_kept_where_they_say_something(types: Any, model_of: Any) -> None:
    def encode(texts: list[str]) -> dict[str, Any]:
        found = {"input_ids": [[3, 4, 5]] * len(texts), "attention_mask": [[1, 1, 1]] * len(texts)}
        return found if types is None else {**found, "token_type_ids": [types] * len(texts)}

    model = open_model(model_of("bert"), tokenizer=encode)
    inputs = model.inputs(["some text"])
    assert ("token_type_ids" in inputs.fields) == (types == [0, 1, 1])
    with model.quiet(), torch.no_grad():
        own = model.module(**{name: torch.tensor(value) for name, value in encode(["some text"]).items()}).logits
    torch.testing.assert_close(model.logits(next(model.batches(inputs))), own)
    plain = Inputs.of({"input_ids": [[3, 4, 5]]})
    assert (inputs.digests == plain.digests) == (types != [0, 1, 1])


def test_a_number_for_padding_that_is_no_token(model_of: Callable[[str], nn.Module]) -> None:
    import transformers as hf

    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 12}
    made = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, num_attention_heads=2, pad_token_id=-1))
    model = open_model(made)
    batch = next(model.batches(model.inputs([{"input_ids": row} for row in IDS])))
    assert batch.main.min() == 0 and model.logits(batch).shape == (3, 12)


def test_ids_are_stable_unique_and_of_the_content() -> None:
    inputs = Inputs.of([{"input_ids": row} for row in (*IDS, IDS[0], IDS[0])])
    assert len(set(inputs.ids)) == 5 and inputs.ids[3:] == (f"{inputs.ids[0]}.2", f"{inputs.ids[0]}.3")
    assert inputs.digests[0] == inputs.digests[3] != inputs.digests[1]
    assert Inputs.of([{"input_ids": row} for row in reversed(IDS)]).ids == inputs.ids[2::-1]
    # Written down: ids must be the same in other processes and versions.
    assert Inputs.of({"input_ids": torch.tensor([[1, 2, 3]])}).ids == ("3f771de60856",)
    same = [Inputs.of(data) for data in (torch.tensor([[1, 2, 3]]), {"input_ids": torch.tensor([[1, 2, 3]]).short()})]
    assert {inputs.digests for inputs in same} == {Inputs.of({"input_ids": torch.tensor([[1, 2, 3]])}).digests}
    assert Inputs.of([{"input_ids": row} for row in IDS], ids=[1, 2, 3]).ids == ("1", "2", "3")
    assert Inputs.of([{"input_ids": row, "id": f"q{k}"} for k, row in enumerate(IDS)]).ids == ("q0", "q1", "q2")
    with pytest.raises(InputsError, match="1 ids stand more than once: 'a'"):
        Inputs.of([{"input_ids": row} for row in IDS], ids=["a", "b", "a"])
    with pytest.raises(InputsError, match="3 rows for 2 ids"):
        Inputs.of([{"input_ids": row} for row in IDS], ids=["a", "b"])


def test_labels_are_never_shown_to_the_model() -> None:
    inputs = Inputs.of([{"input_ids": row, "labels": [1]} for row in IDS], accepts=GPT2)
    assert set(inputs.fields) == {"input_ids"} and set(inputs.columns) == {"labels"}


def test_new_words_on_inputs_are_kept() -> None:
    inputs = Inputs.of(torch.randn(3, 8))
    again = Inputs.of(inputs, blocks={"left": (0, 4)}, columns={"kind": [1, 2, 3]}, ids="abc")
    assert again.ids == ("a", "b", "c") and again.blocks == {"left": (0, 4)}
    assert again.columns["kind"].tolist() == [1, 2, 3] and again.digests == inputs.digests


def test_rows_and_blocks() -> None:
    inputs = Inputs.of(torch.arange(24.0).reshape(4, 6), blocks={"a": (0, 2)}, columns={"k": list("wxyz")})
    for picked, wanted in (
        (2, [2]),
        ([3, 0], [3, 0]),
        (slice(1, 3), [1, 2]),
        (np.array([True, False, False, True]), [0, 3]),
    ):
        part = inputs[picked]
        assert part.ids == tuple(inputs.ids[i] for i in wanted) and len(part) == len(wanted)
        assert part.columns["k"].tolist() == ["wxyz"[i] for i in wanted] and part.blocks == inputs.blocks
        assert part.main[0].equal(inputs.main[wanted[0]])
    assert len(inputs[[]]) == 0
    assert inputs.block_mask("a").tolist() == [True, True, False, False, False, False]
    pixels = Inputs.of(torch.randn(2, 3, 4, 4), blocks={"corner": torch.ones(4, 4).tril().bool()})
    assert pixels.block_mask("corner").shape == (3, 4, 4) and int(pixels.block_mask("corner").sum()) == 30
    for block in ((0, 7), (3, 3), (-1, 2), torch.ones(6), torch.ones(5).bool()):
        with pytest.raises(InputsError, match="block 'a'"):
            Inputs.of(torch.randn(4, 6), blocks={"a": block})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "empty list"),
        (torch.zeros(0, 3), "0 rows"),
        ("text", "a single text"),
        (3, "data of type int"),
        ([1, 2], "a list of int"),
        ([torch.ones(2), "x"], "a list of Tensor, str"),
        ([torch.ones(2), torch.ones(3)], "rows of different shapes"),
        ({"a": [1, 2]}, "none of the fields"),
        ([{"input_ids": [1]}, {"input_ids": [1], "k": 2}], "1 of 2 rows have no 'k', the first is row 0"),
        ({"input_ids": [[1], []]}, "no tokens"),
        ({"input_ids": [["a"]]}, "cannot be made into tensors"),
        (torch.tensor(3.0), "single number"),
        ({"input_ids": [[1], [2]], "attention_mask": [[1]]}, "different numbers of rows: 'input_ids' 2, 'attention_m"),
        ({"a": torch.ones(5, 2), "b": torch.ones(3, 2)}, "different numbers of rows: 'a' 5, 'b' 3"),
        ({"b": torch.ones(3, 2), "a": torch.ones(5, 2)}, "different numbers of rows: 'b' 3, 'a' 5"),
        (DataLoader(TensorDataset(torch.ones(4, 2)), shuffle=True), "a DataLoader that shuffles"),
        ({"question": ["w3", "w4"], "answer": ["w5", "w6"]}, "any of the fields 'question', 'answer'"),
        ([[0.1, 0.2], [0.3, 0.4]], r"(?s)a list of list.*torch.tensor\(data\)"),
        (TensorDataset(torch.ones(4, 2)), r"(?s)TensorDataset.*DataLoader\(data"),
        ((row for row in torch.ones(4, 2)), r"(?s)generator.*list\(data\)"),
    ],
)
def test_bad_data(data: Any, message: str) -> None:
    with pytest.raises(InputsError, match=message):
        Inputs.of(data)


def test_batches_hold_every_input_once() -> None:
    inputs = Inputs.of([{"input_ids": row} for row in [*IDS, [1, 2], [5, 6, 7]]])
    batches = list(inputs.batches(2, side="left", accepts=GPT2))
    assert [batch.rows.tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    first = batches[0]
    assert first.main.tolist() == [[3, 4, 5], [0, 0, 6]] and first.mask is not None
    assert first.extra["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert first.extra["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]
    args, kwargs = first.call
    assert args == () and set(kwargs) == {"input_ids", "attention_mask", "position_ids"}
    right = next(inputs.batches(2, side="right", accepts=GPT2, fill=9))
    assert right.main.tolist() == [[3, 4, 5], [6, 9, 9]] and set(right.extra) == {"attention_mask"}
    needy = next(inputs.batches(1, side="right", accepts=GPT2, needs=("position_ids",)))
    assert needy.extra["position_ids"].tolist() == [[0, 1, 2]]
    # Where the model takes no mask, padding could reach it: only rows of equal length go together.
    alone = list(inputs.batches(8))
    assert sorted(row for batch in alone for row in batch.rows) == [0, 1, 2, 3, 4]
    assert all(batch.mask is not None and bool(batch.mask.all()) and not batch.extra for batch in alone)


def test_repeated_and_changed_batches() -> None:
    inputs = Inputs.of([{"input_ids": row, "S": k} for k, row in enumerate(IDS)])
    batch = next(inputs.batches(3, accepts=GPT2))
    twice = batch.take(np.repeat(np.arange(len(batch)), 2))
    assert twice.rows.tolist() == [0, 0, 1, 1, 2, 2] and twice.columns["S"].tolist() == [0, 0, 1, 1, 2, 2]
    assert twice.main[::2].equal(batch.main) and twice.mask is not None and twice.mask.shape == (6, 4)
    other = batch.with_main(batch.main + 1)
    assert other.main.equal(batch.main + 1) and other.call[1]["attention_mask"] is batch.extra["attention_mask"]


def test_positional_token_ids_for_models_without_names() -> None:
    net = nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.LazyLinear(2))
    net(torch.zeros(1, 3).long())
    model = open_model(net)
    batch = next(model.batches(model.inputs([{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5, 6]}])))
    assert model.logits(batch).shape == (2, 2)


def test_packing() -> None:
    for inputs in (
        Inputs.of([{"input_ids": row, "token_type_ids": row} for row in IDS], accepts=GPT2),
        Inputs.of(torch.randn(3, 4), blocks={"a": (0, 2)}),
        Inputs.of({0: torch.randn(3, 4), 1: torch.randn(3, 2)}),
    ):
        again = unpack(*pack(inputs))
        assert again.digests == inputs.digests and again.blocks == inputs.blocks and again.ids == inputs.ids
        assert list(again.fields) == list(inputs.fields) and list(again.columns) == list(inputs.columns)


def test_inputs_of_a_model(model_of: Callable[[str], nn.Module], tokenizer: Any) -> None:
    model = open_model(model_of("gpt2"), tokenizer=tokenizer)
    batch = next(model.batches(model.inputs(WORDS)))
    again = next(model.batches(model.inputs([{"input_ids": row} for row in IDS])))
    assert model.logits(batch).equal(model.logits(again)) and batch.main.shape == (3, 4)
    assert [len(b) for b in model.batches(model.inputs(WORDS), 2)] == [2, 1]


def test_a_single_input_without_its_batch_axis_is_named():
    with pytest.raises(InputsError, match="one row per input"):
        Inputs.of(torch.zeros(4))
    assert len(Inputs.of(torch.zeros(4)[:, None])) == 4


def test_arrays_of_texts(tokenizer: Any) -> None:
    for kind in (np.array(WORDS), np.array(WORDS, dtype=object), np.array(WORDS, dtype="S").astype("U")):
        assert rows(Inputs.of(kind, tokenizer=tokenizer, accepts=GPT2)) == IDS


def test_padding_without_a_mask_is_noticed(tokenizer: Any) -> None:
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    encoded = tokenizer(WORDS, padding=True, return_tensors="pt")
    ids = encoded["input_ids"]
    with pytest.raises(InputsError, match="2 of 3 rows of input_ids begin or end with the tokenizer's padding"):
        Inputs.of({"input_ids": ids}, tokenizer=tokenizer, accepts=GPT2)
    assert len(Inputs.of({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, tokenizer=tokenizer)) == 3
    assert len(Inputs.of({"input_ids": ids[2:]}, tokenizer=tokenizer)) == 1


def test_a_full_batch_says_nothing_of_its_decoders_tokens():
    mask = torch.ones(2, 3).bool()
    decoder = torch.tensor([[1, 1], [1, 0]])
    fields = {"input_ids": mask.long(), "decoder_input_ids": decoder, "decoder_attention_mask": decoder}
    batch = Batch(np.arange(2), fields, mask, full=True)
    assert not batch.decoded.full and batch.take(np.array([1])).full
