"""Folders with two means: what a run does with one is the same on a disk and in a bucket.

The bucket here is one of the program's, over etils' path of a local folder: whatever needs no
server of Google's is tried in a moment (`whole_runs/test_bucket.py` has an emulator of that).
"""

import json
import re
import shutil
import time

import pytest
from conftest import ROOT
from etils import epath

from gpt_jax.errors import UserError
from gpt_jax.run.folder import FIRST_FILES, check_folder, is_run, read_summary
from gpt_jax.run.metrics import MetricsWriter, read_rows
from gpt_jax.storage import BucketFolder, Folder, open_folder, read_json, read_small


class FakeBucket(BucketFolder):
    """A bucket on a disk: an object's folders come with it, and `fails` makes it refuse."""

    fails: Exception | None = None

    def write(self, name, content):
        with self.errors():
            if self.fails:
                raise self.fails
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        super().write(name, content)


@pytest.fixture(params=[Folder, FakeBucket])
def folder(request, tmp_path):
    return request.param(epath.Path(tmp_path / "run"))


def test_no_other_module_asks_whether_a_folder_is_remote():
    asking = {
        path.relative_to(ROOT).as_posix()
        for path in [*(ROOT / "gpt_jax").rglob("*.py"), *(ROOT / "data").rglob("*.py")]
        if re.search(r"is_remote|gs://|BUCKET\b|BucketFolder|epath|gcsfs", path.read_text("utf-8"))
    }
    # The help of --run-dir names such a folder; storage's own __init__ gives the class out.
    assert asking == {
        "gpt_jax/storage/folders.py",
        "gpt_jax/storage/__init__.py",
        "gpt_jax/config/run_config.py",
    }
    help_text = (ROOT / "gpt_jax/config/run_config.py").read_text("utf-8")
    assert re.findall(r"is_remote|gs://.*|BUCKET\b.*", help_text) == ['gs://BUCKET/FOLDER",']


def test_a_folder_of_a_name(tmp_path):
    assert type(open_folder(str(tmp_path))) is type(open_folder(tmp_path)) is Folder
    folder = FakeBucket(epath.Path(tmp_path))
    assert open_folder(folder) is folder
    assert str(folder) == str(tmp_path)


def test_a_folder_is_made_and_written(folder):
    assert (folder.kind(), folder.entries(), folder.has("a")) == ("", [], False)
    folder.create({"a": "\u00e9\r\n", "b": "2"})
    assert folder.kind() == "folder"
    assert [path.name for path in folder.entries()] == ["a", "b"]
    assert folder.read_text("a") == "\u00e9\r\n"
    assert (folder.path / "a").read_bytes() == b"\xc3\xa9\r\n"
    assert folder.has("a")
    folder.write("b", b"\x00")
    assert (folder.path / "b").read_bytes() == b"\x00"
    (folder.path / "deep" / "er").mkdir(parents=True)
    folder.remove("deep")
    folder.remove("deep")
    assert not (folder.path / "deep").exists()
    with pytest.raises(FileNotFoundError):
        folder.read_text("c")


def test_what_keeps_a_folder_from_being_made(folder):
    assert folder.obstacles(FIRST_FILES) == []
    folder.path.mkdir()
    assert folder.obstacles(FIRST_FILES) == []
    folder.write(FIRST_FILES[0], "")
    in_a_bucket = isinstance(folder, BucketFolder)  # a kill may have come before the last file
    assert folder.obstacles(FIRST_FILES) == ([] if in_a_bucket else [FIRST_FILES[0]])
    folder.write("notes.txt", "mine")
    assert "notes.txt" in folder.obstacles(FIRST_FILES)
    with pytest.raises(UserError, match="holds other files"):
        check_folder(folder)


def test_only_a_disk_has_locks(folder):
    folder.path.mkdir()
    with folder.lock():
        if isinstance(folder, BucketFolder):
            with folder.lock():
                pass
        else:
            with pytest.raises(UserError, match="by another process"), folder.lock():
                pass


def test_what_goes_wrong_in_a_bucket_is_an_os_error(tmp_path):
    folder = FakeBucket(epath.Path(tmp_path))
    with pytest.raises(OSError, match="RuntimeError: no rights"), folder.errors():
        raise RuntimeError("no\nrights")
    folder.fails = KeyError("token")
    for write in (lambda: folder.write("a", ""), lambda: folder.create({"a": ""})):
        with pytest.raises(OSError, match="KeyError"):
            write()
    with pytest.raises(UserError, match="is a model; copy it to this machine"):
        folder.local_path("a model")


