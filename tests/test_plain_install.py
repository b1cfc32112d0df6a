"""After `pip install kullback`, without extras: what works, and what the rest says to install.

The packages of the extras are hidden from a fresh interpreter, which stands for an environment that lacks them.
"""

import subprocess
import sys

import pytest

# every package that an extra brings and a plain install does not
OPTIONAL = [
    "accelerate", "constriction", "datasets", "duckdb", "gymnasium", "matplotlib", "narwhals", "ot", "pandas", "peft",
    "polars", "pyarrow", "pyspark", "safetensors", "sklearn", "statsmodels", "tokenizers", "transformers", "triton",
    "trl", "vega_datasets",
]  # fmt: skip
HIDE = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL!r})); from kullback.cli import main; main()"


@pytest.fixture
def plain(tmp_path):
    (tmp_path / "p.csv").write_text("k,count\nu,30\nv,50\nw,20\n")
    (tmp_path / "q.csv").write_text("k,count\nu,35\nv,40\nw,25\n")
    (tmp_path / "bad.py").write_text("import torch\nloss = torch.nn.KLDivLoss()\n")
    (tmp_path / "good.py").write_text("import torch\nloss = torch.nn.KLDivLoss(reduction='batchmean')\n")
    (tmp_path / "x.parquet").write_bytes(b"PAR1aaaaPAR1")

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", HIDE, *arguments], cwd=tmp_path, capture_output=True, text=True)

    return call


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--help"], 0, "check"),
        (["kl", "Normal(0,1)", "Normal(1,2)"], 0, "0.443147 nats"),
        (["kl", "p.csv", "q.csv"], 0, "taken for counts"),
        (["check", "good.py"], 0, "no findings"),
        (["check", "bad.py"], 1, "KLB001"),
        (["recipes"], 0, "rdrop"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_works_without_extras(plain, arguments, code, words):
    done = plain(*arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["kl", "x.parquet", "q.csv"], "distill"),
        (["kl", "p.csv", "q.csv", "--plot", "a.svg"], "distill"),
        (["distill"], "distill"),
        (["lm", "distill"], "lm"),
        (["drift", "p.csv", "q.csv"], "data"),
        (["recipes", "run", "rdrop"], "recipes"),
        (["code", "p.csv", "q.csv", "p.csv"], "code"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_what_needs_more_names_its_extra_in_one_line(plain, arguments, extra):
    done = plain(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"pip install 'kullback[{extra}]'" in done.stderr
    assert done.stderr.count("\n") == 1
