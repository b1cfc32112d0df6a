"""From the tokens' scores to the document that results.json holds."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

from kullback.kit.extras import extra
from kullback.kit.numbers import finite
from kullback.language.pieces import pieces

from . import slices
from .clusters import Statistic
from .llama_log import LlamaLog
from .pairs import Paired, every_pair
from .results import Comparison
from .scores import Scores
from .statistics import Summary, Table, summarize
from .store import DOCUMENTS
from .table import Columns

WORST = 20  # tokens with the largest KLD that are kept


def fill(found: Comparison) -> None:
    """Every statistic of the tokens that are measured, into the results."""
    names = found.plan.names
    if not names or not found.measured:
        return
    columns: dict[str, Table] = {name: Columns(found.tokens(name)) for name in names}
    class_of = _class_of(found.plan.tokenizer)
    parquet = extra("pyarrow.parquet", of="lm")
    documents = parquet.read_table(found.folder / DOCUMENTS, columns=["name"])["name"]
    for name, table in columns.items():
        found.candidates[name] = {
            **of_summary(summarize(table)),
            "histogram": asdict(slices.histogram(table["kl"])),
            "by_confidence": _slices(slices.by_confidence(table)),
            "by_position": _slices(slices.by_position(table)),
            "by_class": [] if class_of is None else _slices(slices.by_class(table, class_of)),
            "worst": _worst(table, documents),
        }
    found.pairs = [_pair(each) for each in every_pair(columns)]


def of_scores(scores: Scores) -> dict[str, Any]:
    """The same statistics of a few tokens that are in memory."""
    return of_summary(summarize(scores.columns()))


def of_summary(summary: Summary) -> dict[str, Any]:
    """As results.json holds it."""
    return {
        "measured": {"tokens": summary.tokens, "documents": summary.documents},
        "statistics": {title: [statistic(each) for each in block] for title, block in summary.blocks.items()},
    }


def of_log(log: LlamaLog) -> dict[str, Any]:
    """What llama.cpp printed, by the names of ours, as text: value ± error as if tokens were independent."""
    named: dict[str, str] = {}
    for block in log.blocks.values():
        for name, printed in block.items():
            error = "" if printed.error is None else f" ± {printed.error:g}"
            named[name] = f"{printed.value:g}{error}"
    return {"statistics": named, "chunks": len(log.chunks)}


def statistic(each: Statistic) -> dict[str, Any]:
    """name, value, iid, clustered, low, high, unit; null for what is not finite."""
    return {name: finite(x) if isinstance(x, float) else x for name, x in asdict(each).items()}


def texts(tokenizer: Any) -> Callable[[Sequence[int]], list[str]]:
    """What token ids are in text, one by one; without a tokenizer their numbers."""
    if tokenizer is None:
        return lambda ids: [f"‹{i}›" for i in ids]
    return lambda ids: pieces(tokenizer, ids)


def _class_of(tokenizer: Any) -> Callable[[int], str] | None:
    if tokenizer is None:
        return None
    special = set(tokenizer.all_special_ids)
    return cache(lambda i: slices.token_class(tokenizer.decode([i]), i in special))


def _slices(found: Sequence[slices.Slice]) -> list[dict[str, Any]]:
    return [
        {
            "label": each.label,
            "tokens": each.tokens,
            "documents": each.documents,
            "mean": statistic(each.mean),
            "share": None if each.of_total is None else each.of_total / 100.0,
        }
        for each in found
    ]


def _pair(found: Paired) -> dict[str, Any]:
    return {
        "first": found.one,
        "second": found.other,
        "difference": statistic(found.difference),
        "p_value": found.p,
        "p_adjusted": found.adjusted,
        **{
            name: (share.value or 0.0) / 100.0
            for name, share in (
                ("first_better", found.better), ("second_better", found.worse), ("equal", found.equal)
            )
        },
    }  # fmt: skip


def _worst(table: Table, documents: Any) -> list[dict[str, Any]]:
    rows = slices.worst(table["kl"], WORST)
    names = ("document", "position", "token", "kl", "log_p", "log_q", "top_p", "top_q", "confidence")
    columns = {name: table[name][rows].tolist() for name in names}
    found = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [
        {name: finite(x) if isinstance(x, float) else x for name, x in each.items()}
        | {"name": documents[each["document"]].as_py()}
        for each in found
    ]
