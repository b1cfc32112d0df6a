"""Drift between tables, on the engines where the data lie: DuckDB, Spark, pandas, polars, arrow.

| file | holds |
| --- | --- |
| `bins` | how a column is cut into cells |
| `engines` | where the data lie; what engines do differently |
| `counting` | counts of cells, by narwhals: the only thing that leaves an engine |
| `profiles` | cells and counts of a table, to be kept and added up |
| `pairing` | the counts of two sides over the same cells |
| `statistics` | the test, the effects, their intervals |
| `clusters`, `joint` | rows that belong together; where joint drift comes from |
| `job` | `drift` and `profile` |
"""

from .job import Cell, ColumnDrift, Drift, Rule, drift, profile
from .joint import Joint, Part
from .profiles import Counted, Profile, merge
from .statistics import Effect, Test

__all__ = [
    "Cell",
    "ColumnDrift",
    "Counted",
    "Drift",
    "Effect",
    "Joint",
    "Part",
    "Profile",
    "Rule",
    "Test",
    "drift",
    "merge",
    "profile",
]
