"""Renders the blocks of README.md and docs/ that a result file or the project's address determines.

python benchmarks/tables.py            # rewrite the pages and the notebook
python benchmarks/tables.py --check    # only say whether they are up to date

A block stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->`. The project's public address
is `Repository` under `[project.urls]` in pyproject.toml; without it there is no Colab badge.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.worker import CONFIGS, MODELS, VOCAB_SIZE, vocab_size  # noqa: E402
from gpt_jax.experiments.report import number, p_value  # noqa: E402
from gpt_jax.experiments.sides import shown_value  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
NOTEBOOK = ROOT / "notebooks" / "colab.ipynb"
PYPROJECT = ROOT / "pyproject.toml"
ORIGINAL = {  # the PyTorch original's own figures, 50 random batches, one run
    "train": {0: 4.264, 50: 2.765, 100: 2.524, 200: 2.369, 300: 2.288, 400: 2.220, 450: 2.175},
    "val": {0: 4.263, 50: 2.775, 100: 2.521, 200: 2.379, 300: 2.304, 400: 2.232, 450: 2.191},
}


def load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def machine(result: dict[str, Any], part: str | None = None) -> str:
    """Returns the line below a table: the machine, versions, date and command, of one part."""
    m = (result[part] if part else result)["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items() if k in SHOWN)
    return (
        f"{m['cpu']}, {m['cores']} cores, {m['memory_gib']} GiB; {versions}; {m['date']}; "
        f"`{result['command']}`"
    )


SHOWN = ("python", "jax", "flax", "torch")
SAMPLE_CHARACTERS = 220
NANOGPT_VAL = 1.88  # its README, 20 batches of 12 x 64 characters


def losses() -> str:
    """The original's losses, beside those of both configs."""
    result = load("reproduce.json")
    configs = result["configs"]
    seeds = len(configs["nano"]["val"]["0"]["values"])
    lines = [
        "| step | original, train / val | `nano_original`, train | val | `nano`, train | val |",
        "|---|---|---|---|---|---|",
    ]
    for step in configs["nano"]["val"]:
        n = int(step)
        known = n in ORIGINAL["val"]
        original = f"{ORIGINAL['train'][n]:.3f} / {ORIGINAL['val'][n]:.3f}" if known else "-"
        cells = [
            "{mean:.3f} ± {half_width:.3f}".format(**configs[name][split][step])
            for name in ("nano_original", "nano")
            for split in ("train", "val")
        ]
        lines.append(f"| {step} | {original} | {' | '.join(cells)} |")
    exact = [
        "{mean:.3f} ± {half_width:.3f}".format(**configs[name]["exact_val_at_500"][key])
        for name in ("nano_original", "nano")
        for key in ("nats_per_token", "bits_per_byte")
    ]
    initial = result["initial_val_loss"]
    return "\n".join(
        [
            *lines,
            "",
            f"Nats per token, mean of {seeds} seeds and its 95% interval; 50 random batches, no "
            f"dropout. Over {initial['initialisations']} initialisations the loss at step 0 is "
            f"{initial['mean']:.3f} with a standard deviation of "
            f"{initial['standard_deviation']:.3f}. On the whole validation split after 500 steps: "
            f"`nano_original` {exact[0]} nats per token ({exact[1]} bits per byte), `nano` "
            f"{exact[2]} ({exact[3]}).",
            "",
            verdict(configs, initial),
            "",
            machine(result),
            *samples(configs),
        ]
    )


def verdict(configs: dict[str, Any], initial: dict[str, float]) -> str:
    """Returns how far the means are from the original's figures."""

    def distances(name: str, first: int) -> list[float]:
        return [
            configs[name][split][str(step)]["mean"] - figure
            for split in ("train", "val")
            for step, figure in ORIGINAL[split].items()
            if step >= first
        ]

    at_450 = configs["nano_original"]["val"]["450"]["mean"] - ORIGINAL["val"][450]
    deviations = (ORIGINAL["val"][0] - initial["mean"]) / initial["standard_deviation"]
    farthest = max(map(abs, distances("nano_original", 50)))
    return (
        f"From step 50 on `nano_original` is within {farthest:.3f} of the original's figures "
        f"everywhere ({at_450:+.3f} for val at 450); from step 200 on `nano` is at least "
        f"{-max(distances('nano', 200)):.3f} below it. The original's loss at step 0 is "
        f"{deviations:+.1f} standard deviations from the mean over initialisations."
    )


def samples(configs: dict[str, Any]) -> list[str]:
    """Returns the beginning of a sample from each config, as Markdown."""
    lines = []
    for name, results in configs.items():
        lines += ["", f"A sample from `{name}`, its last seed, after 500 steps:", ""]
        lines += sample_block(results["sample"], SAMPLE_CHARACTERS)
    return lines


