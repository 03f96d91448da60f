"""Two processes of `detpool.distributed`."""

from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from detpool.distributed import compute_on_main_process


def _fail(kind: type[Exception]) -> None:
    raise kind("of the main process")


def _compute(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    assert compute_on_main_process(lambda: {"AP": 0.5}) == {"AP": 0.5}
    for kind, elsewhere in ((ValueError, ValueError), (KeyError, RuntimeError)):
        with pytest.raises(elsewhere if rank else kind, match="of the main process"):
            compute_on_main_process(lambda kind=kind: _fail(kind))
    dist.destroy_process_group()
    Path(folder, f"done{rank}").touch()


def test_no_process_waits_for_one_that_failed(tmp_path: Path) -> None:
    mp.start_processes(_compute, args=(str(tmp_path),), nprocs=2, start_method="fork")
    assert {path.name for path in tmp_path.glob("done*")} == {"done0", "done1"}
