"""A run folder of `kullback compare` that no model made: the shapes of its files, with numbers drawn."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

HOSTILE = ("<script>hurt = 1</script>", "\n", "\n\n    ", "\x00", "\u202e", "⟨E2⟩⟨80⟩", " שלום", "\t", "' onx=\"", "")
TEXT = """the of and to in is a for that with as it on be this are by or an if from returns not which value object list
string file name function called when each all other one will true false none default number given argument raises
error bytes class method module path iterator sequence items dictionary keyword optional"""
WORDS = TEXT.split()
PIECES = (*HOSTILE, *(f" {word}" for word in WORDS), *WORDS, ".", ",", "(", ")", ":", " =", "0", "1")
CANDIDATES = {"bf16": 3e-5, "int8 <b>": 1.2e-5, "int4": 2.5e-3}
CLASSES = ("begins a word", "within a word", "number", "punctuation", "space", "other")
EDGES = [10.0 ** (k / 4) for k in range(-44, 9)]


def pieces(ids):
    return [PIECES[i] for i in ids]


def statistic(name, x, document, unit="", scale=1.0):
    """As `models.clusters` makes one."""
    x, n = np.asarray(x, float), len(x)
    mean = float(x.mean())
    sums, counts = np.bincount(document, x), np.bincount(document)
    groups = int((counts > 0).sum())
    error = math.sqrt(groups / (groups - 1) * float(((sums - counts * mean) ** 2).sum())) / n if groups > 1 else None
    iid = float(x.std() / math.sqrt(max(n - 1, 1)))
    made = {
        "value": mean,
        "iid": iid,
        "clustered": error,
        "low": error and mean - 2 * error,
        "high": error and mean + 2 * error,
    }
    return {"name": name, "unit": unit} | {key: None if v is None else scale * v for key, v in made.items()}


def bare(name, value, unit=""):
    return {"name": name, "value": value, "iid": None, "clustered": None, "low": None, "high": None, "unit": unit}


def blocks(t):
    document, kl = t["document"], t["kl"]
    nll, base = -t["log_q"], -t["log_p"]
    return {
        "Perplexity statistics": [
            bare("Mean PPL(Q)", float(np.exp(nll.mean()))),
            bare("Mean PPL(base)", float(np.exp(base.mean()))),
            statistic("Mean ln(PPL(Q)/PPL(base))", nll - base, document),
        ],
        "KL divergence statistics": [
            statistic("Mean KLD", kl, document, "nats"),
            *(
                bare(name, float(np.quantile(kl, q)), "nats")
                for name, q in (("Maximum KLD", 1), ("99.0% KLD", 0.99), ("Median KLD", 0.5), ("Minimum KLD", 0))
            ),
        ],
        "Token probability statistics": [
            statistic("Mean Δp", np.exp(t["log_q"]) - np.exp(t["log_p"]), document, "%", 100.0),
            statistic("Same top p", t["top_p"] == t["top_q"], document, "%", 100.0),
        ],
        "Other divergences": [
            statistic("Mean KL(Q‖base)", t["reverse"], document, "nats"),
            statistic("Mean JS", t["js"], document, "nats"),
            statistic("Mean total variation", t["tv"], document),
            statistic("Top-10 agreement", t["overlap"] / 10, document, "%", 100.0),
        ],
    }


def bins(t, labels, index):
    found = []
    for i, label in enumerate(labels):
        chosen = index == i
        if chosen.sum():
            mean = statistic("mean", t["kl"][chosen], t["document"][chosen])
            share = float(t["kl"][chosen].sum() / t["kl"].sum()) if t["kl"].sum() else 0.0
            found.append({"label": label, "tokens": int(chosen.sum()), "mean": mean, "share": share})
    return found


def table(name, size, shared, rng):
    """The tokens of a candidate: KL of about this size, some of it exactly 0."""
    n = len(shared["document"])
    kl = size * np.exp(rng.normal(0.0, 2.0, n)) * (1.2 - shared["confidence"]) * shared["hard"][shared["document"]]
    kl[rng.random(n) < 0.02] = 0.0
    same = rng.random(n) > min(0.3, 3.0 * math.sqrt(size))
    q = np.clip(shared["choices_p"] * np.exp(rng.normal(0, math.sqrt(size), (n, 3))), 0, 1)
    ids = shared["choices_p_ids"].copy()
    ids[~same] = ids[~same][:, ::-1]
    return {
        **{key: shared[key] for key in ("document", "position", "token")},
        "kl": kl,
        "reverse": kl * 1.1,
        "js": kl / 8,
        "tv": np.sqrt(kl / 4),
        "log_p": shared["log_p"],
        "log_q": np.minimum(shared["log_p"] + rng.normal(0, math.sqrt(size), n), 0.0),
        "top_p": shared["choices_p_ids"][:, 0],
        "top_q": ids[:, 0].copy(),
        "confidence": shared["confidence"],
        "entropy": 3.0 * (1.1 - shared["confidence"]),
        "overlap": np.where(same, 10, 9).astype(np.int16),
        "choices_p_ids": shared["choices_p_ids"],
        "choices_q_ids": ids,
        "choices_p": shared["choices_p"],
        "choices_q": q.astype(np.float32),
    }


def run_folder(folder, *, candidates=CANDIDATES, documents=9, length=420, seed=0, status="complete"):
    """Writes the folder's files; the document of results.json."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(length // 2, length, documents)
    n = int(lengths.sum())
    confidence = rng.beta(1.2, 0.9, n)
    choices = np.stack([confidence, (1 - confidence) * 0.5, (1 - confidence) * 0.2], -1).astype(np.float32)
    shared = {
        "document": np.repeat(np.arange(documents), lengths).astype(np.int64),
        "position": np.concatenate([np.arange(1, k + 1) for k in lengths]).astype(np.int32),
        "token": rng.integers(0, len(PIECES), n).astype(np.int32),
        "confidence": confidence,
        "hard": np.exp(rng.normal(0, 0.4, documents)),
        "log_p": np.log(np.clip(confidence * rng.random(n), 1e-6, 1)),
        "choices_p": choices,
        "choices_p_ids": np.argsort(rng.random((n, len(PIECES))), -1)[:, :3].astype(np.int32),
    }
    shared["token"][: len(HOSTILE)] = np.arange(len(HOSTILE))
    names = [f"docs/module_{i}.txt" for i in range(documents)]
    pq.write_table(pa.table({"name": names, "tokens": (lengths + 1).tolist()}), folder / "documents.parquet")
    found, tables = [], {}
    for i, (name, size) in enumerate(candidates.items()):
        t = tables[name] = table(name, size, shared, rng)
        file = f"tokens-{i + 1}.parquet"
        pq.write_table(
            pa.table(
                {
                    k: pa.FixedSizeListArray.from_arrays(pa.array(v.reshape(-1)), 3) if v.ndim == 2 else v
                    for k, v in t.items()
                }
            ),
            folder / file,
            row_group_size=1000,
        )
        positive = t["kl"][t["kl"] > 0]
        counts = np.histogram(positive, EDGES)[0]
        order = np.argsort(-t["kl"])[:20]
        found.append(
            {
                "name": name,
                "about": f"LlamaForCausalLM, 1,234,567 parameters, {name}",
                "tokens": file,
                "statistics": blocks(t),
                "histogram": {
                    "zeros": int((t["kl"] == 0).sum()),
                    "below": int((positive < EDGES[0]).sum()),
                    "edges": EDGES,
                    "counts": counts.tolist(),
                    "above": int((positive >= EDGES[-1]).sum()),
                },
                "by_confidence": bins(
                    t,
                    ["0 – 0.1", "0.1 – 0.3", "0.3 – 0.5", "0.5 – 0.7", "0.7 – 0.9", "0.9 – 1"],
                    np.searchsorted([0.1, 0.3, 0.5, 0.7, 0.9], t["confidence"]),
                ),
                "by_position": bins(
                    t,
                    ["1 – 15", "16 – 63", "64 – 127", "128 – 255", "256 – 511"],
                    np.searchsorted([16, 64, 128, 256], t["position"], side="right"),
                ),
                "by_class": bins(t, CLASSES, t["token"] % len(CLASSES)),
                "worst": [
                    {
                        "document": int(t["document"][k]),
                        "name": names[t["document"][k]],
                        "position": int(t["position"][k]),
                        "token": int(t["token"][k]),
                        "kl": float(t["kl"][k]),
                    }
                    for k in order
                ],
            }
        )
    pairs = []
    for i, one in enumerate(candidates):
        for other in list(candidates)[i + 1 :]:
            a, b = tables[one]["kl"], tables[other]["kl"]
            pairs.append(
                {
                    "first": one,
                    "second": other,
                    "difference": statistic("difference", a - b, shared["document"]),
                    "p_value": 1e-5,
                    "p_adjusted": 3e-5,
                    "first_better": float((a < b).mean()),
                    "second_better": float((a > b).mean()),
                    "equal": float((a == b).mean()),
                }
            )
    floor = table("floor", 1e-9, shared, rng)
    results = {
        "status": status,
        "folder": str(folder),
        "started": "2026-11-22T00:10:11+00:00",
        "seconds": 71.2,
        "level": 0.95,
        "unit": "nats",
        "settings": {"device": "cpu", "dtype": None, "context": 512, "batch_size": 4, "level": 0.95},
        "text": {
            "source": "documentation strings of Python's standard library",
            "documents": documents,
            "tokens": n + documents,
            "scored": n,
            "measured": n if status == "complete" else n - 100,
            "beginning": "The tokenizer sets no beginning-of-text token.",
        },
        "reference": {"name": "teacher", "about": "LlamaForCausalLM, 1,234,567 parameters, float32"},
        "candidates": found,
        "noise_floor": [
            {
                "name": "other batches",
                "about": "pieces of text in batches of 1 against 4",
                "measured": {"tokens": n, "documents": documents},
                "statistics": blocks(floor),
            }
        ],
        "pairs": pairs,
        "notes": ["Rows of scores without a token are left out: 64 of <i>int4</i>."],
    }
    results = json.loads(json.dumps(results))
    (folder / "results.json").write_text(json.dumps(results))
    return results
