from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as draws

from causalmad import catalogue as catalogue_module
from causalmad import targets
from causalmad.catalogue import Entry
from causalmad.config import describe, from_config, parse_spec, split_outside, split_spec, to_config
from causalmad.errors import SpecError
from causalmad.signatures import Conditional, Shares
from causalmad.targets import Target


@dataclass(frozen=True)
class Everything:
    """A part with every kind of option."""

    count: int = 1
    share: float | int = 0.5
    flag: bool = False
    form: Literal["rank", "place", "both"] = "both"
    power: Literal[1, 2] = 1
    sites: str | tuple[str, ...] = "heads"
    sizes: tuple[int, ...] = (1, 2)
    limit: int | None = None
    target: Target = targets.TopMargin()  # noqa: RUF009
    anything: Any = None


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The part above as one more target, so that parts in parts can be tried without the other folders."""
    known = catalogue_module.catalogue
    entry = Entry("targets", "everything", "A part.", __name__, "Everything")
    monkeypatch.setattr(Entry, "load", lambda self: Everything if self is entry else LOAD(self))

    def more(kind: str) -> tuple[Entry, ...]:
        return (*known(kind), entry) if kind == "targets" else known(kind) if kind == "references" else ()

    monkeypatch.setattr(catalogue_module, "catalogue", more)


LOAD = Entry.load


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("everything", Everything()),
        ("everything[]", Everything()),
        (" everything[count=3, share=2] ", Everything(count=3, share=2)),
        ("everything[share=0.25,flag=true]", Everything(share=0.25, flag=True)),
        ("everything[form=rank,power=2]", Everything(form="rank", power=2)),
        ("everything[sites=mlps]", Everything(sites="mlps")),
        ("everything[sites=mlps;heads@-1]", Everything(sites=("mlps", "heads@-1"))),
        ("everything[sizes=3;4;5]", Everything(sizes=(3, 4, 5))),
        ("everything[sizes=3]", Everything(sizes=(3,))),
        ("everything[limit=7]", Everything(limit=7)),
        ("everything[limit=None]", Everything(limit=None)),
        ("everything[target=divergence]", Everything(target=targets.Divergence())),
        ("everything[target=logit-difference[a=3,b=4],count=2]", Everything(2, target=targets.LogitDifference(3, 4))),
        ("everything[anything=3]", Everything(anything=3)),
        ("everything[anything=some words]", Everything(anything="some words")),
    ],
)
def test_specs_from_text_and_back_through_json(text: str, wanted: Everything) -> None:
    spec = parse_spec("targets", text)
    assert spec == wanted and type(spec.share) is type(wanted.share)
    written = json.loads(json.dumps(to_config("targets", spec)))
    assert from_config("targets", written) == wanted
    assert written["name"] == "everything"


def test_scikit_learn_keeps_its_options() -> None:
    spec = parse_spec("references", "local-outlier-factor[n_neighbors=7]")
    assert (spec.n_neighbors, spec.novelty) == (7, True)
    again = from_config("references", json.loads(json.dumps(to_config("references", spec))))
    assert again.get_params() == spec.get_params()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("evrything", "no target is called 'evrything'"),
        ("everything[cuont=3]", "has no option 'cuont'"),
        ("everything[count=3.5]", "count]='3.5' does not fit|everything\\[count\\]='3.5' does not fit"),
        ("everything[flag=1]", "does not fit"),
        ("everything[form=ranks]", "does not fit"),
        ("everything[sizes=3;x]", "does not fit"),
        ("everything[target=top]", "does not fit"),
        ("everything[count=3", "no closing bracket"),
        ("everything[count]", "is no option"),
        ("everything[=3]", "is no option"),
        ("everything[count=1,count=2]", "stands twice"),
        ("logit-difference[a=1]", "cannot be made"),
    ],
)
def test_wrong_text(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_spec("targets", text)


@pytest.mark.parametrize(
    ("text", "needed", "tries"),
    [
        ("everything[count=3.5]", "a whole number", ()),
        ("everything[share=much]", "a number", ()),
        ("everything[flag=1]", "true or false", ()),
        ("everything[sizes=3;x]", "a whole number, several as a;b", ()),
        ("everything[limit=few]", "a whole number or none", ()),
        ("everything[form=ranks]", "rank or place or both", ("rank",)),
        ("everything[target=top-marin]", "a target", ("top-margin",)),
        ("everything[count=1,2]", "key=value, a list as key=a;b", ("everything[count=1;2]",)),
        ("everything[count=1,b[c=2]]", "key=value, a list as key=a;b", ("everything[count=1;b[c=2]]",)),
    ],
)
def test_what_was_needed_is_in_words(text: str, needed: str, tries: tuple[str, ...]) -> None:
    with pytest.raises(SpecError) as raised:
        parse_spec("targets", text)
    assert raised.value.needed == needed
    assert raised.value.tries[: len(tries)] == tries


def test_a_misspelt_part_inside_another_names_the_nearest_three() -> None:
    with pytest.raises(SpecError) as raised:
        parse_spec("targets", "everything[target=top-marin[a=1]]")
    assert len(raised.value.tries) == 3
    assert raised.value.causes == ("no target is called 'top-marin'",)


def test_unknown_options_name_the_nearest() -> None:
    with pytest.raises(SpecError) as raised:
        parse_spec("targets", "everything[cuont=3]")
    assert raised.value.tries[0] == "count" and len(raised.value.tries) == 3
    with pytest.raises(SpecError, match="no options at all"):
        parse_spec("targets", "top-margin[a=1]")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"name": 3},
        {"name": "everything", "options": []},
        {"name": "everything", "options": {"cuont": 1}},
        {"name": "os.system", "options": {}},
        {"name": "everything", "options": {"target": {"kind": "os", "name": "system"}}},
        {"name": "everything", "options": {"target": {"name": "top-margin"}}},
    ],
)
def test_wrong_files(config: Any) -> None:
    with pytest.raises(SpecError):
        from_config("targets", config)


def test_functions_are_never_written_down() -> None:
    with pytest.raises(SpecError, match="cannot be written down"):
        to_config("targets", Everything(target=lambda logits: logits[:, 0]))  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="not in the catalogue"):
        to_config("targets", object())


def test_descriptions_tell_what_differs() -> None:
    assert describe(Everything(count=3)) == {"count": 3} and describe(Everything()) == {} and describe(3) == {}
    assert describe(Conditional()) == {} and describe(Shares(of="all")) == {"of": "all"}


def test_splitting() -> None:
    assert split_spec("a[b=c[d=1,e=2],f=]") == ("a", {"b": "c[d=1,e=2]", "f": ""})
    assert split_outside("a,b[c,d],e", ",") == ["a", "b[c,d]", "e"] and split_outside("", ",") == [""]


WORDS = draws.lists(
    draws.text("abc[]+", max_size=5).filter(lambda t: t.count("[") == t.count("]") and "]" not in t.split("[")[0])
)


@for_all(WORDS)
def test_what_is_joined_outside_brackets_is_split_again(words: list[str]) -> None:
    balanced = [word for word in words if _balanced(word)]
    assert split_outside(",".join(balanced), ",") == (balanced or [""])
    wrapped = f"x[{','.join(balanced)}]"
    assert split_outside(wrapped, ",") == [wrapped]


def _balanced(word: str) -> bool:
    depth = 0
    for letter in word:
        depth += (letter == "[") - (letter == "]")
        if depth < 0:
            return False
    return depth == 0
