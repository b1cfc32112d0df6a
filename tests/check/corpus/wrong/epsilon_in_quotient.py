import numpy as np

EPS = 1e-12


def kl(p, q):
    return np.sum(p * np.log((p + EPS) / (q + EPS)))  # expect: KLB008