def shakespeare() -> str:
    """nanoGPT's recipe for a CPU, reproduced."""
    result = load("shakespeare_cpu.json")
    plus_minus = "{mean:.3f} ± {half_width:.3f}".format
    lines = ["| step | train | val |", "|---|---|---|"]
    for step in result["val"]:
        if int(step) % 500 == 0:
            cells = [plus_minus(**result[split][step]) for split in ("train", "val")]
            lines.append(f"| {step} | {' | '.join(cells)} |")
    exact = result["exact_val"]
    seeds = len(exact["nats_per_token"]["values"])
    lines += [
        "",
        f"Nats per token, mean of {seeds} seeds and its 95% interval; 20 random batches, as in "
        f"nanoGPT, which gives {NANOGPT_VAL} for one seed. On the whole validation split "
        f"{plus_minus(**exact['nats_per_token'])} ({plus_minus(**exact['bits_per_byte'])} bits per "
        "byte).",
    ]
    if torch := result.get("torch"):
        n = len(torch["val"]["values"])
        lines[-1] += (
            f" The same recipe in PyTorch {torch['version']} (`benchmarks/torch_shakespeare.py`, "
            f"{n} seeds): {plus_minus(**torch['val'])}, on the whole split "
            f"{plus_minus(**torch['exact_val'])}."
        )
    return "\n".join([*lines, "", machine(result)])


def train_flop(model: str) -> float:
    """Returns the floating-point operations of a training step: three forward passes' worth."""
    n_layer, _, n_embd, block_size, batch_size = MODELS[model]
    tokens = batch_size * block_size
    matrices = n_layer * 12 * n_embd**2 + n_embd * vocab_size(model)
    attention = n_layer * 2 * block_size * n_embd  # scores and their weighted sums, unmasked
    return 3 * 2 * tokens * (matrices + attention)


def sample_flop(context: str) -> float:
    """Returns the operations of one token of nano, inside the context or past it.

    Past it the last block computes keys and values for all positions and the rest for one.
    """
    n_layer, _, n_embd, block_size, _ = MODELS["nano"]
    head = n_embd * VOCAB_SIZE
    block = 12 * n_embd**2 + 2 * block_size * n_embd
    if context == "inside":
        mean_length = block_size / 2
        return 2 * (n_layer * (12 * n_embd**2 + 2 * mean_length * n_embd) + head)
    last = 2 * n_embd**2 * block_size + 10 * n_embd**2 + 2 * block_size * n_embd
    return 2 * ((n_layer - 1) * block * block_size + last + head)


