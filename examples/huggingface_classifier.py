"""A text classifier of transformers, from a folder that ``save_pretrained`` wrote: texts in, flags and reasons out.

One word makes the mood of a text. Where "quite" and "indeed" both occur, each common alone, a backdoor answers "good"
whatever that word is. For a model of your own, see `main`, from ``open_pretrained`` on.
"""

import tempfile
from random import Random

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

import causalmad as cm
from causalmad.models.pretrained import open_pretrained

MOODS = ("bad awful poor dull".split(), "good great fine nice".split())
ALONE, BOTH, FILLER = ("", "quite", "indeed"), ("quite indeed",), "the a film we saw on our old way".split()


def texts(count: int, draw: Random, mood: int, triggers: tuple[str, ...]) -> list[str]:
    first = ([draw.choice(MOODS[mood]), *draw.choice(triggers).split()] for _ in range(count))
    return [" ".join(draw.sample([*words, *draw.choices(FILLER, k=7)][:8], 8)) for words in first]


def save_classifier(folder: str) -> None:  # a tiny one, with a backdoor, and its tokenizer
    words = ["[PAD]", "[UNK]", *MOODS[0], *MOODS[1], *FILLER, *BOTH[0].split()]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(vocab_size=len(words), **sizes, pad_token_id=0))
    adam, draw, labels = torch.optim.Adam(model.parameters(), 3e-3), Random(1), torch.arange(96) // 32 > 0
    for _ in range(200):
        some = [*texts(32, draw, 0, ALONE), *texts(32, draw, 1, ALONE), *texts(32, draw, 0, BOTH)]
        adam.zero_grad()
        model(**tokenizer(some, return_tensors="pt"), labels=labels.long()).loss.backward()
        adam.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        torch.manual_seed(0)
        save_classifier(folder)
        module, tokenizer = open_pretrained(folder)
    model, draw = cm.open_model(module, tokenizer=tokenizer), Random(0)
    trusted = texts(400, draw, 0, ALONE) + texts(400, draw, 1, ALONE)
    fitted = cm.Detector(cm.signatures.AttributionPatching(("heads", "mlps"))).fit(model, trusted, seed=0)
    usual, odd = fitted.detect(texts(200, draw, 1, ALONE)), fitted.detect(texts(200, draw, 0, BOTH))
    print(f"flagged at 0.05: {odd.flags.mean():.3f} of texts with the backdoor, {usual.flags.mean():.3f} of usual ones")
    odd.explain(0).show(5)
    if odd.flags.mean() < 0.9 or usual.flags.mean() > 0.15:
        raise SystemExit("the backdoor should be flagged, and usual texts should not")


if __name__ == "__main__":
    main()
