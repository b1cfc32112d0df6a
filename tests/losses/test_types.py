"""What a type checker knows of a loss: its arguments, and that it returns a tensor."""

import re

import pytest

from kullback import losses
from kullback.losses.base import Loss

BUILD = {"LabelSmoothing": "LabelSmoothing(5)"}
MODULES = [
    name
    for name in losses.__all__
    if isinstance(getattr(losses, name), type) and issubclass(getattr(losses, name), Loss)
]
MISTAKES = {
    "Distillation()(student=x, teachers=x)": 'Unexpected keyword argument "teachers" for "__call__"',
    "GKD()(student=x)": 'Missing named argument "teacher" for "__call__"',
    "RDrop()(first=x, second=x, labels=[0])": 'Argument "labels" .* has incompatible type "list\\[int\\]"',
    "DKD()(x, x, x)": 'Too many positional arguments for "__call__"',
    "NWJ()(real=x, fake=x).backwards()": '"Tensor" has no attribute "backwards"',
}


@pytest.mark.slow
def test_calls_are_typed(tmp_path):
    """mypy on calls that are right (their types revealed) and on calls that are wrong (each an error)."""
    api = pytest.importorskip("mypy.api")
    right = [f"reveal_type({BUILD.get(name, name + '()')}.__call__)" for name in MODULES]
    lines = ["import torch", "from kullback.losses import *", "x = torch.zeros(2, 3)", *right, *MISTAKES]
    page = tmp_path / "page.py"
    page.write_text("\n".join(lines) + "\n")
    out, err, _ = api.run([str(page), "--strict", "--follow-imports=silent", "--cache-dir", str(tmp_path / "cache")])
    assert not err
    said = {int(number): text for number, text in re.findall(r"page\.py:(\d+): (?:note|error): (.*)", out)[::-1]}
    for number, name in enumerate(MODULES, 4):
        revealed = re.fullmatch(r'Revealed type is "def \((.*)\) -> torch\._tensor\.Tensor"', said[number])
        assert revealed, said[number]
        assert "Any" not in revealed[1].replace("sample_shape: Any", "")
        assert "torch._tensor.Tensor" in revealed[1], name
    for number, expected in enumerate(MISTAKES.values(), 4 + len(MODULES)):
        assert re.search(expected, said[number]), said[number]
