"""A run folder of `kullback compare` that no model made: scores are drawn, all else is computed as the job does."""

import json
import math
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kullback.models import slices
from kullback.models.pairs import every_pair
from kullback.models.scores import Scores
from kullback.models.statistics import summarize
from kullback.models.table import Writer

HOSTILE = ("<script>hurt = 1</script>", "\n", "\n\n    ", "\x00", "\u202e", "⟨E2⟩⟨80⟩", " שלום", "\t", "' onx=\"", "")
TEXT = """the of and to in is a for that with as it on be this are by or an if from returns not which value object list
string file name function called when each all other one will true false none default number given argument raises
error bytes class method module path iterator sequence items dictionary keyword optional"""
WORDS = TEXT.split()
PIECES = (*HOSTILE, *(f" {word}" for word in WORDS), *WORDS, ".", ",", "(", ")", ":", " =", "0", "1")
CANDIDATES = {"bf16": 3e-5, "int8 <b>": 1.2e-5, "int4": 2.5e-3}
MODEL = "LlamaForCausalLM, 1,234,567 parameters"


def pieces(ids):
    return [PIECES[i] for i in ids]


class Text:
    """Documents of drawn tokens, and what the reference says of them."""

    def __init__(self, documents, length, rng):
        self.lengths = rng.integers(length // 2, length, documents)
        n = int(self.lengths.sum())
        self.document = np.repeat(np.arange(documents), self.lengths)
        self.position = np.concatenate([np.arange(1, k + 1) for k in self.lengths]).astype(np.int32)
        self.token = rng.integers(0, len(PIECES), n).astype(np.int32)
        self.token[: len(HOSTILE)] = np.arange(len(HOSTILE))
        self.confidence = rng.beta(1.2, 0.9, n)
        self.log_p = np.log(np.clip(self.confidence * rng.random(n), 1e-6, 1))
        self.ids = np.argsort(rng.random((n, len(PIECES))), -1)[:, :3].astype(np.int32)
        self.shares = np.outer(1 - self.confidence, (0, 0.5, 0.2)) + np.outer(self.confidence, (1, 0, 0))
        self.hard = np.exp(rng.normal(0, 0.4, documents))[self.document]

    def scores(self, size, rng):
        """A candidate with KL of about this size, some of it exactly 0."""
        n, width = len(self.token), math.sqrt(size)
        kl = size * np.exp(rng.normal(0.0, 2.0, n)) * (1.2 - self.confidence) * self.hard * (rng.random(n) > 0.02)
        same = rng.random(n) > min(0.3, 3.0 * width)
        ids = np.where(same[:, None], self.ids, self.ids[:, ::-1])
        q = np.clip(self.shares * np.exp(rng.normal(0, width, (n, 3))), 0, 1)
        log_q = np.minimum(self.log_p + rng.normal(0, width, n), 0.0)
        entropy, overlap = 3.0 * (1.1 - self.confidence), np.where(same, 10, 9).astype(np.int16)
        return Scores(
            self.document, self.position, self.token, kl, 1.1 * kl, kl / 8, np.sqrt(kl).clip(0, 1), self.log_p, log_q,
            self.ids[:, 0], ids[:, 0], self.confidence, entropy, overlap, self.ids, ids,
            self.shares.astype(np.float32), q.astype(np.float32),
        )  # fmt: skip


def blocks(columns):
    return {title: [asdict(each) for each in block] for title, block in summarize(columns).blocks.items()}


def bins(found):
    return [
        {
            "label": one.label,
            "tokens": one.tokens,
            "mean": asdict(one.mean),
            "share": one.of_total and one.of_total / 100,
        }
        for one in found
    ]


def run_folder(folder, *, candidates=CANDIDATES, documents=9, length=420, seed=0, status="complete"):
    """Writes the folder's files; the document of results.json."""
    rng = np.random.default_rng(seed)
    text = Text(documents, length, rng)
    names, n = [f"docs/module_{i}.txt" for i in range(documents)], len(text.token)
    pq.write_table(pa.table({"name": names, "tokens": (text.lengths + 1).tolist()}), folder / "documents.parquet")
    found, tables = [], {}
    for i, (name, size) in enumerate(candidates.items()):
        scores, file = text.scores(size, rng), f"tokens-{i + 1}.parquet"
        with Writer(folder / file) as writer:
            writer.append(scores)
        t = tables[name] = scores.columns()
        worst = [
            {key: t[key][k].item() for key in ("document", "position", "token", "kl")}
            for k in slices.worst(t["kl"], 20)
        ]
        found.append(
            {
                "name": name,
                "about": f"{MODEL}, {name}",
                "tokens": file,
                "statistics": blocks(t),
                "histogram": asdict(slices.histogram(t["kl"])),
                "by_confidence": bins(slices.by_confidence(t)),
                "by_position": bins(slices.by_position(t)),
                "by_class": bins(slices.by_class(t, lambda i: slices.token_class(PIECES[i]))),
                "worst": [one | {"name": names[one["document"]]} for one in worst],
            }
        )
    floor = text.scores(1e-9, rng).columns()
    results = {
        "status": status, "folder": str(folder), "started": "2026-11-22T00:10:11+00:00", "seconds": 71.2,
        "level": 0.95, "settings": {"device": "cpu", "dtype": None, "context": 512, "level": 0.95},
        "text": {
            "source": "documentation strings", "documents": documents, "tokens": n + documents, "scored": n,
            "measured": n if status == "complete" else n - 100, "beginning": "The tokenizer sets no beginning.",
        },
        "reference": {"name": "teacher", "about": f"{MODEL}, float32"},
        "candidates": found,
        "noise_floor": [
            {"name": "other batches", "about": "pieces of text in batches of 1 against 4", "statistics": blocks(floor),
             "measured": {"tokens": n, "documents": documents}}
        ],
        "pairs": [
            {"first": one.one, "second": one.other, "difference": asdict(one.difference), "p_value": one.p,
             "p_adjusted": one.adjusted, "first_better": one.better.value / 100,
             "second_better": one.worse.value / 100, "equal": one.equal.value / 100}
            for one in every_pair(tables)
        ],
        "llama_cpp": None, "notes": ["Rows of scores without a token are left out: 64 of <i>int4</i>."],
    }  # fmt: skip
    results = json.loads(json.dumps(results))
    (folder / "results.json").write_text(json.dumps(results))
    return results
