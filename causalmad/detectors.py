"""Detectors by name: every method of the field in its correct form, and ours, as one line of text each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from causalmad.config import split_outside
from causalmad.errors import SpecError, nearest

if TYPE_CHECKING:
    from causalmad.detector import Detector

# Three views of an input: what the model holds, what its answer is attributed to, and what the answer depends on. Each
# view is scored by itself, so that none drowns in the columns of another.
_VIEWS = "concat[signatures=activations;relevance-patching;resampling-profile]+per-site[each=part,combine={}]"
# A fourth looks at how the activations go together, class by class: it sees quirks of which the others see little.
_FOUR = _VIEWS.replace("resampling-profile]", "resampling-profile;gram-deviation]")
_PAIR = "concat[signatures={};{}]+per-site[each=part,combine=cauchy]"

CANDIDATES: Mapping[str, str] = MappingProxyType(
    {
        "views-cauchy": _VIEWS.format("cauchy"),
        "views-fisher": _VIEWS.format("fisher"),
        "views-stouffer": _VIEWS.format("stouffer"),
        "views-harmonic": _VIEWS.format("harmonic"),
        "views-mean": _VIEWS.format("mean"),
        "views-and-gram-cauchy": _FOUR.format("cauchy"),
        "views-and-gram-fisher": _FOUR.format("fisher"),
        "views-and-gram-harmonic": _FOUR.format("harmonic"),
        "activations-and-profile": _PAIR.format("activations", "resampling-profile"),
        "activations-and-relevance": _PAIR.format("activations", "relevance-patching"),
        "relevance-and-profile": _PAIR.format("relevance-patching", "resampling-profile"),
    }
)
"""The combinations from which :func:`recommended` was chosen, by their worst task."""

DETECTORS: Mapping[str, str] = MappingProxyType(
    {
        # Distances on activations: the baseline of the field, and what it has been given since.
        "activations": "activations+mahalanobis",
        "activations-two-sided": "activations+mahalanobis[two_sided=true]",
        "activations-per-layer": "activations+per-site",
        "activations-relative": "activations+relative-mahalanobis",
        "activations-residual": "activations+principal-components",
        "activations-neighbours": "activations+nearest-neighbours",
        "activations-lof": "activations+local-outlier-factor",
        "activations-isolation-forest": "activations+isolation-forest",
        "activations-vae": "activations+variational-autoencoder",
        "layer-transitions": "layer-transitions+mahalanobis",
        "ted": "topological-trajectory+mahalanobis",
        "beatrix": "gram-deviation+mahalanobis",
        "sparse-code": "sparse-code+mahalanobis",
        "probe-logits": "probe-logits+mahalanobis",
        "finetuning": "finetuning-shift+mahalanobis",
        "locally-consistent-abstraction": "locally-consistent-abstraction+mahalanobis",
        # The same with an unlabelled pool.
        "activations-que": "activations+quantum-entropy",
        "activations-likelihood-ratio": "activations+likelihood-ratio",
        "activations-em": "activations+two-gaussians",
        "activations-spectral": "activations+spectral-signatures",
        # Attributions as they were published, and with shares and logarithms.
        "attribution-mean": "attribution-patching[normalise=false,log=false]+mahalanobis",
        "attribution-components": "attribution-patching[baseline=components,normalise=false,log=false]+mahalanobis",
        "gradient-norms": "gradient-norms+mahalanobis",
        "probe-shift": "probe-shift+mahalanobis",
        "functional-coupling": "functional-coupling+mahalanobis",
        "attribution-patching": "attribution-patching+mahalanobis",
        # Profiles of what an output depends on.
        "resampling-profile": "resampling-profile+mahalanobis",
        "relevance-patching": "relevance-patching+mahalanobis",
        "sufficiency": "sufficiency+mahalanobis",
        **CANDIDATES,
    }
)


RECOMMENDED = "views-and-gram-fisher"


def recommended(model: Any = None) -> Detector:
    """The detector to start with, for any model and inputs.

    Four views of every input, each scored by its Mahalanobis distance among trusted inputs: what the model holds
    (activations), what its answer is attributed to (relevance patching), what the answer depends on (resampling
    profile), and how activations go together, class by class (Gram deviation). Their p-values are combined by Fisher's
    method: an input is odd where one view finds it very odd, or several a little. It is what the tasks of the core
    suite choose from :data:`CANDIDATES` by their worst one; ``benchmarks/leaderboard.md`` has it beside all others,
    judged on each task by a choice made without that task.

    Its activations make it flag normal inputs that are merely new. Where such are to be expected, the candidate without
    them (``relevance-and-profile``) flags fewer.

    Args:
        model: opened once, to see that it can be; whatever :func:`causalmad.open_model` takes.

    Raises:
        ModelError: when the model cannot be opened.

    References:
        Fisher 1932, Statistical methods for research workers. The four parts name their own.
    """
    if model is not None:
        from causalmad.models import open_model

        open_model(model)
    return detector(RECOMMENDED)


def names() -> dict[str, str]:
    """Name of a ready-made detector -> its text; ``recommended`` is the first of them."""
    return {"recommended": DETECTORS[RECOMMENDED], **DETECTORS}


def spelled_out(text: str) -> str:
    """A detector as its parts: what a ready-made one stands for, or the text itself.

    Args:
        text: a name of :func:`names`, or ``signature+reference``.

    Raises:
        SpecError: when it is a single word and no detector's name, with the nearest three.
    """
    if len(split_outside(text, "+")) > 1:
        return text
    word, known = text.strip(), names()
    if word in known:
        return known[word]
    raise SpecError(
        f"no detector is called {text!r}",
        needed="signature+reference, signature+reference+calibrator, or a name of `causalmad list detectors`",
        tries=[*nearest(word.partition("[")[0], known), f"'{word or 'activations'}+mahalanobis'"],
    )


def detector(name: str) -> Detector:
    """The detector of that name, or the recommended one.

    Args:
        name: of :data:`DETECTORS`, or ``recommended``.

    Raises:
        SpecError: when there is none, with the nearest three.
    """
    if name == "recommended":
        return recommended()
    if name not in DETECTORS:
        raise SpecError(f"no detector is called {name!r}", tries=nearest(name, list(DETECTORS)))
    from causalmad.names import parse_detector  # names alone need no torch

    return parse_detector(DETECTORS[name])
