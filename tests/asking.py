"""A reference that asks for everything that a fit can be given, and is fitted again on load."""

import numpy as np
from sklearn.ensemble import IsolationForest

from causalmad.references.estimators import fit_reference


class Asking:
    """A reference whose fit names everything that it can be given."""

    def fit(self, X, *, untrusted, groups, names, classes, seed=0):
        known = {"rows": X, "untrusted": untrusted, "groups": groups, "names": names, "classes": classes, "seed": seed}
        return FittedAsking(known, fit_reference(IsolationForest(n_estimators=5), X, seed=seed))


class FittedAsking:
    def __init__(self, known, inner):
        self.known, self.inner = known, inner

    def score_samples(self, X):
        return self.inner.score_samples(X) - np.square(X - self.known["untrusted"].mean(0)).mean(axis=1)

    def state(self):
        return self.inner.state()  # which says that it is fitted again
