"""Where the workers of a group meet: torch's process group, over the ranks that Ray Train gave them.

Ray Train's TorchConfig does the same, but its controller, a new process for every group of workers, has
to import torch for it: two seconds after every death of a worker.
"""

import os
import socket
from dataclasses import dataclass

import ray
from ray.train import get_context
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train.backend import Backend, BackendConfig


class _Meeting(Backend):
    share_cuda_visible_devices = True  # a worker's GPU is the one at its local rank

    def on_start(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, ProcessGroup)
        address, port = worker_group.execute_single(0, _free_address)
        worker_group.execute(_meet, address, port, backend_config)


@dataclass
class ProcessGroup(BackendConfig):
    """Torch's process group: its backend, such as "gloo", and how long a worker waits for the others."""

    backend: str
    timeout_s: float

    @property
    def backend_cls(self) -> type[Backend]:
        """What Ray Train's controller calls once the workers have their ranks."""
        return _Meeting


def _free_address() -> tuple[str, int]:
    """This node's address, and a port that is free on it now."""
    address = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        return address, server.getsockname()[1]


def _meet(address: str, port: int, group: ProcessGroup) -> None:
    """Join the process group, in a worker: there, torch is loaded."""
    from service.engine import distributed

    context = get_context()
    os.environ |= {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
    }
    distributed.meet(group.backend, group.timeout_s)
