"""Interchange interventions as Geiger et al. 2021 define them: one base and one source at a time, with plain hooks."""

from tests.twins.resampling_profile import divergence, margin, run
from tests.twins.scrubbing import OUTPUT, look, mean, patched, sd, statistics


def interchange(model, variable, base, source):
    """Logits of the base with the variable's activations from the source."""
    return patched(model, base, look(model, source, variable.spots))


def answer(variables, node, base, replaced):
    """The high-level model's value of a node on a base, with some variables set."""
    if node in replaced:
        return replaced[node]
    variable = variables[node]
    if not variable.causes:
        return variable.value(base.known)
    return variable.mechanism(**{cause: answer(variables, cause, base, replaced) for cause in variable.causes})


def accuracy(model, variables, name, pairs):
    """(accuracy, share of changed answers) of a variable over pairs (base, source)."""
    right, changed = [], []
    for base, source in pairs:
        expected = answer(variables, OUTPUT, base, {name: variables[name].value(source.known)})
        right.append(int(interchange(model, variables[name], base, source).argmax()) == expected)
        changed.append(expected != answer(variables, OUTPUT, base, {}))
    return mean(right), mean(changed)


def agreement(runs, expected):
    """Share of expected answers, mean and sd of their log-probability; zeros without any run."""
    if not runs:
        return [0.0] * 3
    right = [float(int(logits.argmax()) == wanted) for logits, wanted in zip(runs, expected, strict=True)]
    sure = [float(logits.log_softmax(-1)[wanted]) for logits, wanted in zip(runs, expected, strict=True)]
    return [mean(right), mean(sure), sd(sure)]


def predicted(model, variables, datum, choices):
    """All columns of one input when the graph is a causal model."""
    found = []
    for name, variable in variables.items():
        if name == OUTPUT:
            continue
        for role in ("base", "source"):
            runs, expected = [], []
            for choose in choices:
                partner = choose.any(f"{role}/{name}")
                base, source = (datum, partner) if role == "base" else (partner, datum)
                runs.append(interchange(model, variable, base, source))
                expected.append(answer(variables, OUTPUT, base, {name: variable.value(source.known)}))
            found += agreement(runs, expected)
    return [*found, 0.0]


def unpredicted(model, variables, datum, choices):
    """All columns of one input when there are no mechanisms."""
    clean, found, failed, tried = run(model, datum.row), [], 0, 0
    for name, variable in variables.items():
        if name == OUTPUT:
            continue
        value = variable.value(datum.known)
        same = [choose.matched(name, value, f"same/{name}") for choose in choices]
        other = [choose.mismatched(name, value, f"other/{name}") for choose in choices]
        failed += sum(partner is None for partner in [*same, *other])
        tried += len(same) + len(other)
        same, other = ([partner for partner in some if partner is not None] for some in (same, other))
        theirs = [int(run(model, partner.row).argmax()) for partner in other]
        found += statistics(clean, [interchange(model, variable, datum, partner) for partner in same])
        found += agreement([interchange(model, variable, datum, partner) for partner in other], theirs)
        found += given(model, variable, datum, same)
        swapped = [interchange(model, variable, partner, datum) for partner in other]
        found += agreement(swapped, [int(clean.argmax())] * len(other))
    return [*found, failed / tried]


def given(model, variable, datum, partners):
    """What an input's value does to partners that have the same: each partner's own output is its clean one."""
    kl, change, flips = [], [], []
    for partner in partners:
        clean, logits = run(model, partner.row), interchange(model, variable, partner, datum)
        top = int(clean.argmax())
        kl.append(divergence(clean, logits))
        change.append(margin(logits, top) - margin(clean, top))
        flips.append(float(int(logits.argmax()) != top))
    return [mean(kl), mean(change), mean(flips)] if partners else [0.0] * 3
