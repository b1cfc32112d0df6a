"""Sixty snippets: in the wrong ones what is wrong is found where it stands, and no more; in the right ones nothing."""

import re
from pathlib import Path

import pytest

from kullback.check import RULES, check_paths, check_source, chosen

CORPUS = Path(__file__).parent / "corpus"
WRONG, RIGHT = sorted(CORPUS.glob("wrong/*.py")), sorted(CORPUS.glob("right/*.py"))


def expected(text: str) -> list[tuple[int, str]]:
    """Lines and codes that comments in a snippet announce."""
    lines = enumerate(text.splitlines(), 1)
    return [
        (i, code) for i, line in lines if (said := re.search("# expect: (.*)", line)) for code in said[1].split(", ")
    ]


def found(text: str) -> list[tuple[int, str]]:
    return [(one.line, one.code) for one in check_source(text)]


def test_there_are_thirty_of_each_and_every_rule_has_one():
    assert (len(WRONG), len(RIGHT)) == (30, 30)
    assert {code for path in WRONG for _, code in expected(path.read_text())} == set(RULES)


@pytest.mark.parametrize("path", WRONG, ids=lambda path: path.stem)
def test_what_is_wrong_is_found(path):
    text = path.read_text()
    assert expected(text)
    assert sorted(set(found(text))) == sorted(expected(text))


@pytest.mark.parametrize("path", RIGHT, ids=lambda path: path.stem)
def test_what_is_right_is_left_alone(path):
    assert found(path.read_text()) == []


def test_every_rule_can_be_the_only_one():
    for code in RULES:
        found = check_paths(WRONG, chosen([code])).findings
        assert {one.code for one in found} == {code}


def test_the_package_itself_passes():
    assert check_paths([Path(__file__).parents[2] / "src"]).findings == ()
