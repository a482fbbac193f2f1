"""The files of an unfinished preparation: each value by every type of JSON."""

import copy
import json
import math
import zlib

import pytest

from data.encode import FOOTER, PACKED, load_encoded
from data.records import JOURNAL_FILE, PLAN_FILE, UnitCounts, read_journal, read_plan
from data.sources import json_lines
from gpt_jax.errors import UserError

VALUES = [None, True, 0, -1, 1.5, math.nan, 10**400, "", "x", [], [1], {}, {"a": 1}]
UNIT = {"kind": "lines", "name": "a", "path": "/a", "size": 9, "start": 0, "end": 9}
PLAN = {
    "settings": {"source": "jsonl", "val_fraction": 0.1},
    "plan": {
        "units": [UNIT], "files": [["/a", 9, 1]], "by_position": False, "damaged": ["b"],
        "facts": {"input": "/a"}, "characters": "",
    },
}  # fmt: skip
SHARD = {"name": "train-00000.bin", "tokens": 4, "bytes": 4, "sha256": "e"}
JOURNAL = {
    "units": 1, "documents": {"train": 3}, "counts": {"read": 3}, "dropped": {"duplicate": 1},
    "damaged": ["b"], "seen": 2,
    "writer": {"shards": {"train": [SHARD], "val": []}, "open": {"train": [2, 2], "val": [0, 0]}},
}  # fmt: skip


def changed(values):
    for key in list(values) if isinstance(values, dict) else range(len(values)):
        for new in [*VALUES, *([values[key]] if isinstance(values[key], dict | list) else [])]:
            made = copy.deepcopy(values)
            made[key] = new
            yield made
        if isinstance(values[key], dict | list):
            for inner in changed(values[key]):
                made = copy.deepcopy(values)
                made[key] = inner
                yield made
        made = copy.deepcopy(values)
        del made[key]
        yield made


def use_plan(work):
    found = read_plan(work)
    for unit in found.plan.units:
        assert f"{unit['name']} {unit['size'] + unit.get('start', 0)} {unit.get('path')}"
    for path, size, changed_ns in found.plan.files:
        assert f"{path} {size + changed_ns}"
    assert "".join(found.plan.damaged) in ("b", "", "x")
    assert isinstance(found.settings | found.plan.facts, dict)


def use_journal(work):
    found = read_journal(work, 1)
    for split in ("train", "val"):
        tokens, n_bytes = found.writer.open[split]
        assert tokens >= 0
        assert n_bytes >= 0
        assert all(shard.name.endswith(".bin") for shard in found.writer.shards[split])
    assert sum(found.documents.values()) + found.seen + found.units >= 0


@pytest.mark.parametrize(
    ("name", "values", "use"),
    [(PLAN_FILE, PLAN, use_plan), (JOURNAL_FILE, JOURNAL, use_journal)],
)
def test_each_value_is_read_or_refused_in_a_line(tmp_path, name, values, use):
    (tmp_path / name).write_text(json.dumps(values))
    use(tmp_path)
    refused = 0
    for made in changed(values):
        (tmp_path / name).write_text(json.dumps(made))
        try:
            use(tmp_path)
        except UserError as error:
            refused += f"{name} is damaged: " in str(error)
        except Exception as error:
            raise AssertionError(json.dumps(made)[:500]) from error
    assert refused > 100


COUNTS = {"read": 3, "dropped": {"length": 1}, "damaged_records": 1, "damaged": ["b"]}


def write_unit(path, counts, ids=b"\0" * 6, documents=((7, 2, False), (8, 1, True))):
    """An encoded unit as `encode.py` describes it, with a sum that fits."""
    ends = b"".join(PACKED.pack(*document) for document in documents)
    content = ids + ends + counts
    path.write_bytes(content + FOOTER.pack(len(ids), len(ends), len(counts), zlib.crc32(content)))


def test_the_counts_of_an_encoded_unit_are_read_or_the_unit_is_encoded_again(tmp_path):
    path, read = tmp_path / "000000", 0
    write_unit(path, json.dumps(COUNTS).encode())
    assert load_encoded(path).counts == UnitCounts(**COUNTS)
    tried = list(changed(COUNTS))
    for made in [*tried, {}]:
        write_unit(path, json.dumps(made).encode())
        if (unit := load_encoded(path)) is not None:
            numbers = [unit.counts.read, *unit.counts.dropped.values()]
            assert min(numbers) >= 0
            assert "".join(unit.counts.damaged) in ("", "b", "x")
            read += 1
    assert (len(tried), read) == (86, 17)


@pytest.mark.parametrize("counts", [b"", b"{", b"[" * 10_000, b"7", b"\xff"])
def test_counts_that_are_no_json_mean_encoding_again(tmp_path, counts):
    write_unit(tmp_path / "000000", counts)
    assert load_encoded(tmp_path / "000000") is None


@pytest.mark.parametrize("documents", [((7, 2, False),), ((7, 2**32 - 1, False), (8, 1, True)), ()])
def test_documents_that_are_not_those_of_the_ids_mean_encoding_again(tmp_path, documents):
    write_unit(tmp_path / "000000", json.dumps(COUNTS).encode(), documents=documents)
    assert load_encoded(tmp_path / "000000") is None


def test_before_there_is_a_journal(tmp_path):
    assert read_journal(tmp_path, 1) is None
    with pytest.raises(UserError, match=r"plan.json is damaged: .*No such file"):
        read_plan(tmp_path)


@pytest.mark.parametrize("mark", [b",", b":", b"[", b"{"])
def test_the_values_of_a_short_line_are_counted_too(mark):
    assert not json_lines._has_too_many_values(mark * 10, 10)
    assert json_lines._has_too_many_values(mark * 11, 10)
    assert not json_lines._has_too_many_values(b'"' + mark * 11 + b'"', 10)  # in a text
