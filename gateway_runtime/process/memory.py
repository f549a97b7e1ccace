"""The memory of a server process."""

import ctypes

_MMAP_THRESHOLD = -3
"""Number of glibc's option: the size of mapped blocks."""
_LARGE_BLOCK_BYTES = 512 * 1024


def return_large_blocks() -> None:
    """Return large blocks to the system as soon as they are freed.

    glibc raises this size to 32 MiB when it frees the first such block. After that, large bodies leave holes between
    what lives longer, and a process keeps the memory of its worst moment. Other C libraries have no such setting.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)
