"""How fast `python main.py prepare` is, beside tiktoken alone and beside nanoGPT's way.

    python benchmarks/prepare.py --text FILE [FILE ...]

The corpus is made from the files named: blocks of twelve lines at random offsets, with every eighth
word replaced by another of theirs, from a fixed seed, as documents of some kilobytes in JSON lines.
So no document comes twice, but the words do, as in the files. Three programs encode it with GPT-2's
vocabulary in two processes, one after the other, several rounds, each in a fresh process:

    tiktoken  two processes call encode_ordinary on documents that are in memory already
    gpt_jax   main.py prepare --workers 2, from the file to shards with their sums
    nanogpt   datasets.map with two processes over the same file, then a memmap, where there is
              `datasets`: what nanoGPT's data/openwebtext/prepare.py does, written anew

Bytes are of the documents' text. Seconds are of encoding alone for tiktoken (processes started,
documents read) and of the whole command for the others. What starting costs does not grow with the
text; it is told apart by preparing a quarter of the text too. The peak of memory is of the largest
process and of all together, by sampling.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
DOCUMENT_BYTES = 4_000


def make_corpus(files: list[Path], path: Path, megabytes: int) -> int:
    """Writes JSON lines with this many megabytes of text; returns the bytes of the text."""
    draw = random.Random(0)
    lines = [
        line for file in files for line in file.read_text("utf-8").splitlines() if line.strip()
    ]
    words = sorted({word for line in lines for word in line.split()})
    total = 0
    with path.open("w", encoding="utf-8") as out:
        while total < megabytes * 1_000_000:
            document: list[str] = []
            while sum(map(len, document)) < DOCUMENT_BYTES:
                start = draw.randrange(len(lines))
                for line in lines[start : start + 12]:
                    parts = line.split(" ")
                    for _ in range(len(parts) // 8 + 1):
                        parts[draw.randrange(len(parts))] = draw.choice(words)
                    document.append(" ".join(parts))
            text = "\n".join(document)
            total += len(text.encode())
            out.write(json.dumps({"text": text}) + "\n")
    return total


def run_tiktoken(corpus: Path) -> dict[str, Any]:
    """Encodes in two processes that hold half of the documents each, and times only that."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    with concurrent.futures.ProcessPoolExecutor(
        2, context, initializer=_keep, initargs=(barrier,)
    ) as pool:
        halves = [pool.submit(_encode_half, str(corpus), i) for i in range(2)]
        results = [half.result() for half in halves]
    return {
        "seconds": max(end for _, end, _ in results) - min(start for start, _, _ in results),
        "tokens": sum(n for _, _, n in results),
    }


