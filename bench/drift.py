"""Drift: how often it cries without drift, what shifts it sees, what it costs. Fills the tables of docs/data.md.

    python bench/drift.py calibration     2,000 comparisons without drift a cell
    python bench/drift.py law             when T and 2nm/(n+m)·KL follow χ²
    python bench/drift.py intervals       how often the intervals of the effects hold the truth
    python bench/drift.py power           shifts of a Normal, beside a constant threshold on KL and PSI
    python bench/drift.py evidently       the same samples by Evidently, in an environment that has it
    python bench/drift.py watch           runs without drift that see an alarm
    python bench/drift.py scale           rows × columns of Parquet on DuckDB: time and memory beside bare SQL
                                          (--rows 10000000, and 2000000)

Every figure needs only numpy and kullback[data], but for `evidently`.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "data.md"
SHIFTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5)
SIZES = (100, 1_000, 10_000, 100_000)


def cut(before, after, asked):
    """Two columns of numbers as counts in cells at quantiles of the first, as drift() counts them."""
    from kullback.data.bins import Numbers, number_edges
    from kullback.data.profiles import FEWEST, Counted

    many = max(2, min(asked, len(before) // FEWEST))
    low, *levels = np.quantile(before, np.arange(many) / many).tolist()
    bins = Numbers(number_edges(levels, low, whole=False))
    cells = len(bins.edges) + 1
    inside = [np.bincount(np.searchsorted(bins.edges, x, "right"), minlength=cells) for x in (before, after)]
    return [Counted(bins, (0, *counts.tolist(), 0, 0, 0)) for counts in inside]


def counted(kind, n, m, asked, rng):
    """Two columns without drift, as counts in the cells of the first. What is counted is what drift() counts; tables of
    numbers and names are left out to save time (tests/data goes through them).
    """
    from kullback.data.bins import Categories
    from kullback.data.profiles import Counted

    if kind == "numbers":  # the law of ranks is the same for every continuous variable
        return cut(rng.random(n), rng.random(m), asked)
    p = 1.0 / np.arange(1, asked + 1) ** 1.1
    x, y = (rng.multinomial(k, p / p.sum()) for k in (n, m))

    def named(counts, most=200):
        order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
        return order[:most], 0 if len(order) <= most else int(counts[order[most - 1]])

    (names, hidden), (others, hidden_there) = named(x), named(y)
    bins = Categories(tuple(map(str, names)))
    new = [i for i in others if i not in set(names)]
    return [
        Counted(
            bins, (*x[names].tolist(), int(n - x[names].sum()), 0), hidden, {str(i): int(x[i]) for i in new if x[i]}
        ),
        Counted(bins, (*y[names].tolist(), int(m - y[names].sum()), 0), hidden_there, {str(i): int(y[i]) for i in new}),
    ]


def calibration(reps):
    """False alarms at 5 %, of two sides from one distribution. Cells used: of those asked for, what rare ones leave."""
    from kullback.data.pairing import pair
    from kullback.data.statistics import homogeneity

    def flagged(kind, n, m, asked, reps, *seed):
        """Per cent flagged, cells used, per cent by χ²."""
        rng, found = np.random.default_rng([n, m, asked, *seed]), np.zeros(3)
        for _ in range(reps):
            cells = pair(*counted(kind, n, m, asked, rng))
            test, _ = homogeneity(cells.x, cells.y, seed=int(rng.integers(2**31)))
            found += [100 * (test.p_value <= 0.05), len(cells.x), 100 * (test.law == "chi2")]
        return found / reps

    pairs = [(n, n) for n in SIZES]
    pairs += [(1_000, 100), (100, 1_000), (100_000, 100), (100, 100_000)]
    lines = ["| columns | n | m | cells asked for | false alarms at 5 % | cells used | by χ² |", "| --- " * 7 + "|"]
    for n, m in pairs:
        for kind, sizes in (("numbers", (2, 10, 50, 200)), ("categories", (2, 20, 200, 10_000))):
            for asked in sizes:
                rate, cells, by = flagged(kind, n, m, asked, reps)
                again = ""
                if not 3.5 <= rate <= 6.5:  # chance, or the law? Ten times as many, drawn anew
                    again = f"; of {10 * reps:,} more {flagged(kind, n, m, asked, 10 * reps, 1)[0]:.2f} %"
                lines.append(f"| {kind} | {n:,} | {m:,} | {asked:,} | {rate:.2f} %{again} | {cells:.0f} | {by:.0f} % |")
                print(lines[-1], flush=True)
    fill("calibration", lines)


def law(reps):
    """False alarms of T and of KL by the χ² law, where every cell expects e counts on the smaller side."""
    from scipy import special

    from kullback.data.statistics import statistic

    rng, lines = np.random.default_rng(0), ["| B | n | m | e | T | 2nm/(n+m)·KL |", "| --- " * 6 + "|"]
    for cells in (2, 20, 200):
        for e, ratio in ((5, 1), (20, 1), (50, 1), (50, 10), (200, 1)):
            n, m = cells * e, cells * e * ratio
            x, y = (rng.multinomial(k, np.full(cells, 1 / cells), reps).astype(float) for k in (n, m))
            with np.errstate(divide="ignore", invalid="ignore"):
                kl = np.where(x > 0, x / n * np.log(x / n / (y / m)), 0.0).sum(1)
            limit = special.chdtri(cells - 1, 0.05)
            t, k = (statistic(x, y) > limit).mean(), (2 * n * m / (n + m) * kl > limit).mean()
            lines.append(f"| {cells} | {n:,} | {m:,} | {e} | {100 * t:.1f} % | {100 * k:.1f} % |")
    fill("law", lines)


def intervals(reps):
    """Coverage of the 95 % intervals, ten equal cells of a Normal against one shifted by s."""
    from scipy import special

    from kullback.data.statistics import compare

    edges = special.ndtri(np.arange(1, 10) / 10)
    p = np.full(10, 0.1)
    lines = ["| n = m | shift, σ | KL(p‖q) | covered: KL | KL reverse | JS | PSI |", "| --- " * 7 + "|"]
    for n in (200, 2_000, 20_000):
        for shift in (0.0, 0.1, 0.5, 1.5):
            q = np.diff(special.ndtr(np.concatenate([[-np.inf], edges - shift, [np.inf]])))
            mid = (p + q) / 2
            truth = {
                "kl": (p * np.log(p / q)).sum(),
                "kl_reverse": (q * np.log(q / p)).sum(),
                "js": 0.5 * (p * np.log(p / mid)).sum() + 0.5 * (q * np.log(q / mid)).sum(),
            }
            truth["psi"] = truth["kl"] + truth["kl_reverse"]
            rng = np.random.default_rng([n, int(10 * shift)])
            inside = dict.fromkeys(truth, 0)
            for _ in range(reps):
                x, y = rng.multinomial(n, p).astype(float), rng.multinomial(n, q).astype(float)
                used = x + y > 0
                effects = compare(x[used], y[used], seed=int(rng.integers(2**31))).effects
                for name, value in truth.items():
                    inside[name] += effects[name].low - 1e-15 <= value <= effects[name].high
            shares = " | ".join(f"{100 * inside[name] / reps:.0f} %" for name in truth)
            lines.append(f"| {n:,} | {shift:g} | {truth['kl'] if shift else 0:.4g} | {shares} |")
    fill("intervals", lines)


def power(reps):
    """Share of comparisons that are flagged, n = m, Normal numbers in ten cells, at 5 %, no smallest effect."""
    from kullback.data.pairing import pair
    from kullback.data.statistics import homogeneity, smoothed

    lines = ["| n = m | shift, σ | calibrated, 5 % | KL ≥ 0.1 | PSI ≥ 0.1 | PSI ≥ 0.2 |", "| --- " * 6 + "|"]
    for n in SIZES:
        for shift in SHIFTS:
            rng, hits = np.random.default_rng([n, int(100 * shift)]), np.zeros(4)
            for _ in range(reps):
                cells = pair(*cut(rng.normal(size=n), rng.normal(shift, size=n), 10))
                test, _ = homogeneity(cells.x, cells.y, seed=int(rng.integers(2**31)))
                p, q = smoothed(cells.x), smoothed(cells.y)
                kl, psi = (p * np.log(p / q)).sum(), ((p - q) * np.log(p / q)).sum()
                hits += [test.p_value <= 0.05, kl >= 0.1, psi >= 0.1, psi >= 0.2]
            shares = " | ".join(f"{100 * h / reps:.0f} %" for h in hits)
            lines.append(f"| {n:,} | {shift:g} | {shares} |")
            print(lines[-1], flush=True)
    fill("power", lines)


def evidently(reps):
    """The same question to the tests that Evidently 0.7's reports call, each with its default threshold; run where
    it is installed, with pandas < 3.
    """
    import pandas as pd
    from evidently.legacy.calculations.stattests import get_stattest
    from evidently.legacy.core import ColumnType

    methods = (None, "kl_div", "psi", "jensenshannon")
    lines = ["| n = m | shift, σ | by default | kl_div | psi | jensenshannon |", "| --- " * 6 + "|"]
    for n in SIZES:
        for shift in SHIFTS:
            rng, hits, used = np.random.default_rng([n, int(100 * shift)]), np.zeros(len(methods)), ""
            for _ in range(reps):
                sides = [pd.Series(rng.normal(s, size=n)) for s in (0.0, shift)]
                for i, method in enumerate(methods):
                    test = get_stattest(*sides, ColumnType.Numerical, method)
                    hits[i] += test(*sides, feature_type=ColumnType.Numerical, threshold=None).drifted
                    used = used or test.display_name
            shares = [f"{100 * share:.0f} %" for share in hits / reps]
            lines.append(f"| {n:,} | {shift:g} | {shares[0]} ({used}) | " + " | ".join(shares[1:]) + " |")
            print(lines[-1], flush=True)
    fill("evidently", lines)


def watch(reps):
    """Runs of 60 periods without drift, three columns, that see any alarm; asked for: 5 %."""
    from kullback.data.bins import Categories, Numbers
    from kullback.data.profiles import Counted, Profile
    from kullback.data.statistics import statistic
    from kullback.data.watching import _slide, thresholds

    lines = ["| rows of the profile | rows a period | window | runs with an alarm |", "| --- " * 4 + "|"]
    ways = {
        "a": (Numbers(tuple(range(1, 10))), np.concatenate([[0], np.full(10, 0.1), [0, 0, 0]])),
        "b": (
            Categories(tuple("abcdefgh")),
            np.concatenate([1 / np.arange(1, 10), [0]]) / (1 / np.arange(1, 10)).sum(),
        ),
        "c": (Categories(("x", "y")), np.array([0.98, 0.02, 0, 0])),
    }
    for n, m, window in ((1_000, 50, 1), (1_000, 50, 7), (10_000, 500, 7), (100_000, 100, 1)):
        rng, runs = np.random.default_rng([n, m, window]), 0
        for r in range(reps):
            # every run has a reference of its own; thresholds, which take longest, are those of every hundredth
            counts = {k: rng.multinomial(n, p) for k, (_, p) in ways.items()}
            if r % 100 == 0:
                base = Profile(n, {k: Counted(ways[k][0], tuple(c.tolist())) for k, c in counts.items()})
                limits = thresholds(base, [m] * 60, window=window)
            alarm = False
            for k, (_, p) in ways.items():
                slid = _slide(rng.multinomial(m, p, size=60).astype(float), window)
                x = np.broadcast_to(counts[k].astype(float), slid.shape)
                alarm |= bool((statistic(x, slid) > limits[k]).any())
            runs += alarm
        lines.append(f"| {n:,} | {m:,} | {window} | {100 * runs / reps:.1f} % |")
        print(lines[-1], flush=True)
    fill("watch", lines)


def scale(rows, many=20, rounds=3):
    """Time and peak memory of `drift` on two Parquet files, beside bare queries in SQL: medians of rounds in turn."""
    import subprocess

    ways = ("bare counts", "drift")
    with tempfile.TemporaryDirectory() as folder:
        make = (
            "import duckdb; c = duckdb.connect(); c.execute('SET enable_progress_bar = false')\n"
            "for name, shift in (('a', 0.0), ('b', 0.05)):\n"
            f"    x = ', '.join(f'2 * random() - 1 + {{shift * (i == 0)}} AS x{{i}}' for i in range({many}))\n"
            f"    to = '{folder}/' + name + '.parquet'\n"
            f"    c.execute(f\"COPY (SELECT {{x}} FROM range({rows})) TO '{{to}}' (FORMAT parquet)\")\n"
        )
        subprocess.run([sys.executable, "-c", make], check=True)
        results = {what: [] for what in ways}
        for _ in range(rounds):
            for what in ways:
                argv = [sys.executable, __file__, "one", what, folder, str(many)]
                done = subprocess.run(argv, check=True, capture_output=True, text=True)
                results[what].append(json.loads(done.stdout))
                print(what, results[what][-1], flush=True)
    middle = {k: {key: float(np.median([r[key] for r in v])) for key in ("cpu", "wall")} for k, v in results.items()}
    peaks = {k: max(r["peak"] for r in v) for k, v in results.items()}
    base = middle["bare counts"]["cpu"]
    lines = ["| | CPU, s | of bare counts | wall, s | peak memory, MiB |", "| --- " * 5 + "|"]
    for k, r in middle.items():
        lines.append(f"| {k} | {r['cpu']:.1f} | {r['cpu'] / base:.2f} | {r['wall']:.1f} | {peaks[k]:.0f} |")
    lines += ["", f"{rows:,} rows × {many} columns a side, medians of {rounds}. {results['drift'][0]['note']}"]
    fill(f"scale {rows:,}", lines)


def one(what, folder, many):
    """One measurement of `scale`, in a process of its own; prints JSON. Imports are not counted in time."""
    import duckdb

    sides = [f"{folder}/{name}.parquet" for name in ("a", "b")]
    note = ""
    if what == "drift":
        import narwhals  # noqa: F401
        import pyarrow

        from kullback.data import drift
        from kullback.data.statistics import compare

        compare(np.full(10, 1000.0), np.full(10, 1000.0), seed=0)  # the engines' own first-call costs
        pyarrow.array([1, None]).fill_null(0)  # imports pandas where it is installed
    wall, cpu = time.monotonic(), time.process_time()
    if what == "drift":
        found = drift(*sides)
        note = f"Flagged: {', '.join(c.name for c in found.drifted) or 'none'}; edges are "
        note += "quantiles of a sample." if found["x0"].rows[0] > 5_000_000 else "exact quantiles."
    else:
        connection = duckdb.connect(config={"memory_limit": "512MB", "preserve_insertion_order": False})
        counts = ", ".join(f"sum(x{i} < {0.2 * k - 0.8!r})" for i in range(many) for k in range(9))
        for side in sides:
            connection.execute(f"SELECT count(*), {counts} FROM read_parquet(?)", [side]).fetchall()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"cpu": time.process_time() - cpu, "wall": time.monotonic() - wall, "peak": peak, "note": note}))


def fill(name, lines):
    """Put a table between its marks in docs/data.md."""
    print("\n".join(lines))
    text = DOCUMENT.read_text(encoding="utf-8")
    begin, end = f"<!-- {name}: made by bench/drift.py -->\n", f"<!-- end of {name} -->"
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    DOCUMENT.write_text(head + begin + "\n".join(["", *lines, "", ""]) + end + tail, encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what", choices=["calibration", "law", "intervals", "power", "evidently", "watch", "scale", "one"]
    )
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--reps", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=10_000_000)
    arguments = parser.parse_args()
    if arguments.what == "one":
        one(arguments.rest[0], arguments.rest[1], int(arguments.rest[2]))
    elif arguments.what == "scale":
        scale(arguments.rows)
    else:
        jobs = {f.__name__: f for f in (calibration, law, intervals, power, evidently, watch)}
        jobs[arguments.what](arguments.reps)


if __name__ == "__main__":
    main()
