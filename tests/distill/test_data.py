import numpy as np
import polars as pl
import pytest

from kullback.distill import BadInput, data
from kullback.distill.models import Scaling

from .conftest import blobs


def test_digits_are_split_by_class_without_overlap():
    table = data.digits()
    split = data.split_rows(table, 0.4, seed=0)
    assert len(split.held_out) == 719
    assert sorted([*split.train, *split.held_out]) == list(range(1797))
    held_out = np.bincount(table.classes[split.held_out]) / np.bincount(table.classes)
    assert np.abs(held_out - 0.4).max() < 0.01
    chosen = data.choose_labelled(table, split, 100, seed=0)
    assert len(set(chosen)) == 100
    assert set(chosen) <= set(split.train)
    assert np.bincount(table.classes[chosen]).tolist() == [10] * 10


def test_another_seed_another_split_and_the_same_seed_the_same():
    table = data.digits()
    first, again, other = (data.split_rows(table, 0.4, seed).held_out for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("count", [3, 4, 7, 20, 97])
def test_every_class_is_on_both_sides(count):
    classes = np.array([0] * 95 + [1] * 3 + [2] * 2)
    rows = data.stratified(classes, count, 1, np.random.default_rng(0))
    assert len(set(rows)) == count
    taken, left = np.bincount(classes[rows], minlength=3), np.bincount(np.delete(classes, rows), minlength=3)
    assert taken.min() >= 1
    assert left.min() >= 1


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_both_file_kinds_give_the_same_table(tmp_path, suffix):
    path = tmp_path / f"t.{suffix}"
    frame = blobs()
    frame.write_csv(path) if suffix == "csv" else frame.write_parquet(path)
    table = data.read_table(path, "kind", drop=("flat",))
    assert table.feature_names == ("x", "y")
    assert table.class_names == ("a", "b", "c")
    assert table.classes.tolist() == [i % 3 for i in range(60)]
    np.testing.assert_allclose(table.features[:, 0], frame["x"].to_numpy(), rtol=1e-15)


@pytest.mark.parametrize(
    ("values", "names", "classes"),
    [
        ([10, 9, 10, 9], ("9", "10"), [1, 0, 1, 0]),
        (["x", "y", "x", "y"], ("x", "y"), [0, 1, 0, 1]),
        ([True, False, True, False], ("false", "true"), [1, 0, 1, 0]),
        ([2.0, 1.0, 2.0, 1.0], ("1", "2"), [1, 0, 1, 0]),
    ],
)
def test_class_columns_of_every_kind(tmp_path, values, names, classes):
    path = tmp_path / "t.parquet"
    pl.DataFrame({"f": [1, 2, 3, 4], "y": values}).write_parquet(path)
    table = data.read_table(path, "y")
    assert table.class_names == names
    assert table.classes.tolist() == classes


def test_scaling_uses_what_it_is_given_and_leaves_constants_at_zero():
    scaling = Scaling.of(np.array([[0.0, 5.0], [2.0, 5.0]]))
    assert scaling(np.array([[4.0, 5.0]])).tolist() == [[3.0, 0.0]]


def test_text_with_few_values_becomes_features_of_zeros_and_ones(tmp_path):
    path = tmp_path / "t.parquet"
    city = ["Rome", "Oslo", "Rome", "Oslo"] * 5
    pl.DataFrame({"f": range(20), "city": city, "on": [True, False] * 10, "y": list("ab") * 10}).write_parquet(path)
    table = data.read_table(path, "y")
    assert table.feature_names == ("f", "city=Oslo", "city=Rome", "on")
    assert table.features[:3].tolist() == [[0, 0, 1, 1], [1, 1, 0, 0], [2, 0, 1, 1]]
    assert table.notes == ("Columns of text, taken as categories (with how many values): city (2)",)


def test_a_frame_for_prediction_must_have_the_columns_and_known_values():
    columns = (data.Column("f"), data.Column("city", ("Oslo", "Rome")))
    frame = pl.DataFrame({"city": ["Rome", "Oslo"], "f": [1.5, 2.0]})  # by name, not position
    assert data.encode(frame, columns, "it").tolist() == [[1.5, 0, 1], [2.0, 1, 0]]
    with pytest.raises(BadInput, match="it: has no column 'city'; columns are f"):
        data.encode(frame.select("f"), columns, "it")
    with pytest.raises(BadInput, match=r"column 'city' holds 'Bonn', which is not among its values, in row 1 \(1 such"):
        data.encode(pl.DataFrame({"f": [1.0, 2.0], "city": ["Rome", "Bonn"]}), columns, "it")
    with pytest.raises(BadInput, match="column 'city' holds a missing value in row 0"):
        data.encode(pl.DataFrame({"f": [1.0], "city": [None]}), columns, "it")


def test_text_of_a_name_each_is_no_category(tmp_path):
    path = tmp_path / "t.parquet"
    names = [f"person {i}" for i in range(20)]
    pl.DataFrame({"f": range(20), "name": names, "y": list("ab") * 10}).write_parquet(path)
    with pytest.raises(BadInput, match=r"not numeric: name .*at most 4 different values .*--drop name"):
        data.read_table(path, "y")


def test_a_fingerprint_tells_tables_apart(tmp_path):
    path = tmp_path / "t.parquet"
    prints = set()
    for f, y in (([1, 2, 3, 4], "aabb"), ([1, 2, 3, 5], "aabb"), ([1, 2, 3, 4], "abab"), ([1, 2, 3, 4], "aacc")):
        pl.DataFrame({"f": f, "y": list(y)}).write_parquet(path)
        prints.add(data.read_table(path, "y").fingerprint())
        assert data.read_table(path, "y").fingerprint() in prints
    assert len(prints) == 4


BAD = {
    "non-numeric": ({"f": ["1", "2", "NA", "4"], "y": list("aabb")}, r"not numeric: f \(.*'NA' in row 2\).*--drop f"),
    "missing value": ({"f": [1.0, None, 3.0, 4.0], "y": list("aabb")}, r"column 'f' holds a missing value in row 1"),
    "nan": ({"f": [1.0, 2.0, 3.0, float("nan")], "y": list("aabb")}, r"column 'f' holds NaN in row 3"),
    "infinite": ({"f": [1.0, 2.0, float("-inf"), 4.0], "y": list("aabb")}, r"column 'f' holds -inf in row 2"),
    "missing class": ({"f": [1, 2, 3, 4], "y": ["a", None, "b", "b"]}, r"class column 'y' is missing in row 1"),
    "one class": ({"f": [1, 2, 3, 4], "y": list("aaaa")}, r"holds one class only, a; at least two"),
    "rare class": ({"f": [1, 2, 3, 4], "y": list("aaab")}, r"too few rows in 1 of 2 classes of 'y': b \(1\)"),
    "quantity": ({"f": [1, 2, 3, 4], "y": [0.5, 1.0, 2.0, 2.0]}, r"'y' holds 0.5 in row 0, a quantity"),
    "no target": ({"f": [1, 2], "label": ["a", "b"]}, r"--target 'y' is not a column; .*Columns are f, label"),
    "no features": ({"y": list("aabb")}, r"no feature columns beside --target 'y'"),
    "no rows": ({"f": [], "y": []}, r"has a header but no rows"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_say_where_and_what_to_do(tmp_path, case):
    columns, message = BAD[case]
    path = tmp_path / "t.parquet"
    pl.DataFrame(columns).write_parquet(path)
    with pytest.raises(BadInput, match=message) as caught:
        data.read_table(path, "y")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.csv", None, "no such file"),
        ("t.txt", b"a,b", "is not a .csv or .parquet file"),
        ("t.csv", b"", "cannot be read as csv"),
        ("t.parquet", b"PAR0", "cannot be read as parquet"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=message):
        data.read_table(tmp_path / name, "y")


def test_labels_are_ten_per_class_unless_that_is_more_than_half():
    table = data.digits()
    assert data.default_labels(table, data.split_rows(table, 0.4, 0)) == 100
    assert data.default_labels(table, data.split_rows(table, 0.95, 0)) == 45
    assert data.default_labels(table, data.split_rows(table, 0.999, 0)) == 10


@pytest.mark.parametrize("labels", [9, 1079])
def test_label_counts_that_do_not_fit(labels):
    table = data.digits()
    with pytest.raises(BadInput, match="write a number from 10 to 1078"):
        data.choose_labelled(table, data.split_rows(table, 0.4, 0), labels, 0)
