"""An environment for processes that hold large arrays, which glibc would give back and get anew.

Each time the kernel zeroes them page by page: up to a fifth of a step on a CPU, and of decoding. One
arena that is never trimmed keeps what was freed. Read at the start of a process, so set by then.
"""

KEEP_FREED_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**28),
}
