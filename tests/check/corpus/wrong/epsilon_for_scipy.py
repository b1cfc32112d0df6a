from scipy.stats import entropy


def drift(before, after):
    return entropy(before + 1e-9, after + 1e-9)  # expect: KLB008
