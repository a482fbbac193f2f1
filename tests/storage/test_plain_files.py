"""Folders that others may have packed: links, hard links, pipes and devices in them."""

import os
import stat

import pytest

from gpt_jax.errors import UserError
from gpt_jax.storage import Folder, LinkError, check_tree, inside, lock, read_small
from gpt_jax.storage.plain_files import (
    give_default_mode,
    open_in_place,
    open_new,
    read_bounded,
    walk,
)

PRECIOUS = b"precious"


@pytest.fixture
def outside(tmp_path):
    """A folder beside the run's, with a file in it; it must stay as it is."""
    folder = tmp_path / "outside"
    (folder / "deep").mkdir(parents=True)
    (folder / "file").write_bytes(PRECIOUS)
    (folder / "deep" / "file").write_bytes(PRECIOUS)
    yield folder
    assert (folder / "file").read_bytes() == PRECIOUS
    assert (folder / "deep" / "file").read_bytes() == PRECIOUS
    assert sorted(os.listdir(folder)) == ["deep", "file"]
    assert os.listdir(folder / "deep") == ["file"]


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    return Folder(tmp_path / "run")


@pytest.mark.parametrize(
    "act",
    [
        lambda run: run.write("sub/file", "x"),
        lambda run: run.remove("sub/file"),
        lambda run: run.remove("sub/deep"),
        lambda run: run.entries("sub"),
        lambda run: run.entries("sub/deep"),
        lambda run: list(run.files("sub")),
        lambda run: run.read_text("sub/file"),
        lambda run: run.read_json("sub/file"),
        lambda run: list(run.read_lines("sub/file", 100)),
        lambda run: run.append_log("sub/file", "x"),
        lambda run: run.append_files("sub"),
        lambda run: run.make_folder("sub"),
        lambda run: run.check("sub"),
        lambda run: run.remove_unfinished("sub/file"),
    ],
)
@pytest.mark.parametrize("target", ["outside", "no such"])
def test_nothing_is_reached_through_a_linked_folder(run, outside, act, target):
    (run.path / "sub").symlink_to(outside.with_name(target))
    with pytest.raises(LinkError, match=r"run/sub is a symbolic link, and nothing in .*run is"):
        act(run)
    assert (run.path / "sub").is_symlink()


def test_a_link_itself_is_replaced_and_removed(run, outside):
    for name in ("a", "b", "c"):
        (run.path / name).symlink_to(outside / "file")
    (run.path / "d").symlink_to(outside)
    with pytest.raises(LinkError):
        run.write("a", "new")  # a run's own file is never a link
    run.remove("b")
    run.remove("d")
    assert sorted(os.listdir(run.path)) == ["a", "c"]
    with open_new(run.path / "c") as file:
        file.write(b"new")
    assert not (run.path / "c").is_symlink()


@pytest.mark.parametrize("make", [os.symlink, os.link])
def test_a_lock_empties_nothing(run, outside, make):
    make(outside / "file", run.path / ".lock")
    if make is os.link:  # nothing is written to it
        with lock(run.path):
            pass
        return
    with pytest.raises(LinkError, match=r"\.lock is a symbolic link"), lock(run.path):
        pass


def test_a_lock_keeps_what_is_in_its_file(run):
    (run.path / ".lock").write_bytes(PRECIOUS)
    with lock(run.path):
        pass
    assert (run.path / ".lock").read_bytes() == PRECIOUS


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_lock_that_is_no_file(run, make):
    make(run.path / ".lock")
    with pytest.raises(UserError, match="is not writable"), lock(run.path):
        pass


def test_a_temporary_file_is_not_written_through(run, outside):
    """Its name, with the number of the process, can be guessed."""
    (run.path / f".a.{os.getpid()}").symlink_to(outside / "file")
    run.write("a", "new")
    assert run.read_text("a") == "new"
    assert os.listdir(run.path) == ["a"]


@pytest.mark.parametrize("make", [os.symlink, os.link])
def test_what_is_changed_in_place_has_no_other_name(run, outside, make):
    make(outside / "file", run.path / "a")
    for append in (False, True):
        with pytest.raises(LinkError, match=r"a is a (symbolic|hard) link"):
            open_in_place(run.path / "a", append=append)


def test_rows_are_appended_to_a_new_file(run, outside):
    os.link(outside / "file", run.path / "rows")
    log = run.append_log("rows", "1\n")
    log.write("2\n")
    log.close()
    assert run.read_text("rows") == "1\n2\n"


