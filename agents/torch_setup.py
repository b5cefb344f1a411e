"""How torch computes: on which device, in which precision."""

import ctypes
import platform

import torch

from envs.contract import InputError

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as malloc.h numbers them
_LARGEST = 32 * 2**20  # bytes of what comes from the heap; the most that glibc takes


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


def keep_freed_memory() -> None:
    """Let the C library keep what torch frees for what it asks for next, instead of giving it back to the system.

    What comes from the system has to be mapped and cleared, page by page: a sixth of an update (`docs/log.md`). Other
    libraries than glibc decide for themselves.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, _LARGEST)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
