"""The teacher as stage one runs it: frozen, in eval mode, at one recorded precision.

Lightning Fabric gives device and precision; the model is not wrapped, because a frozen module
under a distributed wrapper raises and there is nothing to synchronise.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
import xxhash
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from kdcache.data.batch.forward import FlatOutput, forward
from kdcache.data.batch.mapping import Mapped
from kdcache.errors import UsageError
from kdcache.weights import innermost, plain_state


def weights_digest(teacher: nn.Module) -> str:
    """xxh3-128 over names, dtypes, shapes and bytes of all parameters and buffers.

    Sharded ones (DTensor) are gathered one by one, which every rank that holds a part must do:
    the digest is that of the same teacher in one piece, and without wrappers.
    """
    state = xxhash.xxh3_128()
    for name, tensor in sorted(plain_state(teacher, teacher.state_dict()).items()):
        if not isinstance(tensor, Tensor):
            continue
        values = _whole(tensor.detach()).cpu().contiguous()
        state.update(f"{name} {values.dtype} {tuple(values.shape)};".encode())
        state.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return f"xxh3:{state.hexdigest()}"


def _is_sharded(value: Any) -> bool:
    """Whether it is a DTensor, without the import of its machinery."""
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")


def _whole(value: Any) -> Any:
    """A DTensor gathered on every rank; anything else as it is."""
    return value.full_tensor() if _is_sharded(value) else value


def class_path(value: object) -> str:
    """``module.Name`` of an object's class, a wrapped module's own, or of a function."""
    value = innermost(value) if isinstance(value, nn.Module) else value
    named = value if hasattr(value, "__qualname__") else type(value)
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None and isinstance(value, getattr(fsdp, "FSDPModule", ())):
        # fully_shard puts a class of its own and FSDPModule in front of the user's.
        named = type(value).__mro__[2]
    # A script's own classes: in a spawned process its module has another name.
    module = "__main__" if named.__module__ == "__mp_main__" else named.__module__
    return f"{module}.{named.__qualname__}"


class TeacherForward:
    """Runs a teacher over batches and gives flat logits.

    Args:
        teacher: the model; frozen and put into eval mode here. Its placement is left alone where
            it already spans devices, or is sharded over the ranks of its replica.
        mapping: the teacher's batch mapping.
        accelerator: ``auto``, ``cpu``, ``cuda``, ...
        precision: Fabric's names, such as ``32-true`` or ``bf16-mixed``.
        device: number of the device on this machine.
    """

    def __init__(
        self,
        teacher: nn.Module,
        mapping: Mapped,
        *,
        accelerator: str = "auto",
        precision: str = "32-true",
        device: int = 0,
    ) -> None:
        on_cpu = accelerator == "cpu" or (accelerator == "auto" and not _has_accelerator())
        devices: Any = 1 if on_cpu else [_visible(device)]
        try:
            self._fabric = Fabric(
                accelerator=accelerator,
                devices=devices,
                precision=precision,
                plugins=LightningEnvironment(),  # SLURM's refuses what it need not care about here
            )
        except Exception as error:  # of a name, a device, a library that is not installed
            raise UsageError(
                f"dump.accelerator {accelerator!r} with precision {precision!r} cannot be used "
                f"here: {' '.join(str(error).split())} Nothing was written."
            ) from error
        teacher.eval().requires_grad_(False)
        parameters = list(teacher.parameters())
        self._is_sharded = any(map(_is_sharded, parameters))
        # Sharded, or on several devices: whoever did that has placed it.
        is_placed = self._is_sharded or len({p.device for p in parameters}) > 1
        module = teacher if is_placed else teacher.to(self._fabric.device)
        self._converts = precision.endswith("-true")
        self.module = self._fabric._precision.convert_module(module) if self._converts else module
        self._given = self.mapping = mapping.bound(teacher)

    def for_split(self) -> TeacherForward:
        """The same teacher, to infer the batch mapping of another split."""
        other = copy.copy(self)
        other.mapping = self._given
        return other

    @torch.inference_mode()
    def __call__(self, batch: Any) -> FlatOutput:
        """Logits of one batch, (P, C) float32, flat over its valid positions, on the device."""
        batch = self._fabric.to_device(batch)
        with self._fabric.autocast():
            output = forward(self._run, self.mapping, batch)
        self.mapping = output.mapping
        return output.widened()

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        if self._converts:  # inputs, too: a module of bfloat16 takes no float32
            args, kwargs = self._fabric._precision.convert_input((args, kwargs))
        output = self.module(*args, **kwargs)
        return pytree.tree_map(_whole, output) if self._is_sharded else output


def _has_accelerator() -> bool:
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def _visible(device: int) -> int:
    """A local rank as a device number: a job may see fewer devices than there are ranks."""
    return device % max(1, torch.cuda.device_count())
