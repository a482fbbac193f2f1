"""The path of a source on this machine, and its files."""

from __future__ import annotations

import glob
import os
from typing import Any

from data.config import PrepareConfig
from data.sources.common_crawl import is_crawl
from gpt_jax.errors import UserError
from gpt_jax.input_pipeline.file_kinds import command_for_folder, is_utf8


def local_path(config: PrepareConfig) -> str | None:
    """Returns the path of a source on this machine; None for a name on the hub or a crawl."""
    path = os.path.abspath(os.path.expanduser(config.input))
    if config.source == "hf":
        return path if os.path.isdir(path) else None
    if config.source == "wet":
        return None if is_crawl(config.input) else path
    return path


def local_files(config: PrepareConfig) -> tuple[list[tuple[str, int, int]], dict[str, Any]]:
    """Returns the files of a source that has a `local_path`, and what a manifest says of them.

    Returns:
      (path, bytes, modification time in ns) of each, in order; {"input": the path, "files": their
      number, "stored_bytes": their size}.

    Raises:
      UserError: there are none, or one can't be read.
    """
    where = local_path(config)
    assert where is not None
    if config.source == "hf":
        paths = _files_below(where, os.path.abspath(os.path.expanduser(config.out)))
    else:
        paths = list_files(config.input)
    if config.source == "wet" and config.limit_files:
        paths = paths[: config.limit_files]
    stats = [(path, os.stat(path)) for path in paths]
    files = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    size = sum(size for _, size, _ in files)
    return files, {"input": where, "files": len(files), "stored_bytes": size}


def _files_below(folder: str, out: str) -> list[str]:
    """Returns the files below a folder that are not hidden, by name, without those below `out`."""
    paths: list[str] = []
    for where, folders, names in os.walk(folder):
        folders[:] = [
            name for name in folders if name[0] != "." and os.path.join(where, name) != out
        ]
        paths += [os.path.join(where, name) for name in names if name[0] != "."]
    return sorted(path for path in paths if os.path.isfile(path))


def list_files(pattern: str) -> list[str]:
    """Returns the absolute paths of the files that a path or pattern stands for, by name.

    Raises:
      UserError: there are none, or the path is a folder.
    """
    expanded = os.path.expanduser(pattern)
    if os.path.isdir(expanded):
        raise UserError(
            f"--input {pattern} is a folder; give a pattern such as '{pattern}/*', for its files: "
            f"{command_for_folder(pattern)}"
        )
    if os.path.lexists(expanded):
        paths = [expanded]
    else:
        paths = sorted(p for p in glob.glob(expanded, recursive=True) if os.path.isfile(p))
    if not paths:
        raise UserError(f"--input {pattern} matches no file; give a path, or a pattern in quotes")
    for path in paths:
        if os.path.exists(path) and not os.path.isfile(path):
            raise UserError(f"--input {path} is a device or a pipe; write its text to a file first")
        if not os.access(path, os.R_OK):
            raise UserError(f"--input {path} can't be read; check the file and its permissions")
        if not is_utf8(os.path.abspath(path)):
            raise UserError(f"--input {path!r}: this path is not UTF-8; rename the file")
    return [os.path.abspath(path) for path in paths]
