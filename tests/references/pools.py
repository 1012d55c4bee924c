"""Trusted rows, an unlabelled pool and test rows that are in neither."""

import numpy as np
from sklearn.metrics import roc_auc_score


def rows(n=60, d=5, seed=0):
    """Correlated rows in differing units."""
    draw = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(d, d))
    return draw.normal(size=(n, d)) @ mixing * 10.0 ** np.arange(d) / 100 + np.arange(d)


def pool(n=50, d=5, seed=1, share=0.2, shift=3.0):
    """Rows like the trusted ones, of which the first ``share`` is shifted."""
    found = rows(n, d, seed)
    found[: round(share * n)] += shift * found.std(axis=0) * np.linspace(-1, 1, d)
    return found


def planted(seed, d=50, trusted=2000, untrusted=2000, test=1000, share=0.1, shift=3.5):
    """The case of the peers' QUE: correlated Gaussian rows, anomalies ``shift`` sd away in one direction.

    The sd is that of normal rows in this direction, which is drawn in whitened coordinates. Returns trusted rows, the
    pool, test rows (none of which is in either) and which of the test rows are anomalous.
    """
    draw = np.random.default_rng(seed)
    mixing = np.linalg.qr(draw.normal(size=(d, d)))[0] * np.geomspace(0.3, 3, d)
    mixing = mixing @ np.linalg.qr(draw.normal(size=(d, d)))[0]
    direction = draw.normal(size=d)
    direction *= shift / np.linalg.norm(direction)
    truth = np.arange(untrusted) < share * untrusted
    labels = np.arange(2 * test) >= test
    whitened = (
        draw.normal(size=(trusted, d)),
        draw.normal(size=(untrusted, d)) + truth[:, None] * direction,
        draw.normal(size=(2 * test, d)) + labels[:, None] * direction,
    )
    return *(table @ mixing for table in whitened), labels


def auroc(fitted, X, labels):
    return float(roc_auc_score(labels, -fitted.score_samples(X)))


def stands_alone(fitted, X):
    """Whether every row's score is the same to the last bit alone, among others, and in another order."""
    whole = fitted.score_samples(X)
    alone = np.concatenate([fitted.score_samples(row[None]) for row in X])
    return (
        whole.tobytes() == alone.tobytes()
        and whole.tobytes() == fitted.score_samples(X[::-1])[::-1].tobytes()
        and whole.tobytes() == fitted.score_samples(np.concatenate([X * 7, X]))[len(X) :].tobytes()
    )


def restores(spec, fitted, X):
    """Whether the restored fit gives the same bits, scores and contributions."""
    again = spec.restore({name: np.array(array) for name, array in fitted.state().items()})
    same = again.score_samples(X).tobytes() == fitted.score_samples(X).tobytes()
    if hasattr(fitted, "contributions"):
        same = same and again.contributions(X).tobytes() == fitted.contributions(X).tobytes()
    return same
