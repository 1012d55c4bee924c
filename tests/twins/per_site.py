"""Sites scored one by one, with folds, p-values and combinations written out."""

import math
import statistics

import numpy as np

from causalmad.references.mahalanobis import Mahalanobis


def unseen_scores(trusted, fold):
    found = np.empty(len(trusted))
    for i, row in enumerate(trusted):
        found[i] = -Mahalanobis().fit(trusted[fold != fold[i]]).score_samples(row[None])[0]
    return found


def p_value(unseen, score):
    n = len(unseen)
    p = (1 + sum(one >= score for one in unseen)) / (n + 1)
    return min(max(p, 1 / (n + 1)), n / (n + 1))


def scores(trusted, groups, rows, combine, fold):
    sites = list(dict.fromkeys(groups))
    columns = [[j for j, group in enumerate(groups) if group == site] for site in sites]
    unseen = [unseen_scores(trusted[:, own], fold) for own in columns]
    fits = [Mahalanobis().fit(trusted[:, own]) for own in columns]
    normal = statistics.NormalDist().inv_cdf
    quantiles = [[normal(1 - p_value(one, score)) for score in one] for one in unseen]
    total = sum(np.corrcoef(a, b)[0, 1] for a in quantiles for b in quantiles)
    found = []
    for row in rows:
        raw = [-fit.score_samples(row[None, own])[0] for fit, own in zip(fits, columns)]
        z = [(score - statistics.mean(one)) / statistics.pstdev(one) for score, one in zip(raw, unseen)]
        p = [p_value(one, score) for score, one in zip(raw, unseen)]
        found.append(
            {
                "mean": statistics.mean(z),
                "max": max(z),
                "cauchy": statistics.mean(math.tan((0.5 - one) * math.pi) for one in p),
                "harmonic": statistics.mean(1 / one for one in p),
                "fisher": -2 * sum(math.log(one) for one in p),
                "stouffer": sum(normal(1 - one) for one in p) / math.sqrt(total),
            }[combine]
        )
    return np.array(found)
