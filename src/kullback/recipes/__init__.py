"""One readable training script for every use of the Kullback-Leibler divergence, each on real data where it exists.

Every recipe is one file, read from top to bottom, with a `run(seeds, steps, out)` that trains, compares with a baseline
over several seeds, draws a picture if `out` names one, and returns a `Result`. `kullback recipes` lists them. Their
packages are an extra: pip install 'kullback[recipes]'.
"""

NAMES = (
    "seq2seq_label_smoothing",
    "uda_text",
    "vae_digits",
    "two_modes",
    "ppo_cartpole",
    "rdrop",
    "fgan",
    "calibrated_recommendation",
    "anomaly",
)
