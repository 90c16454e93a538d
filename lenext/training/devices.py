"""Which processors train, and how several processes become one training: Lightning Fabric behind one plain loop.

Processes are started by Fabric (`--devices`, `--nodes`), by torchrun or by Slurm; what starts them names them in the
environment. Rank 0 alone writes files and speaks; the others learn from it what was decided.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from lenext import terminal
from lenext.inference.memory import is_out_of_memory

log = logging.getLogger("lenext")
Answer = TypeVar("Answer")
# The first process may decode a large data set while the others wait for it.
PATIENCE = timedelta(hours=6)
# What tells machines where the first one is and which one each of them is.
MEETING = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
# Where the first process notes that a sentence for the user ends it, and how long the others wait for such a note.
SAID, MOMENT = "lenext/said", timedelta(seconds=10)


def device_of(accelerator: str) -> torch.device:
    """The kind of processor to train on. Raises ValueError for a GPU that is not there."""
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError("--accelerator gpu: no CUDA device is to be seen; leave it out to train on the processor")
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")


def processes(devices: int, nodes: int) -> tuple[int, int]:
    """(processes on a machine, machines), from what started this process if that was torchrun or Slurm.

    Raises ValueError where the processes could not find each other.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return local, int(os.environ["WORLD_SIZE"]) // local
    from lightning_fabric.plugins.environments import SLURMEnvironment

    if SLURMEnvironment.detect():
        machines, tasks = (int(os.environ.get(name, "1")) for name in ("SLURM_NNODES", "SLURM_NTASKS"))
        if tasks > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
            raise ValueError(
                "Slurm has to say how many processes each machine has: "
                f"srun --nodes {machines} --ntasks-per-node {tasks // machines} lenext train ..."
            )
        return tasks // machines, machines
    missing = [name for name in MEETING if name not in os.environ]
    if nodes > 1 and missing:
        raise ValueError(
            f"--nodes {nodes}: without {', '.join(missing)} the machines would wait for each other in vain. Give each "
            "of them the address of the first, a free port there, and its own number from 0 on: "
            f"MASTER_ADDR=10.0.0.1 MASTER_PORT=29500 NODE_RANK=0 lenext train ... --nodes {nodes}"
        )
    return devices, nodes


def launch(accelerator: str, devices: int, nodes: int, strategy: str, *, freezes: bool = False) -> Any:
    """A launched Fabric; from here on every process of the training runs the same program.

    freezes: some parameters get gradients only later, which DDP has to expect.
    """
    from lightning_fabric import Fabric

    device = device_of(accelerator)
    if device.type == "cuda":
        repeat_exactly()
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


def repeat_exactly() -> None:
    """Let a GPU add up in the same order every time, or a run that goes on would not be the one that was interrupted.

    What has no such way (adaptive average pooling to more than one value, backward) goes its own, and torch warns.
    """
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Nothing here reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def divides(strategy: str, processes: int) -> bool:
    """Whether each process holds a part of the weights only, so that no device ever sees the whole network."""
    return strategy == "fsdp" and processes > 1


def _strategy(name: str, processes: int, freezes: bool) -> Any:
    if processes == 1:
        return "auto"
    if divides(name, processes):
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


def take_from_first(fabric: Any, buffers: Iterable[Tensor]) -> None:
    """Fill buffers, such as statistics of batch norms, with those of the first process, in every process."""
    if fabric.world_size > 1:
        for buffer in buffers:
            sent = buffer.contiguous()  # itself, but of channels-last tables
            torch.distributed.broadcast(sent, src=0)
            buffer.copy_(sent)


@contextlib.contextmanager
def together(fabric: Any, mend: str) -> Iterator[None]:
    """Another process that dies is said in a sentence, with `mend`, instead of a transport's complaint.

    A sentence for the user that every process would say is said by the first one; what ends another process alone,
    that one says itself, and ends with a status that ends them all.
    """
    try:
        yield
    except ValueError as error:
        if fabric.world_size == 1:
            raise
        if fabric.is_global_zero:
            with contextlib.suppress(RuntimeError):  # what keeps the store may be what has ended
                _store().set(SAID, "")
            raise
        if _is_said_by_the_first():
            leave()
        raise OSError(f"process {fabric.global_rank} cannot go on: {error}; then {mend}") from None
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise MemoryError(
                "out of memory: fewer pictures at once (--micro-batch N) or smaller ones (--image-size N) need less"
            ) from None
        lost = any(word in str(error) for word in ("closed by peer", "reset by peer", "Broken pipe", "NCCL", "Gloo"))
        if fabric.world_size == 1 or not lost:
            raise
        log.debug("%s", error)
        raise OSError(f"another process of this training has ended; {mend}") from None


def _is_said_by_the_first() -> bool:
    """Whether what ends this process ends the first one as well."""
    try:
        _store().wait([SAID], MOMENT)
    except RuntimeError as error:  # no note came; or the store has gone with the first process, which said it
        return "timeout" not in str(error).lower()
    return True


def _store() -> Any:
    """What the processes found each other by: texts by name, for all of them."""
    return torch.distributed.distributed_c10d._get_default_store()


def memory_format(network: nn.Module, device: torch.device, *, channels_last: bool) -> torch.memory_format:
    """How weights and inputs lie in memory: channels-last if that is asked for and safe.

    On a CPU, oneDNN 3.12 (PyTorch 2.14) writes beyond the end of the weights' gradient of a strided 1 x 1 convolution
    of fewer than 16 channels, such as narrow ResNets have in their shortcuts: other memory is destroyed.
    """
    unsafe = device.type == "cpu" and any(
        layer.kernel_size == (1, 1) and max(layer.stride) > 1 and layer.in_channels < 16
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d)
    )
    return torch.channels_last if channels_last and not unsafe else torch.contiguous_format
