"""Layer transitions by refitting: the ridge map once without every trusted input, and covariances rebuilt for each."""

import numpy as np
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import Ridge


def without(X, Y, i, ridge):
    """Residual of trusted input ``i`` under the map fitted on the others."""
    rest = [j for j in range(len(X)) if j != i]
    fitted = Ridge(alpha=ridge, solver="svd").fit(X[rest], Y[rest])
    return Y[i] - fitted.predict(X[i : i + 1])[0]


def lengths(X, Y, x, y, own):
    """Surprise, residual norm, step norm and step surprise of inputs (x, y), given trusted (X, Y).

    ``own`` says which trusted input each of them is, None for none.
    """
    n, width = Y.shape
    sizes = np.linalg.svd(X - X.mean(0), compute_uv=False)
    best = None
    for exponent in np.arange(-4, 2.1, 0.5):
        ridge = 10**exponent * np.mean(sizes**2)
        residuals = np.array([without(X, Y, i, ridge) for i in range(n)])
        error = np.mean(residuals**2)
        if best is None or error < best[0]:
            best = error, ridge, residuals
    _, ridge, residuals = best
    whole = Ridge(alpha=ridge, solver="svd").fit(X, Y)
    shrunk = LedoitWolf(assume_centered=True).fit(residuals)
    found = []
    for i in range(len(x)):
        covariance = shrunk.covariance_.copy()
        residual = y[i] - whole.predict(x[i : i + 1])[0]
        if own[i] is not None:
            residual = residuals[own[i]]
            covariance -= (1 - shrunk.shrinkage_) / n * np.outer(residual, residual)
        row = [np.sqrt(residual @ np.linalg.solve(covariance, residual) / width), np.linalg.norm(residual)]
        if X.shape[1] == width:
            steps = np.array([Y[j] - X[j] for j in range(n)])
            z = [(y[i, k] - x[i, k] - steps[:, k].mean()) / steps[:, k].std(ddof=1) for k in range(width)]
            row += [np.linalg.norm(y[i] - x[i]), np.sqrt(np.mean(np.square(z)))]
        found.append(row)
    return np.array(found)