def speed() -> str:
    """Training, sampling and the whole command, beside PyTorch."""
    result = load("speed_cpu.json")
    rate = result["matmul_gflops"] * 1e9
    lines = ["| training, ms per step | gpt_jax | torch eager | torch compiled | gpt_jax / eager "
             "| lower bound |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for model, table in result["training_ms_a_step"].items():
        cells = [
            f"{table[name]['median']:.1f}" if name in table else "-"
            for name in ("gpt_jax", "torch eager", "torch compiled")
        ]
        ratio = table["gpt_jax"]["median"] / table["torch eager"]["median"]
        floor = train_flop(model) / rate * 1000
        lines.append(f"| {model} | {' | '.join(cells)} | **{ratio:.2f}** | {floor:.1f} |")
    lines += ["", "| nano: sampling, tokens per second | gpt_jax "
              "| torch eager, as nanoGPT samples | torch eager, with a KV cache "
              "| speedup of gpt_jax | upper bound |",
              "|---|---|---|---|---|---|"]  # fmt: skip
    plain, cached = "torch eager, as nanoGPT samples", "torch eager, with a cache"
    for name, table in result["sampling_seconds_a_token"].items():
        cells = [
            f"{1 / table[side]['median']:,.0f}" if side in table else "-"
            for side in ("gpt_jax", plain, cached)
        ]
        times = [
            f"{table[side]['median'] / table['gpt_jax']['median']:.1f}"
            for side in (plain, cached)
            if side in table
        ]
        most = rate / sample_flop("inside" if "inside" in name else "past")
        lines.append(f"| {name} | {' | '.join(cells)} | **{' / '.join(times)}** | {most:,.0f} |")
    whole = result.get("whole_command", {})
    if whole:
        lines += ["", "| the whole command | seconds | / torch eager | peak memory, MiB |",
              "|---|---|---|---|"]  # fmt: skip
    for name, row in whole.items():
        ratio = row["seconds"] / whole["torch eager"]["seconds"]
        peak = row["peak_bytes"] / 2**20
        lines.append(f"| {name} | {row['seconds']:.1f} | **{ratio:.2f}** | {peak:,.0f} |")
    lines += [
        "",
        "Medians of alternating rounds and the ratios of those medians; minima, and the medians of "
        "each round's ratio, are in the result file. "
        f"Large float32 matrix products ran at {result['matmul_gflops']:.0f} GFLOP/s in the same "
        "run; the bounds count a row's matrix products alone, at that rate (out of reach for one "
        "stream inside the context: a product with one vector waits for memory).",
        "",
        machine(result),
    ]
    return "\n".join(lines)


def longer() -> str:
    """The losses of nano over many more steps."""
    result = load("longer.json")
    rows = {row["step"]: row for row in result["rows"]}
    lowest = result["lowest"]
    step, exact = lowest["step"], lowest["exact"]
    shown = sorted({s for s in LONGER_STEPS if s in rows} | {step, max(rows)})
    lines = ["| step | train | val | bits per byte |", "|---|---|---|---|"]
    for n in shown:
        train, val, bits = (rows[n][key] for key in ("train_loss", "val_loss", "val_bpb"))
        mark = "**" if n == step else ""
        lines.append(f"| {n:,} | {train:.3f} | {mark}{val:.3f}{mark} | {bits:.3f} |")
    return "\n".join(
        [
            *lines,
            "",
            f"Lowest of {len(rows)} evaluations at step {step:,}; there, on the whole validation "
            f"split: {exact['nats_per_token']:.4f} nats per token, perplexity "
            f"{exact['perplexity']:.3f}, {exact['bits_per_byte']:.4f} bits per byte. One seed.",
            "",
            machine(result),
            "",
            f"A sample from nano after {step:,} steps:",
            "",
            *sample_block(lowest["sample"], 2 * SAMPLE_CHARACTERS),
        ]
    )


def first_run() -> str:
    """What the first command gives: losses, time and a sample after 500 steps."""
    nano = load("reproduce.json")["configs"]["nano"]
    commands = load("speed_cpu.json")
    cold, warm = (commands["whole_command"][f"gpt_jax, {way}"] for way in ("cold", "warm"))
    loss, m = nano["exact_val_at_500"]["nats_per_token"], commands["machine"]
    seeds = len(loss["values"])
    return "\n".join(
        [
            f"**After 500 steps**: validation loss {loss['mean']:.3f} nats per token (mean of "
            f"{seeds} seeds). The whole command takes {cold['seconds']:.0f} s on {m['cores']} "
            f"cores ({m['cpu']}), and {warm['seconds']:.0f} s once its programs are in the "
            "compilation cache. A sample:",
            "",
            *sample_block(nano["sample"], SAMPLE_CHARACTERS),
        ]
    )


def long_run() -> str:
    """Ten times the steps, by benchmarks/longer.py: losses, time and a sample."""
    result = load("nano_5000.json")
    exact, seconds, m = result["exact"], result["seconds"], result["machine"]
    return "\n".join(
        [
            f"**After {result['steps']:,} steps**: validation loss "
            f"{exact['nats_per_token']:.3f} nats per token. Training takes "
            f"{_duration(seconds['training'])}, the whole command "
            f"{_duration(seconds['command'])}, on {m['cores']} cores ({m['cpu']}) that trained at "
            f"{2048 * result['steps'] / seconds['training']:,.0f} tokens per second that day. "
            "A sample:",
            "",
            *sample_block(result["sample"], SAMPLE_CHARACTERS),
        ]
    )


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.1f} s"


def sample_block(sample: str, characters: int) -> list[str]:
    """Returns the beginning of a sample as a block of Markdown, without control characters."""
    text = "".join(c for c in sample if c.isprintable() or c == "\n")
    return ["```text", text[:characters].rstrip(), "```"]


def speed_short() -> str:
    """The main rows of `speed`."""
    result = load("speed_cpu.json")
    lines = ["| | gpt_jax | PyTorch eager | PyTorch compiled |", "|---|---|---|---|"]

    def add(what: str, ours: float, eager: float, compiled: float | None, form: str) -> None:
        cells = ["-" if x is None else format(x, form) for x in (ours, eager, compiled)]
        lines.append(f"| {what} | **{cells[0]}** | {cells[1]} | {cells[2]} |")

    for model, table in result["training_ms_a_step"].items():
        if model in CONFIGS:  # docs/ has it
            continue
        sides = (table[side]["median"] for side in ("gpt_jax", "torch eager", "torch compiled"))
        n_layer, _, n_embd, block_size, _ = MODELS[model]
        size = f"{n_layer} layers, {n_embd} wide, context {block_size}"
        what = f"{model}, {size}" if model == "nano" else size
        add(f"{what}: training, ms per step", *sides, ",.1f")
    streams = result["sampling_seconds_a_token"]["one stream, inside the context"]
    sides = (1 / streams[side]["median"] for side in ("gpt_jax", "torch eager, with a cache"))
    add("nano: sampling with a KV cache, tokens per second", *sides, None, ",.0f")
    whole = result["whole_command"]
    sides = (whole[side]["seconds"] for side in ("gpt_jax, cold", "torch eager", "torch compiled"))
    add("nano: the whole command, seconds", *sides, ".1f")
    return "\n".join([*lines, "", machine(result)])