def test_walks_follow_no_link_and_find_every_file(run, outside):
    for name in ("b/c/2", "a", "b/1"):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_bytes(b"")
    found = [path.relative_to(run.path).as_posix() for path in walk(run.path)]
    assert found == ["a", "b/1", "b/c/2"]
    check_tree(run.path)
    for target in (".", outside, outside / "file", "nothing"):
        link = run.path / "b" / "c" / "link"
        link.symlink_to(target)
        with pytest.raises(LinkError, match="c/link is a symbolic link"):
            check_tree(run.path)
        link.unlink()
    os.mkfifo(run.path / "b" / "pipe")
    with pytest.raises(LinkError, match="b/pipe is neither a file nor a folder"):
        check_tree(run.path)


def test_a_name_stays_in_its_folder(tmp_path):
    assert inside(tmp_path, "a/b") == tmp_path / "a" / "b"
    assert inside(tmp_path, "") == tmp_path
    for name in ("../a", "a/../../b", "/etc/passwd"):
        with pytest.raises(LinkError, match="leads out of"):
            inside(tmp_path, name)


def test_a_folder_that_is_named_may_be_a_link(run, tmp_path):
    (tmp_path / "named").symlink_to(run.path)
    named = Folder(tmp_path / "named")
    named.write("a", "1")
    with named.lock():
        assert run.read_text("a") == "1"


def test_what_is_no_regular_file_is_not_read(run, outside):
    os.mkfifo(run.path / "pipe")
    os.mkdir(run.path / "folder")
    with pytest.raises(OSError, match="it is no regular file"):
        read_bounded(run.path / "pipe", 10)
    with pytest.raises(IsADirectoryError):
        read_bounded(run.path / "folder", 10)
    with pytest.raises(OSError, match="it is no regular file"):
        read_small("/dev/zero")
    (run.path / "link").symlink_to(outside / "file")
    assert read_bounded(run.path / "link", 10) == PRECIOUS
    with pytest.raises(LinkError):
        read_bounded(run.path / "link", 10, follow=False)
    (run.path / "zero").symlink_to("/dev/zero")
    with pytest.raises(OSError, match="it is no regular file"):
        read_bounded(run.path / "zero", 10)


def test_lines_are_read_within_bounds(run):
    with (run.path / "rows").open("wb") as file:
        file.write(b"1\n22\n")
        file.truncate(1 << 36)  # a hole: nothing of it is on the disk
    lines = run.read_lines("rows", 1 << 10)
    assert [next(lines), next(lines)] == [b"1\n", b"22\n"]
    assert next(lines) == b"\0" * 1024


def test_what_killed_processes_left_is_removed(run):
    left = [".a.json.17", ".a.json.4194304"]
    others = [".a.json.x", ".notes.2024", "a.json", ".lock"]
    for name in [*left, *others]:
        (run.path / name).write_bytes(b"")
    run.remove_unfinished(r"(a\.json|b)")
    assert sorted(os.listdir(run.path)) == sorted(others)


def test_folders_that_killed_processes_left_are_removed(tmp_path, outside):
    dead = 2**22 + 1  # above the most that Linux has
    ours, theirs = tmp_path / f".new.{dead}", tmp_path / f".new.{dead + 1}"
    linked, alive = tmp_path / f".new.{dead + 2}", tmp_path / f".new.{os.getppid()}"
    for folder in (ours, theirs, alive):
        folder.mkdir()
    (ours / "a").write_bytes(b"")
    (ours / f".b.{dead}").write_bytes(b"")
    (theirs / "notes.txt").write_bytes(PRECIOUS)
    linked.symlink_to(outside)
    Folder(tmp_path / "new").create({"a": "1", "b": "2"})
    assert not ours.exists()
    assert (theirs / "notes.txt").read_bytes() == PRECIOUS
    assert linked.is_symlink()
    assert alive.exists()


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o027])
def test_modes_are_those_of_the_umask(tmp_path, mask):
    private = tmp_path / "private"
    private.write_bytes(b"")
    private.chmod(0o600)
    before = os.umask(mask)
    try:
        give_default_mode(private)
        Folder(tmp_path).write("written", "")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("private", "written")}
    assert modes == {0o666 & ~mask}
    assert sorted(os.listdir(tmp_path)) == ["private", "written"]
