"""What is written to a disk or a bucket: files whole or not at all, and the folders of runs."""

from gpt_jax.storage.files import (
    entries,
    files_below,
    lock,
    parse_json,
    read_json,
    read_small,
    remove_unfinished,
    to_local,
    write_atomically,
)
from gpt_jax.storage.folders import BucketFolder, Folder, open_folder, to_folder

__all__ = [
    "BucketFolder",
    "Folder",
    "entries",
    "files_below",
    "lock",
    "open_folder",
    "parse_json",
    "read_json",
    "read_small",
    "remove_unfinished",
    "to_folder",
    "to_local",
    "write_atomically",
]
