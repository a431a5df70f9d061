"""Where a run computes: a processor, a GPU, or several of one machine, by Lightning Fabric.

The batch of a run is that of all devices together: process r of n takes every n-th drawing number of each batch, from the
r-th. So the number of devices decides how long a run takes and not which examples a step learns from.
"""

from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import nn

from dicomnode.errors import ConfigurationError
from training.config import EngineConfiguration


def make_fabric(engine: EngineConfiguration) -> Fabric:
    """Choose devices and precision; `launch` of what is returned runs a function in one process for each device."""
    cuda = torch.cuda.is_available()
    automatic: Literal["bf16-mixed", "32-true"] = "bf16-mixed" if cuda else "32-true"
    devices = engine.devices if engine.devices != "auto" else torch.cuda.device_count() if cuda else 1
    if cuda and devices > torch.cuda.device_count():
        raise ConfigurationError(f"engine.devices = {devices}, but this machine has {torch.cuda.device_count()} GPUs")
    return Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=devices,
        strategy="ddp_spawn" if devices > 1 else "auto",  # children end with the training: what follows runs once
        precision=automatic if engine.precision == "auto" else engine.precision,
    )


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether matrices multiply faster in bfloat16 than in float32: on GPUs, and on processors with AMX."""
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older torch cannot say
    return device.type == "cuda" or bool(known.get("amx_bf16", False))


def own_numbers(fabric: Fabric, first_step: int, last_step: int, batch: int) -> list[int]:
    """Drawing numbers of this process's examples in steps first <= step < last."""
    return list(range(first_step * batch + fabric.global_rank, last_step * batch, fabric.world_size))


def own_batch(fabric: Fabric, batch: int) -> int:
    """This process's share of the batch.

    Raises:
        ConfigurationError: the batch cannot be shared evenly.
    """
    if batch % fabric.world_size:
        raise ConfigurationError(
            f"a batch of {batch} cannot be shared by {fabric.world_size} devices: make it a multiple, or set engine.devices"
        )
    return batch // fabric.world_size


def synchronised(fabric: Fabric, network: nn.Module) -> nn.Module:
    """Let BatchNorm see the batch of all GPUs; torch has that for CUDA only, on processors each process sees its own share."""
    if fabric.world_size == 1 or fabric.device.type != "cuda":
        return network
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-any-return, no-untyped-call]
