from scipy.spatial.distance import jensenshannon


def report(p, q):
    js_distance = jensenshannon(p, q)
    js_divergence = jensenshannon(p, q) ** 2
    return js_distance, js_divergence