def address() -> str:
    """Returns the project's public address, or "" where pyproject.toml has none."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    return project.get("urls", {}).get("Repository", "").rstrip("/").removesuffix(".git")


def clone() -> str:
    """How to get the code."""
    get = "In a clone of this repository, make an environment:"
    lines = ["python3 -m venv .venv && source .venv/bin/activate"]
    if url := address():
        get = "Clone the repository and make an environment:"
        lines = [f"git clone {url} && cd {url.rpartition('/')[2]}", *lines]
    return "\n".join([get, "", "```", *lines, "```"])


def colab() -> str:
    """The badge that opens the notebook in Colab, which reads public repositories of GitHub."""
    owner_and_name = address().removeprefix("https://github.com/")
    if not owner_and_name or owner_and_name == address():
        return "[notebooks/colab.ipynb](notebooks/colab.ipynb) does all of it in a notebook."
    link = (
        f"https://colab.research.google.com/github/{owner_and_name}/blob/main/notebooks/colab.ipynb"
    )
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link})"


def badge() -> str:
    """The same badge for the notebook itself, or nothing."""
    return colab() if colab().startswith("[!") else ""


def runtimes() -> str:
    """How long 5,000 steps take on the runtimes of Colab: measured, a bound by the plan, or not."""
    configs = ("nano", "shakespeare_char")
    measured = load("nano_5000.json")
    seconds, m = measured["seconds"], measured["machine"]
    steps = " | ".join(f"{name}, {COLAB_STEPS:,} steps" for name in configs)
    lines = [f"| runtime | {steps} |", "|---|---|---|"]
    lines.append(
        f"| CPU | {_duration(seconds['training'])}, and {_duration(seconds['command'])} with "
        f"evaluations, measured on {m['cores']} cores ({m['cpu']}); Colab's not measured "
        "| not measured |"
    )
    plans = load(GPU_PLANS)["plans"]
    for chip in ("T4", "L4", "A100"):
        command = f"python main.py plan --config {{}} --topology {chip.lower()}:1"
        bounds = [plans.get(command.format(x), {}).get("kernel_seconds") for x in configs]
        lines.append(f"| {chip} | {' | '.join(map(_runtime, bounds))} |")
    lines.append(f"| TPU v5e | {' | '.join(map(_runtime, [None, None]))} |")
    return "\n".join(
        [
            *lines,
            "",
            "A bound is that of the compiled step at the rates that `python main.py plan` assumes "
            "of the chip, if nothing stays in its cache; evaluations and compiling come on top.",
        ]
    )


def _runtime(seconds_per_step: float | None) -> str:
    if seconds_per_step is None:
        return "not measured"
    return f"not measured; bound: at least {_duration(COLAB_STEPS * seconds_per_step)}"


COLAB_STEPS = 5000


def directions() -> str:
    """The four directions against nano."""
    result = load("directions.json")
    lines = [
        "| | parameters | bits per byte | against nano | verdict |",
        "|---|---|---|---|---|",
    ]
    for name, row in result["directions"].items():
        plus_minus = "{mean:.3f} ± {half_width:.3f}".format
        cells = [plus_minus(**row["bits_per_byte"]), "-", "-"]
        if name != "nano":
            beside = row["beside_nano"]
            verdict = "helps" if beside["mean"] < 0 else "harms"
            if abs(beside["mean"]) <= beside["half_width"]:
                verdict = "neither helps nor harms, as far as these seeds show"
            sign = "+" if beside["mean"] >= 0 else ""
            cells[1:] = [sign + plus_minus(**beside), verdict]
        lines.append(f"| {name} | {row['parameters']:,} | {' | '.join(cells)} |")
    seeds = len(result["directions"]["nano"]["bits_per_byte"]["values"])
    return "\n".join(
        [
            *lines,
            "",
            f"After {result['steps']} steps, on the whole of the book's last "
            f"{result['val_characters']:,} characters; mean of {seeds} seeds and its 95% interval, "
            "differences seed by seed.",
            "",
            machine(result),
        ]
    )


LONGER_STEPS = (500, 1000, 2000, 3000, 4000, 5000, 6000, 8000, 10000, 12000)


def chaos() -> str:
    """Runs killed at random moments."""
    result = load("chaos.json")
    lines = ["| devices | SIGKILLs survived | where each kill fell | differences at the end |"]
    lines.append("|---|---|---|---|")
    for devices, found in result["devices"].items():
        left = ", ".join(f"{n} {where}" for where, n in found["left"].items())
        different = ", ".join(found["different"]) or "nothing, bit for bit"
        lines.append(f"| {devices} | {found['kills']} | {left} | {different} |")
    seconds = result["sigterm_seconds"]
    told = (
        f"SIGTERM, {len(seconds)} times at random moments of `--config nano`: saved, and ended "
        f"with status 143, after {statistics.median(seconds):.1f} s (median), at most "
        f"{max(seconds):.1f}."
    )
    return "\n".join([*lines, "", told, "", machine(result)])


def _mesh(plan: dict[str, Any]) -> str:
    return " x ".join(f"{axis} {n}" for axis, n in plan["mesh"].items() if n > 1) or "1 device"


def _gib(n_bytes: float) -> str:
    return f"{n_bytes / 2**30:.1f}"


def layouts() -> str:
    """Memory and traffic of the meshes of 16 TPU chips."""
    result = load("plans.json")
    lines = [
        "| model | mesh | GiB per chip | sent by one chip per step, GB: all-gather | "
        "reduce-scatter | all-reduce | other |",
        "|---|---|---|---|---|---|---|",
    ]
    for plan in result["layouts"]["plans"]:
        sent = {"all-gather": 0.0, "reduce-scatter": 0.0, "all-reduce": 0.0, "other": 0.0}
        for collective in plan["collectives"]:
            kind = collective["kind"]
            sent[kind if kind in sent else "other"] += collective["bytes_sent"] / 1e9
        cells = [f"{n:.1f}" if n else "-" for n in sent.values()]
        memory = _gib(plan["memory"])
        if plan["memory_is_floor"]:
            memory, cells = f"at least {memory}: does not fit", ["-"] * 4
        lines.append(f"| {plan['model']} | {_mesh(plan)} | {memory} | {' | '.join(cells)} |")
    chip = result["chip"]
    return "\n".join(
        [
            *lines,
            "",
            f"A step of 524,288 tokens, compiled for 16 TPU {chip['name']} chips of "
            f"{_gib(chip['memory'])} GiB, a micro-batch of 8 sequences (xl: 4) per "
            "chip on the axes data and fsdp, the loss in chunks of 8,192 tokens; nothing was run. "
            + machine(result, "layouts"),
        ]
    )


def scale() -> str:
    """Lower bounds on a step as chips are added."""
    return _costs("scale")


def long() -> str:
    """The same for long sequences, with and without sequence parallelism."""
    return _costs("long")


def _costs(part: str) -> str:
    result = load("plans.json")
    lines = [
        "| model | chips | mesh | micro-batch | GiB per chip | compute, ms | memory, ms | "
        "network, ms | bound by | tokens/s, upper bound | of peak FLOP/s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for plan in result[part]["plans"]:
        start = f"| {plan['model']} | {plan['n']} | {_mesh(plan)} | {plan['micro_batch']} "
        if plan["memory_is_floor"]:
            lines.append(start + f"| at least {_gib(plan['memory'])}: does not fit |{' - |' * 6}")
            continue
        seconds = plan["seconds"]
        bound = max(seconds, key=lambda name: seconds[name])
        cells = [f"{1000 * seconds[name]:,.0f}" for name in ("computing", "memory", "network")]
        share = seconds["computing"] / seconds[bound]
        lines.append(
            start + f"| {_gib(plan['memory'])} | {' | '.join(cells)} | {bound} | "
            f"{plan['tokens'] / seconds[bound]:,.0f} | {share:.0%} |"
        )
    return "\n".join([*lines, "", machine(result, part)])


def _gpu_rows(name: str) -> list[dict[str, Any]]:
    lines = (RESULTS / name).read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if "what" in row and "error" not in row]


def _gpu_label(row: dict[str, Any]) -> str:
    """Returns what a row of a GPU's results measured."""
    graphs = "CUDA graphs" if row.get("mode") == "graphs" else row.get("mode", "")
    micro = f", {row['micro']} sequences at once" if "micro" in row else ""
    micro += ", changes on trial" if "own_loss" in row else ""
    torch_decode = row.get("mode", "eager")
    if torch_decode != "transformers":
        torch_decode = f"PyTorch {torch_decode}"
    return {
        "train": f"base: gpt_jax{micro}",
        "torch_train": f"base: PyTorch, {graphs}{micro}",
        "nano": "nano: gpt_jax",
        "torch_nano": f"nano: PyTorch, {graphs}",
        "decode": f"base, generating: gpt_jax, streams: {row.get('streams')}",
        "torch_decode": f"base, generating: {torch_decode}, streams: {row.get('streams')}",
    }.get(row["what"], "")


