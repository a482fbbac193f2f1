"""pytest's processes share what they compile: see `share_compiled_programs` in conftest.py."""

import threading
from pathlib import Path

import pytest
from conftest import share_compiled_programs
from jax._src.lru_cache import LRUCache


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """The caches of two processes, and the folder that they share."""
    for name in ("get", "put"):
        monkeypatch.setattr(LRUCache, name, getattr(LRUCache, name))  # put back afterwards
    share_compiled_programs(tmp_path)
    return [LRUCache(str(tmp_path / name), max_size=-1) for name in ("one", "two")], tmp_path


def test_what_one_process_compiled_the_others_read(caches):
    (one, two), shared = caches
    assert one.get("program") is None
    one.put("program", b"compiled")
    one.put("program", b"compiled")  # by another of its threads
    assert two.get("program") == b"compiled"
    two.put("program", b"compiled")
    names = sorted(path.relative_to(shared).as_posix() for path in shared.rglob("*-*"))
    assert names == ["one/program-cache", "program-cache", "two/program-cache"]


def test_a_program_is_never_there_in_part(caches, monkeypatch):
    """A process is stopped while it writes: the other finds nothing."""
    (one, two), _ = caches
    write = Path.write_bytes

    def half(path, value):
        write(path, value[: len(value) // 2])
        raise OSError("stopped")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="stopped"):
        one.put("program", b"compiled")
    assert one.get("program") is None
    assert two.get("program") is None


def test_a_disk_without_links_shares_nothing(caches, monkeypatch):
    def refuse(*args):
        raise OSError("not supported")

    (one, two), _ = caches
    monkeypatch.setattr("os.link", refuse)
    writer = threading.Thread(target=one.put, args=("program", b"compiled"))
    writer.start()
    writer.join()
    assert one.get("program") == b"compiled"
    assert two.get("program") is None
