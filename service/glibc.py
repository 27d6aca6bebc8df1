"""Environment variables that make glibc keep freed memory, for processes that hold large arrays.

By default glibc returns such memory, and the kernel zeroes each page when it is allocated again: up to
a fifth of a step on a CPU, and of decoding. One arena that is never trimmed keeps it. glibc reads the
variables when a process starts.
"""

KEEP_FREED_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**28),
}
