"""How torch computes: on which device, in which precision."""

import ctypes
import mmap
import platform

import torch

from envs.contract import InputError

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # as malloc.h numbers them
_LARGEST = 32 * 2**20  # bytes of what comes from the heap; the most that glibc takes
_LARGE_PAGES = 256 * 2**20  # bytes of the heap that may lie in them


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


def use_large_pages() -> None:
    """Let what the heap grows by next lie in pages of 2 MB, where the system has such for who asks.

    Each forward pass reads all weights, and those of the Nature CNN's dense layer fill 800 pages of 4 KB: more than a processor
    has the places of at hand. What is too large for the heap keeps small ones. To be called by the first thread.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.malloc.restype = library.sbrk.restype = ctypes.c_void_p
        library.sbrk.argtypes = [ctypes.c_ssize_t]
        library.free.argtypes = [ctypes.c_void_p]
        library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        library.mallopt(_TOP_PAD, _LARGE_PAGES)
        block = library.malloc(_LARGEST - mmap.PAGESIZE)  # more than is free, so the heap grows
        library.mallopt(_TOP_PAD, 2**17)  # as it was
        if block is not None:  # None where memory has a limit
            begin = block // mmap.PAGESIZE * mmap.PAGESIZE
            library.madvise(begin, max(0, library.sbrk(0) - begin), mmap.MADV_HUGEPAGE)
            library.free(block)
