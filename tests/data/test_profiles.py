"""Profiles: what is kept, what adds up, what is refused."""

import json

import numpy as np
import polars as pl
import pytest

from kullback._errors import BadInput
from kullback.data import Profile, drift, merge, profile, watch


def day(seed, rows=800, shift=0.0):
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "x": rng.normal(shift, size=rows),
            "n": rng.poisson(4, rows),
            "kind": rng.choice(["a", "b", "c", "d"], rows, p=[0.5, 0.3, 0.15, 0.05]),
            "flag": rng.random(rows) < 0.5,
        }
    )


def test_days_add_up_to_the_month():
    days = [day(seed) for seed in range(5)]
    first = profile(days[0])
    parts = [first, *(profile(one, like=first) for one in days[1:])]
    whole = profile(pl.concat(days), like=first)
    added = merge(parts)
    assert added.columns == whole.columns
    assert added.rows == whole.rows == 4000
    assert merge([merge(parts[:2]), merge(parts[2:])]).columns == added.columns
    current = day(9, shift=0.3)
    one, other = drift(added, current).to_json(), drift(whole, current).to_json()
    assert one["columns"] == other["columns"]


def test_a_profile_answers_as_its_rows_do(tmp_path):
    before, after = day(1), day(2, shift=0.3)
    kept = profile(before)
    kept.write(tmp_path / "kept.json")
    direct = drift(before, after).to_json()["columns"]
    assert drift(tmp_path / "kept.json", after).to_json()["columns"] == direct
    assert drift(kept, profile(after, like=kept)).to_json()["columns"] == direct


def test_a_profile_holds_no_row_and_is_a_few_kilobytes(tmp_path):
    frame = day(1, 5000)
    made = profile(frame)
    made.write(tmp_path / "p.json")
    text = (tmp_path / "p.json").read_text()
    assert len(text) < 4000
    assert Profile.read(tmp_path / "p.json") == made
    edges = set(made.columns["x"].bins.edges)
    assert len(edges) == 9
    assert not edges & set(frame["x"].to_list())


def test_columns_are_chosen_and_dropped_from_profiles_as_from_tables():
    before, after = profile(day(1)), profile(day(2), like=profile(day(1)))
    assert {one.name for one in drift(before, after, drop=["x", "n"]).columns} == {"kind", "flag"}
    assert {one.name for one in drift(before, day(2), columns=["x", "n"]).columns} == {"x", "n"}
    assert set(profile(day(2), like=before, drop=["n"]).columns) == {"x", "kind", "flag"}
    assert set(profile(day(2), like=before, columns=["n"]).columns) == {"n"}
    for refused in (
        lambda: drift(before, after, drop=["wage"]),
        lambda: profile(day(1), drop=["wage"]),
        lambda: watch(before, day(1), time="n", every="1", drop=["wage"]),
    ):
        with pytest.raises(BadInput, match="--drop wage: there is no such column"):
            refused()


def test_grouping_columns_need_not_be_chosen():
    found = drift(day(1), day(2), columns=["x"], by="kind", cluster="n")
    assert {one.title for one in found.columns} == {f"x · {name}" for name in "abcd"}


def test_other_cells_do_not_add_up():
    with pytest.raises(BadInput, match=r"column 'x' has other cells .* --like FIRST"):
        merge([profile(day(1)), profile(day(2))])
    with pytest.raises(BadInput, match="differ in column 'x'"):
        merge([profile(day(1)), profile(day(1), drop=["x"])])


def test_rare_categories_lose_their_name():
    rng = np.random.default_rng(0)
    values = [*rng.choice(["often", "now and then"], 990, p=[0.8, 0.2]).tolist(), *["secret"] * 4, *["rare"] * 6]
    made = profile(pl.DataFrame({"kind": values}), min_count=5)
    column = made.columns["kind"]
    assert set(column.bins.names) == {"often", "now and then", "rare"}
    assert column.counts[-2] == 4
    assert column.unnamed_at_most == 4
    assert "secret" not in made.dumps()
    full = profile(pl.DataFrame({"kind": values}))
    later = profile(pl.DataFrame({"kind": [*values, "new"]}), like=full, min_count=5)
    assert "new" not in later.dumps()


def test_more_categories_than_have_names():
    rng = np.random.default_rng(0)
    before, after = (pl.DataFrame({"kind": [f"v{min(k, 3000)}" for k in rng.zipf(1.3, 20_000)]}) for _ in range(2))
    kept = profile(before, categories=20)
    assert len(kept.columns["kind"].bins.names) == 20
    assert kept.columns["kind"].unnamed_at_most == min(kept.columns["kind"].counts[:20])
    live, from_profile = drift(before, after, categories=20)["kind"], drift(kept, after, categories=20)["kind"]
    assert live.marks
    assert not live.drift
    assert not from_profile.drift
    assert live.test.p_value > 0.001
    assert from_profile.test.p_value > 0.001


def test_new_and_vanished_categories_are_named_with_their_mass():
    before = pl.DataFrame({"kind": ["a"] * 500 + ["b"] * 300 + ["gone"] * 200})
    after = pl.DataFrame({"kind": ["a"] * 500 + ["b"] * 300 + ["new"] * 100 + ["newer"] * 50})
    for reference in (before, profile(before)):
        found = drift(reference, after)["kind"]
        assert found.new == {"new": 100, "newer": 50}
        assert found.vanished == {"gone": 200}
        assert "2 new categories with 15.8 % of the current rows" in found.marks
        assert "1 vanished category with 20 % of the reference rows" in found.marks
        assert found.drift
        cells = {cell.label: (cell.reference, cell.current) for cell in found.cells}
        assert cells == {"a": (500, 500), "b": (300, 300), "gone": (200, 0), "new": (0, 100), "newer": (0, 50)}


def changed(text, **values):
    document = json.loads(text)
    document.update(values)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: changed(text, schema=2), "has schema version 2, and this kullback reads version 1"),
        (lambda text: changed(text, format="other"), "is not a profile"),
        (lambda text: "[]", "is not a profile"),
        (lambda text: text[:50], "is not JSON"),
        (lambda text: changed(text, rows=7), "counts that do not fit its cells and rows"),
        (lambda text: changed(text, rows=-1), "-1 for a count"),
        (lambda text: changed(text, columns={"x": {"kind": "number"}}), "is damaged"),
        (lambda text: changed(text, columns={"x": {"kind": "graph"}}), "a column of kind 'graph'"),
        (lambda text: changed(text, columns=[1]), "is damaged"),
        (lambda text: text.replace('"edges": [', '"edges": [1e9, '), "edges that do not ascend"),
    ],
)
def test_a_spoilt_profile_is_refused(tmp_path, spoil, message):
    path = tmp_path / "spoilt.json"
    path.write_text(spoil(profile(day(1)).dumps()))
    with pytest.raises(BadInput, match=message):
        Profile.read(path)
    with pytest.raises(BadInput, match=message):
        drift(path, day(2))
