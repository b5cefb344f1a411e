"""How torch computes: on which device, in which precision."""

from typing import Any

import torch

from agents.agent import Setting
from envs.contract import InputError


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimiser's state, its moments laid out in memory as the weights are.

    A fused optimiser walks weights and moments side by side in memory; a file holds no such layout, and a convolution's weights
    lie channels last here.
    """
    optimizer.load_state_dict(state)
    for weights, moments in optimizer.state.items():
        for name, moment in moments.items():
            if isinstance(moment, torch.Tensor) and moment.shape == weights.shape:
                moments[name] = torch.empty_like(weights).copy_(moment)


def autocast(setting: Setting) -> torch.autocast:
    """Matrix products in the setting's precision inside the block, sums and weights in float32."""
    return torch.autocast(setting.device.type, dtype=torch.bfloat16, enabled=setting.precision == torch.bfloat16)


def pick_device(name: str) -> torch.device:
    """`auto` takes a CUDA device where there is one.

    Raises:
        InputError: CUDA is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no CUDA device; take --device cpu, or install a CUDA build of torch")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """`auto` takes bfloat16 where the hardware multiplies in it, and float32 elsewhere."""
    if name == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            capabilities = torch.cpu.get_capabilities()
            native = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
        return torch.bfloat16 if native else torch.float32
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]