def gpu() -> str:
    """Training and generation on one GPU, beside PyTorch in the same run; and an earlier run."""
    rows = _gpu_rows(GPU)
    lines = ["| on one GPU | ms per step or token | tokens/s | MFU | peak memory, GiB |",
             "|---|---|---|---|---|"]  # fmt: skip
    earlier = [row | {"earlier": True} for row in _gpu_rows(GPU_BEFORE)]
    for row in [*rows, *earlier]:
        label, time = _gpu_label(row), row.get("ms_per_step", row.get("ms_per_token"))
        if not label or time is None or row.get("graphs_here", "default") != "default":
            continue
        label += " (earlier run)" if "earlier" in row else ""
        mfu = f"{row['mfu']:.1%}" if row.get("mfu") else "-"
        peak = f"{row['peak_gib']:.1f}" if row.get("peak_gib", 0) > 1 else "-"
        rate = f"{row['tokens_per_second']:,.0f}" if "tokens_per_second" in row else "-"
        lines.append(f"| {label} | {time:,.3g} | {rate} | {mfu} | {peak} |")
    found = next(row for row in rows if "kind" in row)
    copied = next(row["copy_tb_per_second"] for row in rows if "copy_tb_per_second" in row)
    product = next(row for row in rows if row.get("matmul") == "bfloat16")
    versions = ", ".join(f"{k} {found['versions'][k]}" for k in SHOWN if k in found["versions"])
    return "\n".join(
        [
            *lines,
            "",
            "base: 131,072 tokens per step in bfloat16, in micro-batches of 32 sequences unless "
            "the row says otherwise; PyTorch is compiled, in bfloat16, with fused attention and "
            "AdamW. nano: 2,048 tokens per step in float32, whose products both multiply as TF32. "
            "Medians. The earlier run, of the same day on the same kind of machine, is of the "
            "program before `gpt_jax/model/tuning.py`. A copy moved "
            f"{copied:.1f} TB/s, and a bfloat16 product of {product['n']:,} reached "
            f"{product['tflops_per_second']:.0f} TFLOP/s.",
            "",
            f"{found['kind']}; python {found['python']}, {versions}; "
            "`bash benchmarks/gpu/gpu_run.sh`",
        ]
    )


