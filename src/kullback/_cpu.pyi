# The C++ extension (csrc/bindings.cpp): names, addresses and strides. Only engines/cpu.py calls it.
from collections.abc import Sequence

_Side = tuple[str, str, float, float, float]
_Edges = tuple[float, float, float, float, float, float, bool]

class Call:
    def __init__(
        self,
        formula: str,
        parameter: float,
        edges: _Edges,
        exact_normalizer: bool,
        p: _Side,
        q: _Side,
        columns: int,
        shard: bool,
    ) -> None: ...
    def normalize_shard(
        self,
        shape: Sequence[int],
        p: int,
        p_strides: Sequence[int],
        q: int,
        q_strides: Sequence[int],
        max: int,
        sum: int,
        threads: int,
    ) -> None: ...
    def sum_shard(
        self,
        shape: Sequence[int],
        p: int,
        p_strides: Sequence[int],
        q: int,
        q_strides: Sequence[int],
        stats: int,
        states: int,
        threads: int,
    ) -> None: ...
    def forward(
        self,
        shape: Sequence[int],
        p: int,
        p_strides: Sequence[int],
        q: int,
        q_strides: Sequence[int],
        values: int,
        stats: int,
        out: int,
        out_is_double: bool,
        scale: float,
        threads: int,
    ) -> None: ...
    def backward(
        self,
        shape: Sequence[int],
        p: int,
        p_strides: Sequence[int],
        q: int,
        q_strides: Sequence[int],
        values: int,
        stats: int,
        upstream: int,
        upstream_strides: Sequence[int],
        upstream_is_double: bool,
        scale: float,
        to_p: int,
        to_q: int,
        threads: int,
    ) -> None: ...

_Term = tuple[Call, int, Sequence[int], int, Sequence[int], int, Sequence[int], int, int]

max_terms: int
listed_head: int

def total(
    shape: Sequence[int],
    terms: Sequence[_Term],
    outputs: Sequence[tuple[str, int]],
    values: int,
    threads: int,
    rows: int = 0,
) -> None: ...
def formulas() -> list[str]: ...
def instruction_set() -> str: ...
def instruction_sets() -> list[str]: ...
def use_instruction_set(name: str) -> None: ...
def apply(which: int, narrow: bool, x: int, out: int, n: int) -> None: ...