def _keep(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _encode_half(corpus: str, half: int) -> tuple[float, float, int]:
    import tiktoken

    encoding = tiktoken.get_encoding("gpt2")
    with open(corpus, encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for i, line in enumerate(file) if i % 2 == half]
    encoding.encode_ordinary("warm up")
    _barrier.wait()
    start = time.monotonic()
    n_tokens = sum(len(encoding.encode_ordinary(text)) + 1 for text in texts)
    return start, time.monotonic(), n_tokens


def run_gpt_jax(corpus: Path) -> dict[str, Any]:
    """The command as a user gives it; and on a quarter of the text, for what starting costs."""
    quarter = corpus.parent / "quarter.jsonl"
    with corpus.open(encoding="utf-8") as file:
        lines = list(file)
    quarter.write_text("".join(lines[: len(lines) // 4]), encoding="utf-8")
    quarter_seconds, quarter_tokens = _time_command(quarter)
    seconds, n_tokens = _time_command(corpus)
    steady = (n_tokens - quarter_tokens) / (seconds - quarter_seconds)
    return {
        "seconds": seconds,
        "tokens": n_tokens,
        "startup_seconds": seconds - n_tokens / steady,
        "steady_tokens_per_second": steady,
    }


def _time_command(source: Path) -> tuple[float, int]:
    out = source.parent / "gpt_jax"
    command = [sys.executable, str(ROOT / "main.py"), "prepare", "--source=jsonl"]
    command += [f"--input={source}", f"--out={out}", "--tokenizer=gpt2", "--workers=2"]
    command += ["--val-fraction=0.0005"]  # nanoGPT's share for OpenWebText
    start = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - start
    totals = json.loads((out / "manifest.json").read_text())["totals"]
    shutil.rmtree(out)
    return seconds, sum(total["tokens"] for total in totals.values())


def run_nanogpt(corpus: Path) -> dict[str, Any]:
    """Encodes with datasets.map, then copies the ids of its Arrow table to one file."""
    import datasets
    import numpy as np

    start = time.monotonic()
    data_set = datasets.load_dataset(
        "json", data_files=str(corpus), split="train", cache_dir=str(corpus.parent / "cache")
    )
    encoded = data_set.map(_encode_example, remove_columns=["text"], num_proc=2)
    total = int(np.sum(encoded["n"], dtype=np.uint64))
    ids = np.memmap(corpus.parent / "nanogpt.bin", np.uint16, "w+", shape=(total,))
    at = 0
    for i in range(64):
        shard = encoded.shard(num_shards=64, index=i, contiguous=True).with_format("numpy")
        part = np.concatenate(list(shard["ids"]))
        ids[at : at + len(part)] = part
        at += len(part)
    ids.flush()
    seconds = time.monotonic() - start
    shutil.rmtree(corpus.parent / "cache")
    return {"seconds": seconds, "tokens": total}


def _encode_example(example: dict[str, Any]) -> dict[str, Any]:
    import tiktoken

    encoding = tiktoken.get_encoding("gpt2")
    ids = [*encoding.encode_ordinary(example["text"]), encoding.eot_token]
    return {"ids": ids, "n": len(ids)}


WAYS = {"tiktoken": run_tiktoken, "gpt_jax": run_gpt_jax, "nanogpt": run_nanogpt}


class PeakMemory:
    """Samples the resident memory of a process and its descendants."""

    def __init__(self, pid: int):
        self.largest = self.together = 0
        self._pid, self._over = pid, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.25):
            sizes = [_resident(pid) for pid in _family(self._pid)]
            self.largest = max([self.largest, *sizes])
            self.together = max(self.together, sum(sizes))

    def stop(self) -> dict[str, float]:
        self._over.set()
        self._thread.join()
        return {
            "largest_mb": round(self.largest / 1e6),
            "together_mb": round(self.together / 1e6),
        }


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        children = []
    return [pid, *(member for child in children for member in _family(int(child)))]


def _resident(pid: int) -> int:
    """Private and half-shared bytes, so that a library is not counted for each process."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--text", nargs="+", type=Path, required=True)
    parser.add_argument("--megabytes", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/prepare.json")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(WAYS[args.way](args.corpus)))
        return

    from benchmarks.machine import describe_machine

    ways = list(WAYS)
    try:
        import datasets  # noqa: F401
    except ImportError:
        ways.remove("nanogpt")
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        n_bytes = make_corpus(args.text, corpus, args.megabytes)
        rows: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        for turn in range(args.rounds):
            for way in ways if turn % 2 == 0 else reversed(ways):
                command = [sys.executable, __file__, "--way", way, "--corpus", str(corpus)]
                process = subprocess.Popen(
                    [*command, "--text", "-"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                    env=os.environ | {"HF_HOME": str(Path(folder) / "hf")}, text=True,
                )  # fmt: skip
                memory = PeakMemory(process.pid)
                printed, _ = process.communicate()
                peak = memory.stop()
                if process.returncode:
                    raise SystemExit(f"{way} failed")
                row = json.loads(printed.splitlines()[-1]) | peak
                row["mb_per_second"] = n_bytes / 1e6 / row["seconds"]
                row["tokens_per_second"] = row["tokens"] / row["seconds"]
                rows[way].append(row)
                print(f"{way:<9} {row['seconds']:6.2f} s {row['mb_per_second']:6.2f} MB/s {peak}")
    assert len({row["tokens"] for way in rows.values() for row in way}) == 1, "same tokens"
    medians = {
        way: {name: statistics.median(row[name] for row in found) for name in found[0]}
        for way, found in rows.items()
    }
    machine = describe_machine()
    import importlib.metadata

    for package in ("tiktoken", "datasets"):
        if package in sys.modules or package == "tiktoken":
            machine["versions"][package] = importlib.metadata.version(package)
    speed = {way: row["mb_per_second"] for way, row in medians.items()}
    result = {
        "machine": machine,
        "command": "python benchmarks/prepare.py --text "
        + " ".join(
            [
                *(path.name for path in args.text),
                f"--megabytes {args.megabytes} --rounds {args.rounds}",
            ]
        ),
        "text_bytes": n_bytes,
        "rounds": rows,
        "medians": medians,
        "gpt_jax_over_tiktoken": speed["gpt_jax"] / speed["tiktoken"],
    }
    result["without_startup_over_tiktoken"] = (
        medians["gpt_jax"]["steady_tokens_per_second"] / medians["tiktoken"]["tokens_per_second"]
    )
    if "nanogpt" in speed:
        result["gpt_jax_over_nanogpt"] = speed["gpt_jax"] / speed["nanogpt"]
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"gpt_jax / tiktoken: {result['gpt_jax_over_tiktoken']:.2f}, without starting "
        f"{result['without_startup_over_tiktoken']:.2f}; written to {args.out}"
    )


if __name__ == "__main__":
    main()