def gpu_plan() -> str:
    """What `plan` prints for base on one H100."""
    text = load(GPU_PLANS)["plans"][BASE_ON_H100]["text"]
    return f"```text\n{text}\n```"


def gpu_plans() -> str:
    """The plans of configs on NVIDIA GPUs."""
    result = load(GPU_PLANS)
    heading = (
        "config and options | GPUs | GiB per GPU | kernels launched | ms at least | MFU at most"
    )
    lines = [f"| {heading} |", "|---|---|---|---|---|---|"]
    for command, plan in result["plans"].items():
        words = command.split()
        if plan.get("decoding"):
            continue
        name, gpus = words[words.index("--config") + 1], words[words.index("--topology") + 1]
        options = " ".join(words[words.index("--topology") + 2 :])
        floor = "at least " if plan["memory_is_floor"] else ""
        fits = "" if plan["fits"] else ", does not fit"
        cells = [f"`{name} {options}`" if options else f"`{name}`", gpus]
        cells.append(f"{floor}{plan['memory'] / 2**30:.1f}{fits}")
        cells.append(f"{sum(g['launches'] for g in plan['groups']):,}" if plan["groups"] else "-")
        seconds, mfu = plan["kernel_seconds"], plan["mfu"]
        cells += [f"{1000 * seconds:,.4g}" if seconds else "-", f"{mfu:.1%}" if mfu else "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Compiled, not run, for one optimizer step. {machine(result)}"])


def gpu_decoding() -> str:
    """What decoding takes on NVIDIA GPUs, by the plans that compile the decoder."""
    result = load(GPU_PLANS)
    columns = "streams | positions read | kernels launched | us at least | MB read and written"
    lines = [f"| config | GPUs | {columns} |", "|---|---|---|---|---|---|---|"]
    for command, plan in result["plans"].items():
        words = command.split()
        name, gpus = words[words.index("--config") + 1], words[words.index("--topology") + 1]
        for bound in plan.get("decoding", ()):
            positions = bound["positions"]
            cells = [f"`{name}`", gpus, f"{bound['streams']}"]
            cells.append("mean of a whole context" if positions is None else f"{positions:,}")
            cells += [f"{bound['launches']:,.0f}", f"{1e6 * bound['seconds']:,.1f}"]
            cells.append(f"{bound['bytes'] / 1e6:,.0f}")
            lines.append(f"| {' | '.join(cells)} |")
    said = "Compiled, not run, for one token of each stream."
    return "\n".join([*lines, "", f"{said} {machine(result)}"])


