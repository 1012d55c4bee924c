"""Non-negative PU learning of a linear classifier: the paper's risk in loops, gradient and Adam by hand."""

import math

import numpy as np


def loss(t):
    """The sigmoid loss of a margin."""
    return 1 / (1 + math.exp(t))


def risks(trusted, untrusted, share):
    normal = share * sum(loss(g) for g in trusted) / len(trusted)
    unlabelled = sum(loss(-g) for g in untrusted) / len(untrusted)
    return normal, unlabelled - share * sum(loss(-g) for g in trusted) / len(trusted)


def train(trusted, untrusted, share, penalty, steps, rate):
    """Weights and bias; also the number of steps that went against a negative estimate."""
    d = len(trusted[0])
    w, first, second = np.zeros(d + 1), np.zeros(d + 1), np.zeros(d + 1)
    P, U = np.c_[trusted, np.ones(len(trusted))], np.c_[untrusted, np.ones(len(untrusted))]
    against = 0
    for step in range(1, steps + 1):
        g, h = P @ w, U @ w
        anomalous = risks(g, h, share)[1]
        slope = lambda t: np.array([loss(x) * (1 - loss(x)) for x in t])  # noqa: E731
        of_normal = -share * slope(g) @ P / len(P)
        of_anomalous = slope(h) @ U / len(U) - share * slope(g) @ P / len(P)
        gradient = of_normal + of_anomalous if anomalous >= 0 else -of_anomalous
        against += anomalous < 0
        gradient = gradient + 2 * penalty * np.r_[w[:d], 0]
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        w = w - rate * first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return w[:d], w[d], against
