"""What processes speak through: nccl where every one of them has a GPU of its own, gloo elsewhere."""

import pytest
import torch

from vscan.io.ranks import Ranks


@pytest.mark.parametrize(
    ("use_nccl", "num_gpus", "num_local", "backend"),
    [(True, 8, 8, "nccl"), (True, 4, 4, "nccl"), (True, 1, 2, "gloo"), (True, 0, 2, "gloo"), (False, 8, 8, "gloo")],
)
def test_backend(monkeypatch, use_nccl, num_gpus, num_local, backend):
    said, chosen = [], []
    monkeypatch.setattr("torch.distributed.init_process_group", lambda name, timeout: said.append(name))
    monkeypatch.setattr("ctypes.CDLL", lambda name: type("C", (), {"prctl": staticmethod(lambda *args: 0)}))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name, value in {"RANK": 9, "LOCAL_RANK": 1, "WORLD_SIZE": 16, "LOCAL_WORLD_SIZE": num_local}.items():
        monkeypatch.setenv(name, str(value))
    ranks = Ranks(use_nccl=use_nccl)
    assert said == [backend]
    assert chosen == ([1] if backend == "nccl" else [])
    assert (ranks.rank, ranks.num_ranks) == (9, 16)
