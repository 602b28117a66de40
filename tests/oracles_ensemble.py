"""Slow, obvious truth about minibatches: every one is enumerated, in float64, without the code under test."""

import itertools
import math

import numpy as np


def gradients(num_samples, num_params=6, seed=0, signal=1.0):
    """Rows of very different lengths, so that R is not a function of the moments, about a common mean."""
    generator = np.random.default_rng(seed)
    scales = generator.uniform(0.3, 3, size=(num_samples, 1))
    return scales * generator.normal(size=(num_samples, num_params)) + signal * generator.normal(size=num_params)


def minibatches(num_samples, batch_size, replacement=False):
    """All equally likely minibatches, [M, B]."""
    if replacement:
        return np.array(list(itertools.product(range(num_samples), repeat=batch_size)))
    return np.array(list(itertools.combinations(range(num_samples), batch_size)))


def stratified_minibatches(members, batch_counts):
    """All minibatches with a given number of samples from each group, [M, B]."""
    of_group = [
        itertools.combinations(np.flatnonzero(members == group), count) for group, count in enumerate(batch_counts)
    ]
    return np.array([sum(parts, ()) for parts in itertools.product(*of_group)])


def order_parameters(G, batches):
    """Every quantity as the average over the ensemble that its definition names."""
    g = G[batches].mean(1)
    mean = G.mean(0)
    A0 = mean @ mean
    shares = g @ mean / A0  # λ
    across = g - shares[:, None] * mean
    units = g / np.linalg.norm(g, axis=1, keepdims=True)
    centred = G - mean
    return {
        "A": (g**2).sum(1).mean(),
        "A0": A0,
        "A_perp": (across**2).sum(1).mean(),
        "A_par": (shares**2).mean() * A0,
        "D": np.trace(np.cov(g.T, bias=True).reshape(G.shape[1], -1)),
        "D_par": shares.var() * A0,
        "R": (units.mean(0) ** 2).sum(),  # independent pairs, coincidences included
        "sigma_lambda2": shares.var(),
        "noise_scale": (centred**2).sum() / len(G) / A0,
    }


def group_activity(G, batches, members, group):
    """⟨‖g_µ‖²⟩ with g_µ the group's sum in the minibatch divided by B."""
    inside = (members[batches] == group)[:, :, None]
    return (((G[batches] * inside).sum(1) / batches.shape[1]) ** 2).sum(1).mean()


def cosine(a, b):
    return a @ b / math.sqrt((a @ a) * (b @ b))


def cosines(G, members):
    """Between the groups' mean gradients, the mean of all last."""
    means = [G[members == group].mean(0) for group in range(members.max() + 1)] + [G.mean(0)]
    return np.array([[cosine(a, b) for b in means] for a in means])


def alignment_estimate(G, batches):
    """Mean cosine over all ordered pairs µ ≠ ν of the drawn minibatches."""
    g = G[batches].mean(1)
    units = g / np.linalg.norm(g, axis=1, keepdims=True)
    pairs = units @ units.T
    count = len(batches)
    return (pairs.sum() - np.trace(pairs)) / (count * (count - 1))


def leave_one_out(function, G):
    """function(G without row i) for each i."""
    return np.array([function(np.delete(G, i, axis=0)) for i in range(len(G))])


def jackknife_error(values):
    return math.sqrt((len(values) - 1) / len(values) * ((values - values.mean()) ** 2).sum())


def distinct_average(function, num_samples, order):
    """Mean of function(i, j, …) over all ordered choices of distinct samples."""
    return np.mean([function(*chosen) for chosen in itertools.permutations(range(num_samples), order)])
