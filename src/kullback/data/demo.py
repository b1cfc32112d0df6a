"""Real data for `kullback drift --demo`, found in installed packages without importing them."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from kullback._errors import BadInput
from kullback.kit.extras import install


@dataclass(frozen=True)
class Demo:
    """Two queries over the files of a package, and where the data come from."""

    title: str
    reference: str
    current: str
    drop: tuple[str, ...]
    joint: tuple[str, ...]
    cluster: str | None
    licence: str


def find() -> Demo:
    """The census, where nannyml is installed (`pip install --no-deps nannyml`), else Seattle's weather.

    Raises: BadInput: neither is there.
    """
    census = _file("nannyml", "datasets/data/employment_MA_reference.pq")
    if census is not None:
        later = census.with_name("employment_MA_analysis.pq")
        return Demo(
            "Massachusetts, census of 2015 against 2016-18",
            f"SELECT * EXCLUDE employed FROM read_parquet({_text(census)})",
            f"SELECT * FROM read_parquet({_text(later)})",
            ("id", "year", "prediction", "predicted_probability"),
            ("AGEP", "SCHL", "MAR"),
            None,
            "US Census Bureau, American Community Survey (public domain), by way of folktables (MIT) and nannyml "
            "(Apache-2.0)",
        )
    weather = _file("vega_datasets", "_data/seattle-weather.csv")
    if weather is not None:
        days = f"SELECT *, strftime(date, '%Y-%m') AS month FROM read_csv({_text(weather)})"
        return Demo(
            "Seattle's weather of 2012-13 against 2014-15",
            f"{days} WHERE date < DATE '2014-01-01'",
            f"{days} WHERE date >= DATE '2014-01-01'",
            ("date",),
            (),
            "month",
            "NOAA National Centers for Environmental Information (public domain), by way of vega_datasets (MIT)",
        )
    raise BadInput(f"--demo needs the data of vega_datasets; write: {install('data')}")


def _file(package: str, path: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    found = Path(spec.origin).parent / path
    return found if found.is_file() else None


def _text(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
