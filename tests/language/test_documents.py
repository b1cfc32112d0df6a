"""Texts of files, of folders, and of Python's own documentation."""

import json

import pytest

pytest.importorskip("pyarrow")

import pyarrow
from pyarrow import parquet

from kullback._errors import BadInput
from kullback.language.documents import Document, docstrings, documents, fingerprint, split


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_text_file_is_one_document_and_a_row_is_one(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffgrün\n", encoding="utf-8")
    assert list(documents(tmp_path / "a.txt")) == [Document(str(tmp_path / "a.txt"), "grün\n")]
    b = lines(tmp_path / "b.jsonl", {"text": "one", "id": 1}, {"text": " \n"}, {"text": "three"})
    assert [(d.name, d.text) for d in documents(b)] == [(f"{b}:0", "one"), (f"{b}:2", "three")]
    c = tmp_path / "c.parquet"
    parquet.write_table(pyarrow.table({"text": [f"row {i}" for i in range(2500)], "x": list(range(2500))}), c)
    found = list(documents(c))
    assert len(found) == 2500
    assert found[1024] == Document(f"{c}:1024", "row 1024")


def test_a_folder_gives_its_files_sorted_at_any_depth(tmp_path):
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "a.txt").write_text("second")
    (tmp_path / "b.txt").write_text("first")
    (tmp_path / "README.md").write_text("not read")
    assert [d.text for d in documents(tmp_path)] == ["first", "second"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.txt", b"  \n", "holds no text"),
        ("a.txt", b"gr\xfcn", "is not UTF-8 (byte 2)"),
        ("a.md", b"text", "is not a file that ends in .jsonl, .parquet, .txt"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 1}\n', 'line 2 has no text under "text"'),
        ("a.jsonl", b'{"content": "a"}\n', 'line 1 has no text under "text"'),
        ("a.jsonl", b'["a"]\n', 'line 1 has no text under "text"'),
        ("a.jsonl", b'{"text": "a"\n', "line 1 is no JSON"),
        ("a.jsonl", b'{"text": "\xff"}\n', "line 1 is not UTF-8"),
        ("a.parquet", b"PAR1 is missing", "cannot be read as Parquet"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        list(documents(path))
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_tables_without_text_and_paths_without_files_are_refused(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"body": ["a"]}), path)
    with pytest.raises(BadInput, match="has no column 'text', but body"):
        list(documents(path))
    parquet.write_table(pyarrow.table({"text": ["a", None]}), path)
    with pytest.raises(BadInput, match="row 1 has no text in column 'text'"):
        list(documents(path))
    with pytest.raises(BadInput, match="no such file or folder"):
        list(documents(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="holds no file that ends in"):
        list(documents(tmp_path / "empty"))


def test_the_documentation_of_python_is_a_document_a_module_in_a_fixed_order():
    found = docstrings()
    names = [d.name for d in found]
    assert 200 < len(found) < 1000
    assert 1e6 < sum(len(d.text) for d in found) < 4e6
    assert names == sorted(set(names), key=lambda name: name.split("/"))
    assert {"textwrap.py", "json/decoder.py"} <= set(names)
    assert not [name for name in names if name.startswith(("idlelib", "site-packages", "test/", "tkinter"))]
    by_name = {d.name: d.text for d in found}
    text = by_name["textwrap.py"]
    assert text.startswith("Text wrapping and filling.")
    assert 0 < text.index("Object for wrapping/filling text.") < text.index("wrap(text : string) -> [string]")
    assert fingerprint(found) == fingerprint(docstrings())


def test_the_split_is_by_text_and_the_same_in_any_order():
    found = [Document(str(i), f"text {i % 20}") for i in range(40)]  # each text twice
    train, held_out = split(found, 0.2)
    assert {d.text for d in train}.isdisjoint(d.text for d in held_out)
    assert (len(train), len(held_out)) == (32, 8)
    again = split(found[::-1], 0.2)
    assert [set(side) for side in again] == [set(train), set(held_out)]
    assert [len(side) for side in split(found[:2], 1e-9)] == [1, 1]
    assert [len(side) for side in split(found[:2], 0.999)] == [1, 1]
    with pytest.raises(BadInput, match="there are 1 different documents"):
        split([found[0], found[20]], 0.5)


def test_a_fingerprint_knows_names_texts_and_their_borders():
    one = [Document("a", "bc"), Document("d", "e")]
    others = [[Document("ab", "c"), one[1]], [Document("a", "b"), Document("d", "e")], one[::-1], one[:1]]
    assert len({fingerprint(docs) for docs in [one, *others]}) == 5
