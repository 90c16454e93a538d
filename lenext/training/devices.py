"""Which processors train, and how several processes become one training: Lightning Fabric behind one plain loop.

Processes are started by Fabric (`--devices`, `--nodes`), by torchrun or by Slurm; what starts them names them in the
environment. Rank 0 alone writes files and speaks; the others learn from it what was decided.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch

from lenext import terminal

log = logging.getLogger("lenext")
Answer = TypeVar("Answer")
# The first process may decode a large data set while the others wait for it.
PATIENCE = timedelta(hours=6)


def device_of(accelerator: str) -> torch.device:
    """The kind of processor to train on. Raises ValueError for a GPU that is not there."""
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError("--accelerator gpu: no CUDA device is to be seen; leave it out to train on the processor")
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")


def processes(devices: int, nodes: int) -> tuple[int, int]:
    """(processes on a machine, machines), from what started this process if that was torchrun or Slurm."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return local, int(os.environ["WORLD_SIZE"]) // local
    from lightning_fabric.plugins.environments import SLURMEnvironment

    if SLURMEnvironment.detect():
        machines = int(os.environ.get("SLURM_NNODES", "1"))
        return int(os.environ.get("SLURM_NTASKS", "1")) // machines, machines
    return devices, nodes


def launch(accelerator: str, devices: int, nodes: int, strategy: str, *, freezes: bool = False) -> Any:
    """A launched Fabric; from here on every process of the training runs the same program.

    freezes: some parameters get gradients only later, which DDP has to expect.
    """
    from lightning_fabric import Fabric

    device = device_of(accelerator)
    if device.type == "cuda":  # or cuDNN may take another algorithm when a run goes on
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    devices, nodes = processes(devices, nodes)
    if device.type == "cuda" and devices > torch.cuda.device_count():
        raise ValueError(f"--devices is {devices}, and this machine has {torch.cuda.device_count()} GPUs")
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    fabric = Fabric(
        accelerator=device.type,
        devices=devices,
        num_nodes=nodes,
        strategy=_strategy(strategy, devices * nodes, freezes),
    )
    if restarted():
        _meet_anew(device)
    fabric.launch()
    if not fabric.is_global_zero:
        log.setLevel(logging.ERROR)
        terminal.errors.quiet = True
    return fabric


def _strategy(name: str, processes: int, freezes: bool) -> Any:
    if processes == 1:
        return "auto"
    if name == "fsdp":
        from lightning_fabric.strategies import ModelParallelStrategy

        from lenext.training.sharding import shard

        return ModelParallelStrategy(
            parallelize_fn=shard,
            data_parallel_size=processes,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            timeout=PATIENCE,
        )
    from lightning_fabric.strategies import DDPStrategy

    return DDPStrategy(find_unused_parameters=freezes, timeout=PATIENCE)


def _meet_anew(device: torch.device) -> None:
    """Let the processes of a restart find each other where those before them have left no addresses.

    The launcher keeps one store of addresses over all restarts, and who asks early is told those of dead processes.
    """
    import torch.distributed as dist

    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=PATIENCE)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore(f"restart_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=PATIENCE,
    )


def decide(fabric: Any, question: Callable[[], Answer]) -> Answer:
    """What `question` answers in the first process, in every process; it runs in that one alone.

    A sentence that it raises for the user (ValueError, OSError) ends every process; the first one says it.
    """
    if fabric.world_size == 1:
        return question()
    answer: tuple[bool, Any] = (False, None)
    if fabric.is_global_zero:
        try:
            answer = (True, question())
        except (ValueError, OSError, KeyboardInterrupt) as error:
            answer = (False, None)
            fabric.broadcast(answer)
            raise error
    good, value = fabric.broadcast(answer)
    if not good:
        leave()
    return value


def leave() -> NoReturn:
    """End a process that is not the first: what follows is that one's alone, such as saving, or saying what is wrong.

    Always as if all were well: another status has the launcher kill the first one in the midst of it.
    """
    sys.stdout.flush()
    sys.exit(0)


def restarted() -> bool:
    """Whether torchrun has started this training again after one of its processes died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def restarts() -> bool:
    """Whether torchrun would start this training again."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


@contextlib.contextmanager
def together(fabric: Any, mend: str) -> Iterator[None]:
    """Another process that dies is said in a sentence, with `mend`, instead of a transport's complaint.

    A sentence for the user that every process would say is said by the first one.
    """
    try:
        yield
    except ValueError:
        if fabric.is_global_zero:
            raise
        leave()
    except RuntimeError as error:
        lost = any(word in str(error) for word in ("closed by peer", "reset by peer", "Broken pipe", "NCCL", "Gloo"))
        if fabric.world_size == 1 or not lost:
            raise
        log.debug("%s", error)
        raise OSError(f"another process of this training has ended; {mend}") from None
