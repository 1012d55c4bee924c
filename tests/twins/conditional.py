"""Ridge residuals, refitted without each trusted row in turn."""

import numpy as np
from sklearn.linear_model import Ridge


def conditional(given, columns, penalties):
    """(n, d) leave-one-out residuals over their deviation, the penalty of each column by their squared mean.

    ``given`` is scaled by its deviation; ``penalties`` are sklearn's alphas.
    """
    n = len(given)
    scaled = given / given.std(0)
    best = [None] * columns.shape[1]
    for alpha in penalties:
        residuals = np.empty_like(columns)
        for i in range(n):
            others = [j for j in range(n) if j != i]
            fitted = Ridge(alpha=alpha).fit(scaled[others], columns[others])
            residuals[i] = columns[i] - fitted.predict(scaled[[i]])[0]
        for d in range(columns.shape[1]):
            error = float(np.mean(residuals[:, d] ** 2))
            if best[d] is None or error < best[d][0]:
                best[d] = (error, alpha, residuals[:, d])
    return np.stack([r / np.sqrt(e) for e, _, r in best], axis=1), [alpha for _, alpha, _ in best]
