"""The processes of a launch, and the accelerator that they share."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, parse_flag_from_env

from pivot.records import BadInput
from pivot.train.settings import Settings


def processes() -> PartialState:
    """The state of this launch. Whoever needs it first must get it here.

    On a machine without accelerator a bare `PartialState()` lets every launched process believe that it is alone.
    """
    # Else transformers opens weights in the first process alone, and hashes checked at load are those of empty tensors.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
    if state.num_processes == 1 < int(os.environ.get("WORLD_SIZE", "1")):
        raise RuntimeError("accelerate was set up before pivot.train.launch.processes(): each process would train alone")
    return state


def accelerator(settings: Settings, folder: Path) -> Accelerator:
    """A fresh accelerator: stages of one run may differ in precision, and accelerate remembers the first one."""
    state = processes()
    on_cpu = state.device.type == "cpu"
    if state.distributed_type == DistributedType.DEEPSPEED:
        raise BadInput("DeepSpeed is not supported by this training loop; launch with --multi_gpu or with --use_fsdp --fsdp_version 2")
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if sharded and os.environ.get("FSDP_VERSION", "1") != "2":
        raise BadInput("FSDP version 1 is not supported by this training loop; launch with --fsdp_version 2")
    lacking = sorted(set(settings.report_to) - {str(tracker.value) for tracker in get_available_trackers()})
    if lacking:
        raise BadInput(
            f"report_to: {', '.join(lacking)} is not among accelerate's trackers that are installed here; install it or leave it out"
        )
    AcceleratorState._reset_state()
    if sharded:  # a stage before left its mark in the state that the reset does not touch
        kind = f"MULTI_{'GPU' if state.device.type == 'cuda' else state.device.type.upper()}"
        PartialState._shared_state["distributed_type"] = DistributedType(kind)
    made = Accelerator(
        cpu=on_cpu,
        mixed_precision="bf16" if settings.precision == "bf16" else "no",
        log_with=list(settings.report_to) or None,
        project_dir=folder,
    )
    if sharded and on_cpu:
        # accelerate offers FSDP2 on accelerators alone, torch has it on CPUs too: what is tested there holds here.
        plugin = FullyShardedDataParallelPlugin()
        if settings.precision == "bf16":
            plugin.set_mixed_precision("bf16")
        AcceleratorState._shared_state["fsdp_plugin"] = plugin
        for shared in (AcceleratorState._shared_state, PartialState._shared_state):
            shared["distributed_type"] = DistributedType.FSDP
    made.gradient_accumulation_steps = 1  # shares of a loss add up; a value from the environment would divide them
    return made
