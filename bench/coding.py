"""Write the tables of docs/coding.md: real bits, beside what KL says.   python bench/coding.py"""

import sys
from pathlib import Path

import numpy as np

from kullback.coding import Adaptive, Bill, Fixed, bill, frequencies
from kullback.coding.sources import shipped

PAGE = Path(__file__).resolve().parent.parent / "docs" / "coding.md"
BEGIN, END = "<!-- bits: made by bench/coding.py -->", "<!-- end of bits -->"
NEWS, OTHER = (0.5, 0.3, 0.2), (0.3, 0.6, 0.1)
STORIES = 100_000


def bills() -> list[tuple[str, Bill]]:
    stories = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [int(STORIES * p) for p in NEWS]))
    topics, licence = (np.frombuffer(shipped(name), np.uint8).astype(np.int32) for name in ("topics", "license"))
    own = frequencies(topics, 256)
    return [
        *((f"{STORIES:,} stories, {m} coder", bill(Fixed(NEWS), Fixed(OTHER), stories, m)) for m in ("range", "ans")),
        ("Python's help in the code of its licence", bill(own, frequencies(licence, 256, 0.5), topics)),
        ("Python's help, learnt as it goes (kt)", bill(own, Adaptive(256), topics)),
        ("stories, learnt as it goes (kt)", bill(Fixed(NEWS), Adaptive(3), stories)),
    ]


def table() -> str:
    lines = ["| data | symbols | code of P | code of Q | extra | n·KL | overhead P, Q |", "| --- " * 7 + "|"]
    for name, one in bills():
        assert one.same
        known = "-" if one.predicted is None else f"{one.predicted:,.1f}"
        lines.append(
            f"| {name} | {one.number:,} | {one.p.bits:,} | {one.q.bits:,} | {one.extra:,} | {known} | "
            f"{one.p.overhead:.1f}, {one.q.overhead:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    note = f"Bits; Python {sys.version_info[0]}.{sys.version_info[1]}'s texts."
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{note}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