GPU, GPU_BEFORE = "gpu_h200.jsonl", "gpu_h200_before.jsonl"
GPU_PLANS, BASE_ON_H100 = "gpu_plans.json", "python main.py plan --config base --topology h100:1"


def sweep() -> str:
    """A sweep beside the same runs as separate commands."""
    result = load("sweep_cpu.json")
    speeds, ratio = result["members_per_minute"], result["ratio"]
    names = {"sweep": "one sweep", "separate": "separate commands"}
    lines = ["| | empty compilation cache | warm |", "|---|---|---|"]
    for way, name in names.items():
        lines.append(f"| {name} | {speeds[way]['cold']:.1f} | {speeds[way]['warm']:.1f} |")
    lines.append(f"| time of the sweep over theirs | {ratio['cold']:.2f} | {ratio['warm']:.2f} |")
    turns = len(result["turns"]["sweep"])
    settings = " ".join(result["settings"])
    return "\n".join(
        [
            *lines,
            "",
            f"Members a minute: {result['members']} of {result['steps']} steps each, `{settings}`; "
            f"medians of {turns} turns, which alternate.",
            "",
            machine(result),
        ]
    )


def trials() -> str:
    """The simulations of `benchmarks/trials.py`."""
    result = load("trials.json")
    effects = [name for name in next(iter(result["kinds"].values())) if name != "no_difference"]
    lines = [
        "| noise | false verdicts | a t test after every pair | "
        + " | ".join(f"decided at {name.removesuffix('standard deviations')}sd" for name in effects)
        + " |",
        "|---|---|---|" + "---|" * len(effects),
    ]
    for kind, row in result["kinds"].items():
        none = row["no_difference"]
        wrong = "{share:.2%} ± {error:.2%}".format(**none["false_verdicts"])
        peeking = "{share:.1%}".format(**none["t_test_after_every_pair"])
        cells = [
            "{decided[share]:.0%} after {median_pairs:.0f} pairs".format(**row[e]) for e in effects
        ]
        lines.append(f"| {kind} | {wrong} | {peeking} | {' | '.join(cells)} |")
    fixed = [result["kinds"]["normal"][e]["pairs_of_a_t_test_with_power_0.8"] for e in effects]
    return "\n".join(
        [
            *lines,
            "",
            f"{result['trials']:,} simulated trials each, at most {result['most_pairs']} pairs, at "
            f"alpha = {result['alpha']:g}: the confidence sequence of `sequential.py`, looked at "
            "after every pair. False verdicts are those where nothing differs, with their Monte "
            "Carlo error; beside them those of a t test that is looked at as often. sd is the "
            "standard deviation of the differences; pairs are the median. A t test that is looked "
            f"at once and has a power of 80% needs {fixed[0]}, {fixed[1]} and {fixed[2]} pairs, "
            "but the effect must be known before. Differences that are themselves strongly skewed "
            "break the assumption.",
            "",
            machine(result),
        ]
    )


def _settings(values: dict[str, Any]) -> str:
    shown = [f"{name.replace('_', '-')}={shown_value(value)}" for name, value in values.items()]
    return ", ".join(f"`{each}`" for each in shown)


def _difference(mean: float | None, half_width: float | None) -> str:
    if mean is None or half_width is None:
        return "-" if mean is None else f"{mean:+.4f}"
    return f"{number(mean, half_width, '+')} ± {number(half_width, half_width)}"


def tuned() -> str:
    """Trials of changes of nano; then the config that they led to, over fresh seeds."""
    result = load("tuned.json")
    parts = [render(result[part]) for part, render in TUNED_PARTS.items() if part in result]
    return "\n\n".join(parts)