def rows_of(folder):
    return [json.loads(line) for line in folder.read_text("metrics.jsonl").splitlines()]


def test_rows_and_events_are_appended(folder):
    """On a disk each row at once, in a bucket with `sync`; a resumed run drops later ones."""
    folder.path.mkdir()
    writer = MetricsWriter(folder, 0)
    first, second, third = ({"step": step, "loss": 1.0 / (step + 1)} for step in range(3))
    writer.write(first)
    assert rows_of(folder) == ([] if isinstance(folder, BucketFolder) else [first])
    writer.sync()
    assert rows_of(folder) == [first]
    events = folder.entries("tensorboard")
    assert len(events) == 1
    size = len(events[0].read_bytes())
    writer.write(second)
    writer.close()
    assert rows_of(folder) == read_rows(folder) == [first, second]
    assert len(events[0].read_bytes()) > size
    resumed = MetricsWriter(folder, 0 + 1)
    resumed.write(third)
    resumed.close()
    assert rows_of(folder) == [first, second, third]
    back = MetricsWriter(folder, 0)
    back.close()
    assert rows_of(folder) == []


def test_the_last_events_arrive_however_slow_the_thread_that_writes_them(folder, monkeypatch):
    from tensorboardX.event_file_writer import EventsWriter

    folder.path.mkdir()
    written, real = [], EventsWriter.write_event

    def write_event(self, event):
        time.sleep(0.05)
        written.append(event.SerializeToString())
        real(self, event)

    monkeypatch.setattr(EventsWriter, "write_event", write_event)
    writer = MetricsWriter(folder, 0)
    writer.write({"step": 0, **{f"loss{i}": float(i) for i in range(5)}})
    writer.close()
    (events,) = folder.entries("tensorboard")
    content = events.read_bytes()
    assert len(written) >= 6
    assert all(event in content for event in written)


def test_hosts_after_the_first_keep_rows_in_memory(folder):
    writer = MetricsWriter(folder, 0, writes=False)
    writer.write({"step": 0, "loss": 1.0})
    writer.sync()
    writer.close()
    assert writer.rows == [{"step": 0, "loss": 1.0}]
    assert folder.kind() == ""


def test_files_of_a_run_are_read_from_either(folder):
    assert not is_run(folder)
    folder.create({"tokenizer.json": "{}", "config.json": "{}"})
    assert is_run(folder)
    assert read_summary(folder) == {}
    folder.write("summary.json", "[]")
    with pytest.raises(UserError, match=r"summary.json is damaged: it is not a JSON object"):
        read_summary(folder)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "Expecting value"),
        (b"[1]", "it is not a JSON object"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b'{"a": "\xff"}', "can't decode byte 0xff"),
        (b"{" + b" " * 100 + b"}", "it has more than 100 bytes"),
    ],
)
def test_a_small_json_file_that_is_damaged(tmp_path, raw, message):
    path = tmp_path / "a.json"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=message):
        read_json(path, 100 if len(raw) == 102 else 1 << 20)


def test_a_small_json_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}')
    assert read_json(path, 18) == {"a": "\u00e9"}
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "b.json")


def test_no_memory_is_taken_for_a_large_file(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole: nothing of it is on the disk
    with pytest.raises(ValueError, match="it has more than 67,108,864 bytes"):
        read_small(path)


def test_a_folder_that_is_watched_is_there_until_it_is_removed_or_replaced(tmp_path):
    for change in ("nothing", "removed", "replaced", "moved", "file removed", "a link to it"):
        path = tmp_path / change / "run"
        folder = Folder(path)
        path.parent.mkdir()
        folder.create({"config.json": "{}"})
        with folder.watch("config.json") as is_there:
            assert is_there()
            if change == "file removed":
                (path / "config.json").unlink()
            elif change in ("moved", "a link to it"):
                path.rename(path.with_name("other"))
            elif change != "nothing":
                shutil.rmtree(path)
            if change == "replaced":  # a file system may give it the number of the old one
                folder.create({"config.json": "{}"})
            if change == "a link to it":
                path.symlink_to("other")
            assert is_there() == (change in ("nothing", "a link to it")), change
