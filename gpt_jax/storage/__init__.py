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
from gpt_jax.storage.plain_files import (
    LinkError,
    check_tree,
    give_default_mode,
    inside,
    open_in_place,
    open_new,
    open_regular,
)
from gpt_jax.storage.records import NewerFormatError, read_record, read_versioned

__all__ = [
    "BucketFolder",
    "Folder",
    "LinkError",
    "NewerFormatError",
    "check_tree",
    "entries",
    "files_below",
    "give_default_mode",
    "inside",
    "lock",
    "open_folder",
    "open_in_place",
    "open_new",
    "open_regular",
    "parse_json",
    "read_json",
    "read_record",
    "read_small",
    "read_versioned",
    "remove_unfinished",
    "to_folder",
    "to_local",
    "write_atomically",
]
