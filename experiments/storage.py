"""Writing files so that a crash at any moment leaves either the old content or the new one."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from envs.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the system's refusal to read or write ``path`` into an error that a user can act on."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in FULL:
            fix = "free some space, then `mbrl resume` the run: its last checkpoint is intact"
        else:
            fix = "check that the place exists and that you may write there"
        raise UserError(str(path), reason, fix) from error


def sync(file: IO[bytes]) -> None:
    """Flush a file through to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Make renames and new names inside a directory survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write aside, sync, rename. Raises ``UserError`` (and leaves ``path`` as it was) when the disk refuses."""
    aside = path.with_name(f".{path.name}.part")
    try:
        with disk_errors(path):
            with aside.open("wb") as file:
                file.write(data)
                sync(file)
            os.replace(aside, path)
            sync_directory(path.parent)
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def make_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """A new folder with these files in it, in one rename: whole, or not there.

    Raises:
        UserError: the disk refuses, or there is a folder that is not empty.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with disk_errors(path):
            aside.mkdir(parents=True)
            for name, data in files.items():
                (aside / name).write_bytes(data)
            os.replace(aside, path)  # refuses a directory that is not empty
            sync_directory(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    """Delete what writers that were killed left aside."""
    for path in directory.glob(".*.part"):
        path.unlink(missing_ok=True)
