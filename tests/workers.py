"""A group of workers without Ray: processes over gloo, for what all of them must agree on."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Processes are forked from one that has imported these, which takes some seconds.
_IMPORTED = ["torch", "service.training.worker"]


def work_together(work: Callable[..., Any], count: int, store: Path, *arguments: Any) -> None:
    """Let `count` workers do `work(*arguments)` in one process group; `store` is a file of its own."""
    multiprocessing.set_forkserver_preload(_IMPORTED)
    given = (work, count, str(store), arguments)
    mp.start_processes(_member, given, nprocs=count, start_method="forkserver")


def _member(
    index: int, work: Callable[..., Any], count: int, store: str, arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": str(index), "WORLD_SIZE": str(count)}
    dist.init_process_group("gloo", rank=index, world_size=count, store=dist.FileStore(store, count))
    work(*arguments)
    dist.destroy_process_group()
