"""Files and folders of this machine that are what they seem: no links, no devices, no pipes.

A folder may have been packed by somebody else. What is written, emptied, locked or removed in it is
therefore never reached through a symbolic link below it, and a file that is changed where it lies
has no second name (a hard link). Whatever is read is a regular file of a bounded size.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from gpt_jax.errors import UserError

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows has neither of these
NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # for a pipe that nobody writes to
BINARY = getattr(os, "O_BINARY", 0)


class LinkError(UserError):
    """Something in a folder that leads out of it, or that is neither a file nor a folder."""


def inside(root: Path, name: str) -> Path:
    """Returns the path of `name` below `root`, which may itself be a link.

    Raises:
      LinkError: something on the way, or the last of it, is a symbolic link.
    """
    path = Path(root)
    for part in Path(name).parts:
        if part in ("..", os.sep):
            raise LinkError(f"{name!r:.80} leads out of {root}")
        path = path / part
        if os.path.islink(path):
            raise link_error(path, root)
    return path


def link_error(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> LinkError:
    return LinkError(
        f"{os.fspath(path)} is a symbolic link, and nothing in {os.fspath(root)} is reached "
        "through one; put what it points to in its place (for another disk, keep the whole folder "
        "there)"
    )


def walk(folder: Path) -> Iterator[Path]:
    """Yields the regular files in a folder and in the folders in it, in order of their names.

    Raises:
      LinkError: there is anything but files and folders.
      OSError: it can't be read.
    """
    if os.path.islink(folder):
        raise link_error(folder, folder.parent)
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_symlink():
            raise link_error(entry.path, folder)
        if entry.is_dir(follow_symlinks=False):
            yield from walk(Path(folder, entry.name))
        elif entry.is_file(follow_symlinks=False):
            yield Path(folder, entry.name)
        else:
            raise LinkError(f"{entry.path} is neither a file nor a folder; remove it")


def check_tree(folder: Path) -> None:
    """Raises LinkError where a folder, or one in it, has anything but files and folders."""
    with contextlib.suppress(FileNotFoundError):  # other processes may be at work there
        for _ in walk(folder):
            pass


def open_regular(path: Path, *, follow: bool = True) -> BinaryIO:
    """Opens a regular file for reading; never waits, as on a pipe.

    Raises:
      OSError: it can't be opened, or is a folder, a device or a pipe.
      LinkError: it is a symbolic link, and `follow` is False.
    """
    return _open(path, os.O_RDONLY | NO_WAIT, "rb", follow=follow)


def open_new(path: Path, buffering: int = -1) -> BinaryIO:
    """Opens a new file for writing, in place of any of that name, which is not written to."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return _open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, "wb", buffering=buffering)


def open_in_place(path: Path, *, append: bool = False) -> BinaryIO:
    """Opens a file to change it where it lies; with `append` it is made where it is missing.

    Raises:
      OSError: it can't be opened, or is a folder, a device or a pipe.
      LinkError: it is a symbolic link, or has a second name elsewhere.
    """
    more, mode = (os.O_CREAT | os.O_APPEND, "a+b") if append else (0, "r+b")
    file = _open(path, os.O_RDWR | NO_WAIT | more, mode)
    if os.fstat(file.fileno()).st_nlink > 1:
        file.close()
        raise LinkError(f"{path} is a hard link to a file elsewhere; put a copy in its place")
    return file


def open_lock(path: Path) -> BinaryIO:
    """Opens a file to lock it, made where it is missing; its content stays."""
    return _open(path, os.O_RDWR | os.O_CREAT | NO_WAIT, "r+b")


def _open(
    path: Path, flags: int, mode: str, *, follow: bool = False, buffering: int = -1
) -> BinaryIO:
    """Opens a regular file; a symbolic link is refused, unless `follow`."""
    if not follow and os.path.islink(path):
        raise link_error(path, Path(path).parent)
    flags |= BINARY | (0 if follow else NO_FOLLOW)
    number = os.open(path, flags, 0o666)
    kind = os.fstat(number).st_mode
    if not stat.S_ISREG(kind):
        os.close(number)
        what = errno.EISDIR if stat.S_ISDIR(kind) else errno.EINVAL
        text = os.strerror(what) if stat.S_ISDIR(kind) else "it is no regular file"
        raise OSError(what, text, os.fspath(path))
    return cast(BinaryIO, os.fdopen(number, mode, buffering))


def read_bounded(path: Path, max_bytes: int, *, follow: bool = True) -> bytes:
    """Returns the bytes of a regular file, once its size is known to be small.

    Raises:
      OSError: it can't be read, or is no regular file.
      ValueError: it has more than `max_bytes`.
      LinkError: it is a symbolic link, and `follow` is False.
    """
    with open_regular(path, follow=follow) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise ValueError(f"it has more than {max_bytes:,} bytes")
        return file.read(size)


def remove(path: Path) -> None:
    """Removes a file, a link itself, or a folder with all in it; nothing where there is none."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.islink(path) or not os.path.isdir(path):
            os.unlink(path)
        else:
            shutil.rmtree(path)


def remove_leftovers(folder: Path, names: Collection[str]) -> None:
    """Removes the folders beside `folder` in which killed processes were making it.

    They are called `.NAME.PID` and hold at most files of these names, whole or unfinished.
    """
    beginning = f".{folder.name}."
    ours = re.compile("|".join(rf"{re.escape(name)}|\.{re.escape(name)}\.\d+" for name in names))
    try:
        left = [name for name in os.listdir(folder.parent) if name.startswith(beginning)]
    except OSError:
        return
    for name in left:
        path, pid = folder.with_name(name), name.removeprefix(beginning)
        is_folder = os.path.isdir(path) and not os.path.islink(path)
        if not (is_folder and pid.isascii() and pid.isdecimal()) or _runs(int(pid)):
            continue
        if all(ours.fullmatch(each) for each in os.listdir(path)):
            shutil.rmtree(path, ignore_errors=True)


def _runs(pid: int) -> bool:
    """Says whether another process of this machine has a number."""
    if os.name == "nt":  # where this would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    except OverflowError:
        return False
    return pid != os.getpid()


def give_default_mode(path: Path) -> None:
    """Gives a file that a library wrote the mode that the umask gives to new files."""
    probe = Path(path).with_name(f".{Path(path).name}.mode")
    try:
        with open_new(probe) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(probe)
    os.chmod(path, mode)
