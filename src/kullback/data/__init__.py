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
| `job`, `watching` | `drift` and `profile`; `watch` and `Monitor` |
| `report`, `demo`, `command` | the page, real data, the sub-commands |
"""

from .job import Cell, ColumnDrift, Drift, Rule, drift, profile
from .joint import Joint, Part
from .profiles import Counted, Profile, merge
from .statistics import Effect, Test
from .watching import Alarm, Monitor, Watch, watch

__all__ = [
    "Alarm",
    "Cell",
    "ColumnDrift",
    "Counted",
    "Drift",
    "Effect",
    "Joint",
    "Monitor",
    "Part",
    "Profile",
    "Rule",
    "Test",
    "Watch",
    "drift",
    "merge",
    "profile",
    "watch",
]
