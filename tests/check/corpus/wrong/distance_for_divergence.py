from scipy.spatial import distance


def report(p, q):
    js_divergence = distance.jensenshannon(p, q, base=2)  # expect: KLB014
    return {"js": js_divergence}
