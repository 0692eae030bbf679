"""Stand-in of Python on Windows: run a program without what Windows lacks.

    python tests/as_on_windows.py train.py --data ...

What only POSIX has is taken away after the libraries are loaded, which have code of their own for Windows.
"""

import builtins
import ctypes
import io
import mmap
import multiprocessing.pool
import multiprocessing.resource_sharer  # noqa: F401 (loaded before its system functions go away)
import os
import runpy
import signal
import sys
from pathlib import Path

import cv2  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import torch.distributed
import torch.utils.data  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
LACKING = """
    sysconf sched_getaffinity sched_setaffinity memfd_create posix_fadvise posix_fallocate killpg setsid getpgid getpgrp
    uname getuid geteuid getgid getegid getloadavg chown fchmod fchown mkfifo statvfs pread pwrite nice wait3 wait4
    O_PATH O_NONBLOCK O_DIRECTORY O_NOFOLLOW O_CLOEXEC O_SYNC O_DSYNC POSIX_FADV_WILLNEED
""".split()
SIGNALS = "SIGKILL SIGHUP SIGUSR1 SIGUSR2 SIGXCPU SIGXFSZ SIGCHLD SIGALRM SIGQUIT SIGPIPE SIGSTOP SIGCONT".split()
SIGNAL_FUNCTIONS = "alarm setitimer pthread_kill sigwait siginterrupt".split()
MODULES = "fcntl resource pwd grp termios tty pty syslog".split()


def take_away() -> None:
    """Remove what Windows lacks from the loaded modules."""
    opening, open_descriptor, make_map = builtins.open, os.open, mmap.mmap

    def map_memory(descriptor, length, tagname=None, **settings):
        return make_map(descriptor, length, **settings)

    def open_file(file, *args, **settings):
        if isinstance(file, str | os.PathLike) and str(file).startswith(("/proc/", "/sys/")):
            raise FileNotFoundError(2, "No such file or directory", str(file))
        return opening(file, *args, **settings)

    def no_folders(file, *args, **settings):
        if os.path.isdir(file):
            raise PermissionError(13, "Permission denied", str(file))
        return open_descriptor(file, *args, **settings)

    def no_fork():
        raise AssertionError("os.fork was called")

    os.open, mmap.mmap = no_folders, map_memory
    builtins.open = io.open = open_file
    for names, module in ((LACKING, os), (SIGNALS + SIGNAL_FUNCTIONS, signal)):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    sys.modules.update(dict.fromkeys(MODULES))
    os.fork, sys.platform = no_fork, "win32"
    kernel = type("Kernel", (), {"GlobalMemoryStatusEx": staticmethod(lambda status: 0)})
    ctypes.windll = type("Libraries", (), {"kernel32": kernel})


if __name__ == "__main__":
    take_away()
    sys.path[0] = str(ROOT)
    sys.argv = [str(ROOT / sys.argv[1]), *sys.argv[2:]]
    runpy.run_path(sys.argv[0], run_name="__main__")
