"""Run by torchrun, one process a rank: the training of one student. Rank 0 prints how far it is."""

import os
import sys
from pathlib import Path

from kullback.kit.unfinished import Unfinished

from .material import Material, Texts
from .settings import ARMS, Settings


def main(folder: Path, arm: int, seed: int, parent: int) -> None:
    """What the run folder says, as the job that started it would do."""
    import torch

    from .training import train_student

    state = Unfinished(folder).load("run")
    assert state is not None
    home = Path(state["from"])
    settings = Settings.from_json(state["settings"])
    teacher = folder / "teacher" if settings.teacher is None else home / settings.teacher
    material = Material.of(settings, Texts.of(settings, home), teacher, home)
    try:
        train_student(
            material,
            ARMS[arm],
            seed,
            place_of(folder, arm, seed),
            home=home,
            on_step=lambda done, total: print(f"step {done} {total}", flush=True),
            parent=parent,
        )
        torch.distributed.barrier()
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def place_of(folder: Path, arm: int, seed: int) -> Path:
    """Where a student lies until the run is complete."""
    return Unfinished(folder).folder / f"{('taught', 'alone')[arm]}-{seed}"


def command(ranks: int, folder: Path, arm: int, seed: int) -> list[str]:
    """The launcher's line."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [*launcher, "--module", __name__, str(folder), str(arm), str(seed), str(os.getpid())]


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
