"""Vocabularies split over real ranks: processes that talk to each other over gloo. `ranks.py` says what they check."""

import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch.distributed as dist

SCRIPT = Path(__file__).with_name("ranks.py")
pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo")

_spec = spec_from_file_location("ranks", SCRIPT)
ranks = module_from_spec(_spec)
_spec.loader.exec_module(ranks)


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """world -> what each rank reports; the processes of a world run once, when the first test asks for it."""
    kept = {}

    def of(world):
        if world not in kept:
            folder = tmp_path_factory.mktemp(f"world{world}")
            files = [folder / f"rank{k}.json" for k in range(world)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            processes = [
                subprocess.Popen(
                    [sys.executable, "-W", "error", str(SCRIPT), str(k), str(world), str(folder / "store"), str(file)],
                    env=environment,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                for k, file in enumerate(files)
            ]
            try:
                said = [process.communicate(timeout=900)[1] for process in processes]
            finally:
                for process in processes:
                    process.kill()
            kept[world] = [json.loads(f.read_text()) if f.exists() else {} for f in files], said
        return kept[world]

    return of


@pytest.mark.parametrize(
    ("world", "name"), [(world, name) for world, checks in ranks.CHECKS.items() for name in checks]
)
def test_on_every_rank(reports, world, name):
    found, said = reports(world)
    for k, report in enumerate(found):
        assert name in report, f"rank {k} of {world} ended before it came here: {said[k]}"
        assert not report[name], f"rank {k} of {world}: {report[name]}"


def test_without_a_process_group_sharded_says_what_to_write():
    from kullback import FormError, Logits, Sharded

    with pytest.raises(FormError, match=r"init_process_group\(.*Logits\(x\)"):
        Sharded(Logits([[0.0, 1.0]]), num_classes=2, start=0)