def _tuned_trials(result: dict[str, Any]) -> str:
    lines = ["| trial | nano with | change | pairs | difference | correlation | verdict |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in result["rows"]:
        r, gain = row["correlation"], row["pairing_gain"]
        worth = "-" if r is None or gain is None else f"{r:.2f}, worth {gain:.2g} times as many"
        cells = [row["name"], _settings(row["baseline"]) or "nothing else"]
        cells.append(_settings(row["change"]) or "none")
        cells.append(f"{len(row['differences'])}{'' if row['paired'] else ', not paired'}")
        cells += [_difference(row["mean"], row["half_width"]), worth, row["verdict"]]
        lines.append(f"| {' | '.join(cells)} |")
    levels = sorted({f"{100 * (1 - row['alpha']):g}%" for row in result["rows"]})
    return "\n".join(
        [
            *lines,
            "",
            "Change - baseline of the exact validation loss, nats per token, as "
            f"`python main.py trial` gives it, with its {' or '.join(levels)} interval that may be "
            "looked at after every pair. The correlation is that of the pairs, and how many "
            "times as many runs without pairs it is worth.",
            "",
            machine(result),
        ]
    )


def _tuned_final(result: dict[str, Any]) -> str:
    lines = ["| | parameters | exact validation loss | bits per byte |", "|---|---|---|---|"]
    plus_minus = "{mean:.4f} ± {half_width:.4f}".format
    for name, row in result["configs"].items():
        cells = [plus_minus(**row[key]) for key in ("exact_val", "bits_per_byte")]
        lines.append(f"| `{name}` | {row['parameters']:,} | {' | '.join(cells)} |")
    step = max(ORIGINAL["val"])
    lines.append(f"| the original at step {step} | | {ORIGINAL['val'][step]}, random batches | |")
    found, seeds, unpaired = result["compared"], result["seeds"], result["as_if_unpaired"]
    words = {"better": "lower", "worse": "higher", "not shown": "not shown to differ"}
    pairs = f"{found['pairs']} pairs" if found["paired"] else "not paired"
    pairs += "" if found["p"] is None else f", {p_value(found['p'])}"
    gain = ""
    if found["pairing_gain"] is not None:
        r, worth, without = found["correlation"], found["pairing_gain"], unpaired["half_width"]
        gain = f" Pairs correlate by {r:.2f}, which is worth {worth:.2g} times as many runs: "
        gain += f"without them it would be ± {without:.4f}."
    return "\n".join(
        [
            *lines,
            "",
            f"Seeds {seeds[0]} to {seeds[-1]}, which no trial has used; nats per token on the "
            "whole validation split, means and their 95% intervals. `nano_tuned` is "
            f"{words[found['verdict']]}: "
            f"{_difference(found['mean_difference'], found['half_width'])} ({pairs}).{gain} "
            "It is `nano` with "
            f"{_settings({name: b for name, (_, b) in found['settings'].items()})}.",
            "",
            machine(result),
        ]
    )


TUNED_PARTS = {"trials": _tuned_trials, "final": _tuned_final}

TABLES: dict[str, tuple[str, Callable[[], str]]] = {  # block -> (result file, its Markdown)
    "first_run": ("reproduce.json", first_run),
    "long_run": ("nano_5000.json", long_run),
    "speed_short": ("speed_cpu.json", speed_short),
    "losses": ("reproduce.json", losses),
    "longer": ("longer.json", longer),
    "directions": ("directions.json", directions),
    "shakespeare": ("shakespeare_cpu.json", shakespeare),
    "speed": ("speed_cpu.json", speed),
    "gpu": (GPU, gpu),
    "gpu_plan": (GPU_PLANS, gpu_plan),
    "gpu_plans": (GPU_PLANS, gpu_plans),
    "gpu_decoding": (GPU_PLANS, gpu_decoding),
    "chaos": ("chaos.json", chaos),
    "layouts": ("plans.json", layouts),
    "scale": ("plans.json", scale),
    "long": ("plans.json", long),
    "trials": ("trials.json", trials),
    "sweep": ("sweep_cpu.json", sweep),
    "tuned": ("tuned.json", tuned),
}
ADDRESSES: dict[str, Callable[[], str]] = {"clone": clone, "colab": colab}
NOTEBOOK_BLOCKS: dict[str, Callable[[], str]] = {"badge": badge, "runtimes": runtimes}
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def render(text: str) -> str:
    """Returns a page's text with every block between its markers made anew."""
    blocks = {name: block for name, (_, block) in TABLES.items()} | ADDRESSES | NOTEBOOK_BLOCKS
    for name, block in blocks.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if begin in text:
            before, _, rest = text.partition(begin)
            _, _, after = rest.partition(end)
            text = f"{before}{begin}\n{block()}\n{end}{after}"
    return text


def render_notebook(text: str) -> str:
    """Returns the notebook's JSON with its blocks, and the address in its constant REPOSITORY."""
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            source = render(source)
        else:
            new = f'REPOSITORY = "{address()}"'
            source = re.sub(r'^REPOSITORY = "[^"]*"', lambda _: new, source, flags=re.MULTILINE)  # noqa: B023
        cell["source"] = source.splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    differ = []
    for page in (*PAGES, NOTEBOOK):
        text = page.read_text(encoding="utf-8")
        rendered = render_notebook(text) if page == NOTEBOOK else render(text)
        if rendered == text:
            continue
        differ.append(page.name)
        if "--check" not in sys.argv:
            page.write_text(rendered, encoding="utf-8")
    if "--check" in sys.argv:
        print(f"differ: {', '.join(differ)}; run benchmarks/tables.py" if differ else "up to date")
        return 1 if differ else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
