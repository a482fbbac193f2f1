"""The command line: `python main.py --config nano` trains, and `--help` says what else there is.

A thin layer over the package: it parses, prepares the devices, calls one function and turns a
mistake into one line. jax is imported only once the command line is known to be right.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import gpt_jax
from gpt_jax.config import Config, SampleConfig, override, pin_schedule
from gpt_jax.config_files import list_configs, load_config
from gpt_jax.devices import (
    DESCRIBES_TPUS,
    has_tpu,
    keep_compiled_programs,
    keep_freed_memory,
    request_cpu_devices,
    request_determinism,
)
from gpt_jax.errors import (
    ConfigError,
    OutOfTime,
    TrainingError,
    UserError,
    is_out_of_memory,
    suggest,
)
from gpt_jax.files import to_folder, to_local
from gpt_jax.hosts import HostsConfig, Launch, connect, leave
from gpt_jax.options import Parser, add_settings
from gpt_jax.settings import get, parse, settings

VERBS = {
    "train": "train a model, or go on with a run (the default)",
    "sample": "write text with a trained model",
    "eval": "evaluate a trained model on a whole split, exactly",
    "prepare": "turn texts of any size into token shards on disk",
    "export": "write a run as a GPT-2 folder, as transformers reads it",
    "replay": "compute one training step of a run again: what it saw, and its gradient",
    "verify": "try on this machine, in small, what the project promises",
    "plan": "compile a run's step, here or for a TPU slice, and say what it takes; trains nothing",
}


def train_command(argv: list[str]) -> int:
    pre = Parser(add_help=False, prog="main.py train")
    pre.add_argument("--config", default="nano")
    name, _ = pre.parse_known_args(argv)
    asks_help = bool({"-h", "--help"} & set(argv))
    config = load_config("nano" if asks_help and name.config not in list_configs() else name.config)

    configs = "\n".join(f"  {name:<14} {line}" for name, line in list_configs().items())
    verbs = "\n".join(f"  {verb:<14} {line}" for verb, line in VERBS.items())
    parser = Parser(
        prog="main.py train",
        usage="python main.py [train] [--config NAME] [--GROUP.SETTING X ...]",
        description=f"Trains a GPT, shows how its loss falls, and writes text.\n\n"
        f"verbs (each has its own --help):\n{verbs}\n\nconfigs:\n{configs}",
        epilog="The same command again goes on with an interrupted run. Defaults shown are those "
        "of the config named.",
    )
    parser.add_argument(
        "--config", metavar="NAME", help="name from configs/, or path of a Python file (nano)"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--version", action="version", version=f"gpt_jax {gpt_jax.__version__}")
    options = {name: "--" + name.replace("_", "-") for name, _, _ in settings(Config)}
    add_settings(parser, config, options)
    add_settings(parser, Launch(), {name: "--" + name for name, _, _ in settings(Launch)})
    values = vars(parser.parse(argv))
    values = {k: v for k, v in values.items() if k not in ("config", "debug")}
    of_hosts = [name for name in values if name.startswith("hosts.")]
    hosts = HostsConfig(**{name.removeprefix("hosts."): values.pop(name) for name in of_hosts})
    given = {}  # settings to hold against those of init_from, once it is read
    if values.get("init_from", config.init_from) is not None:
        of_source = [name for name in options if name.startswith("model.")]
        of_source += ["data.tokenizer", "data.vocab_size"]
        if config.init_from is not None:  # the config file's own
            given = {k: get(config, k) for k in of_source if get(config, k) != get(Config(), k)}
        given |= {k: values.pop(k) for k in of_source if k in values}
    config = override(config, values)

    n = hosts.count or 1
    request_cpu_devices(
        max(1, config.train.batch_at_once // n), at_least=-(-config.mesh.named // n)
    )
    if config.train.deterministic:
        request_determinism()
    connect(hosts, has_tpu=has_tpu())
    from gpt_jax.loop import train

    if config.init_from is not None:
        from gpt_jax.start import start_from

        config = start_from(config, given)
    train(config)
    return 0


def run_parser(verb: str, more: str = "") -> Parser:
    parser = Parser(
        prog=f"main.py {verb}",
        usage=f"python main.py {verb} --run-dir FOLDER [...]",
        description=VERBS[verb][0].upper() + VERBS[verb][1:] + "." + more,
    )
    folder = parser.add_mutually_exclusive_group()
    # fmt: off
    folder.add_argument("--run-dir", default="runs/nano", metavar="FOLDER",
                        help="the run's folder, or a GPT-2 folder (default: runs/nano)")
    folder.add_argument("--init-from", metavar="X", help="in place of --run-dir: also a name on "
                        "Hugging Face's hub, such as openai-community/gpt2")
    parser.add_argument("--checkpoint", type=_checkpoint, default="newest", metavar="X",
                        help="newest, best (the lowest validation loss) or a step (default: "
                        "newest)")
    # fmt: on
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _checkpoint(text: str) -> str | int:
    if text in ("newest", "best"):
        return text
    return parse(text, int, "--checkpoint, if neither newest nor best,")


def run_folder(run_dir: str, init_from: str | None) -> Path:
    from gpt_jax.hf import find

    return to_folder(run_dir) if init_from is None else find(init_from)


def sample_command(argv: list[str]) -> int:
    parser = run_parser(
        "sample",
        "\n\nText appears as it is written. `--prompt -` takes the prompt from "
        "standard input\n(a line break at its end is dropped). An empty prompt starts from a line "
        "break.\nDefaults not given here are those the run was trained with.",
    )
    names = {
        field.name: "--" + field.name.replace("_", "-")
        for field in dataclasses.fields(SampleConfig)
    }
    add_settings(parser, SampleConfig(), names)
    parser.add_argument("--seed", type=int, metavar="X", help="of the draws (default: the run's)")
    values = vars(parser.parse(argv))
    folder, seed = [values.pop(name) for name in ("run_dir", "init_from")], values.pop("seed")
    which = values.pop("checkpoint")
    del values["debug"]
    if seed is not None and not 0 <= seed < 2**32:
        raise ConfigError(f"seed={seed} must be a whole number in [0, 2**32)")
    SampleConfig(**values)  # mistakes are found before jax is imported

    request_cpu_devices(1)
    from gpt_jax.run import load_run
    from gpt_jax.run_folder import read_config
    from gpt_jax.text import stream

    run_dir = run_folder(*folder)
    config, _ = read_config(run_dir)
    chosen = dataclasses.replace(config.sample, **values)
    prompt = values.get("prompt")
    if prompt == "-":
        try:
            prompt = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise UserError(
                f"the prompt from standard input is not UTF-8 (byte {byte:#04x} at {error.start}); "
                "convert it, for example with: iconv -f latin1 -t utf-8"
            ) from None
        prompt = prompt.removesuffix("\n").removesuffix("\r")
    elif prompt is None:
        prompt = chosen.prompt or ""
    run = load_run(run_dir, which)
    if not prompt:
        print("note: the prompt is empty; starting from a line break", file=sys.stderr)
    first = True
    texts: list[str] = []
    for pieces in stream(run, prompt, chosen, seed=seed):
        if first:
            sys.stdout.write(prompt)
            texts, first = [prompt] * len(pieces), False
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        sys.stdout.write(pieces[0])
        sys.stdout.flush()
    print()
    for number, text in enumerate(texts[1:], 2):
        print(f"\n--- {number} ---\n{text}")
    return 0


def eval_command(argv: list[str]) -> int:
    parser = run_parser("eval")
    parser.add_argument("--split", choices=("val", "train"), default="val",
                        help="which part of the corpus (default: val)")  # fmt: skip
    parser.add_argument("--stride", type=int, metavar="X",
                        help="tokens from one window's start to the next; smaller gives each "
                        "prediction more context (default: block_size)")  # fmt: skip
    parser.add_argument("--data.corpus", dest="corpus", metavar="X",
                        help="where the run's corpus is now (default: where it was)")  # fmt: skip
    parser.add_argument("--max-tokens", type=int, metavar="X",
                        help="the most tokens to predict, the first of the split, of each corpus "
                        "(default: all)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    args = parser.parse(argv)

    request_cpu_devices(8)
    from gpt_jax.run import evaluate, load_run

    run = load_run(run_folder(args.run_dir, args.init_from), args.checkpoint)
    evaluation = evaluate(
        run,
        split=args.split,
        stride=args.stride,
        corpus_name=args.corpus,
        max_tokens=args.max_tokens,
    )
    corpus = run.corpus or {"name": args.corpus}
    if args.json:
        record = {
            "run_dir": str(run.run_dir),
            "step": run.step,
            "split": args.split,
            "corpus": corpus,
            **evaluation.record(),
        }
        print(json.dumps(record, indent=2))
    else:
        print(f"{run.run_dir}, step {run.step}, {args.split} split of {corpus['name']}:")
        print(evaluation)
    return 0


def prepare_command(argv: list[str]) -> int:
    from data.settings import PrepareConfig

    parser = Parser(
        prog="main.py prepare",
        usage="python main.py prepare --source S --input PATTERN --tokenizer T --out FOLDER [...]",
        description="Turns a source of text into token shards on disk, which --data.corpus FOLDER "
        "trains on.\nThe same command again goes on with a preparation that was interrupted. "
        "data/README.md has\nrecipes.",
    )
    hints = {name: hint for name, hint, _ in settings(PrepareConfig)}
    names = {name: "--" + name.replace("_", "-") for name in hints}
    add_settings(parser, PrepareConfig(input="-", out="-"), names)
    parser.add_argument("--verify", metavar="FOLDER",
                        help="only check every byte of a corpus that is prepared")  # fmt: skip
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    values = vars(parser.parse(argv))
    folder = values.pop("verify")
    del values["debug"]
    if folder is not None:
        if values:
            raise ConfigError(f"--verify {folder} takes no other setting")
        return verify_corpus(os.path.expanduser(folder))
    config = PrepareConfig(**values)

    from data.prepare import prepare

    manifest = prepare(config)
    if not manifest:
        return 0
    for split, total in manifest["totals"].items():
        shards = sum(shard["name"].startswith(split) for shard in manifest["shards"])
        print(
            f"{split:<5} {total['tokens']:>16,} tokens {total['bytes']:>17,} bytes "
            f"{total['documents']:>12,} documents {shards:>6,} shards"
        )
    counts = manifest["counts"]
    dropped = "".join(f", {n:,} {name}" for name, n in counts["dropped"].items())
    print(
        f"{counts['read']:,} documents read, {counts['kept']:,} kept{dropped}; damaged and left "
        f"out: {counts['damaged_files']:,} files, {counts['damaged_records']:,} records"
    )
    return 0


def verify_corpus(folder: str) -> int:
    from gpt_jax.console import Display
    from gpt_jax.shards import open_prepared, verify

    display = Display()
    prepared = open_prepared(folder)
    for note in prepared.notes:
        display.note(note)
    display.start_work(0, sum(prepared.n_tokens.values()))
    try:
        tokens = verify(prepared, lambda done, total: display.work(done, f"{done:,} tokens"))
    finally:
        display.stop()
    what = "sums, ids and bytes" if prepared.manifest else "ids"
    shown = " and ".join(f"{n:,} tokens for {split}" for split, n in tokens.items())
    print(f"{folder} is sound ({prepared.kind}, {what}): {shown}")
    return 0


def export_command(argv: list[str]) -> int:
    parser = run_parser("export")
    parser.add_argument("--out", metavar="FOLDER", required=True,
                        help="folder to write, made if missing; never written over")  # fmt: skip
    args = parser.parse(argv)

    request_cpu_devices(1)
    from gpt_jax.run import export, load_run

    folder = to_local(args.out)
    export(load_run(run_folder(args.run_dir, args.init_from), args.checkpoint), folder)
    print(f"wrote {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    print(f"  in transformers: AutoModelForCausalLM.from_pretrained({str(folder)!r})")
    print(f"  here:            python main.py sample --run-dir {folder}")
    return 0


def replay_command(argv: list[str]) -> int:
    parser = Parser(
        prog="main.py replay",
        usage="python main.py replay --run-dir FOLDER --step N [--json]",
        description=VERBS["replay"][0].upper() + VERBS["replay"][1:] + ".\n\nThe steps from the "
        "checkpoint before it are taken again, so one that is near helps\n(--train.keep-interval). "
        "Nothing is written.",
    )
    parser.add_argument("--run-dir", default="runs/nano", metavar="FOLDER",
                        help="the run's folder (default: runs/nano)")  # fmt: skip
    parser.add_argument("--step", type=lambda text: parse(text, int, "--step"), required=True,
                        metavar="X", help="the step, from 1")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse(argv)

    from gpt_jax.run_folder import read_config

    run_dir = to_folder(args.run_dir)
    config, _ = read_config(run_dir)
    request_cpu_devices(config.train.batch_at_once, at_least=config.mesh.named)
    if config.train.deterministic:
        request_determinism()
    from gpt_jax.replay import replay

    found = replay(run_dir, args.step)
    print(json.dumps(found.record(), indent=1) if args.json else found)
    return 0


def verify_command(argv: list[str]) -> int:
    parser = Parser(
        prog="main.py verify",
        usage="python main.py verify [--json]",
        description=VERBS["verify"][0].upper() + VERBS["verify"][1:] + ": a minute or two, in a "
        "temporary\nfolder. The exit status is 1 where a promise is not kept.",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse(argv)

    request_cpu_devices(8, at_least=8)
    import jax

    from gpt_jax.verify import verify

    if not args.json:
        print(f"{len(jax.devices())} x {jax.devices()[0].device_kind}, jax {jax.__version__}\n")
        print(f"{'':<6} {'largest difference':>18} {'allowed':>8} {'s':>5}  promise")
    results = []
    for result in verify():
        results.append(result)
        if not args.json:
            note = f" ({result.note})" if result.note else ""
            print(
                f"{'pass' if result.passed else 'FAIL':<6} {result.difference:>18.3g} "
                f"{result.allowed:>8.1g} {result.seconds:>5.1f}  {result.promise}{note}",
                flush=True,
            )
    if args.json:
        rows = [dataclasses.asdict(result) | {"passed": result.passed} for result in results]
        print(json.dumps(rows, indent=1))
    failed = sum(not result.passed for result in results)
    if not args.json:
        print(f"\n{failed} of {len(results)} FAILED" if failed else f"\nall {len(results)} pass")
    return 1 if failed else 0


def plan_command(argv: list[str]) -> int:
    pre = Parser(add_help=False, prog="main.py plan")
    pre.add_argument("--config", default="nano")
    config = load_config(pre.parse_known_args(argv)[0].config)
    parser = Parser(
        prog="main.py plan",
        usage="python main.py plan --config NAME [--topology v5e:4x4] [--GROUP.SETTING X ...]",
        description=VERBS["plan"][0].upper() + VERBS["plan"][1:] + ".\n\nNothing is allocated, "
        "so a model may be larger than this machine. The exit status is 1 where it\ndoes not fit.",
    )
    parser.add_argument("--config", metavar="NAME",
                        help="name from configs/, or path of a Python file (nano)")  # fmt: skip
    parser.add_argument("--topology", metavar="X",
                        help="a TPU slice to compile for, such as v5e:4x4, v5p:2x2x2 or v6e:8x8; "
                        "needs libtpu, but no TPU (default: this machine)")  # fmt: skip
    parser.add_argument("--sampling", action="store_true", help="compile the decoder too")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    add_settings(parser, config, {n: "--" + n.replace("_", "-") for n, _, _ in settings(Config)})
    values = vars(parser.parse(argv))
    topology, sampling = values.get("topology"), values.get("sampling", False)
    as_json = values.get("json", False)
    own = ("config", "topology", "sampling", "json", "debug")
    config = override(config, {k: v for k, v in values.items() if k not in own})

    if topology is None:
        request_cpu_devices(config.train.batch_at_once, at_least=config.mesh.named)
    else:
        os.environ |= DESCRIBES_TPUS
    from gpt_jax import plan

    plan.check_can_plan(topology)
    if not config.model.vocab_size:
        from gpt_jax.corpora import load_corpus
        from gpt_jax.start import choose_tokenizer

        corpus = load_corpus(config.data.corpus, config.data.fallback_corpus)
        for note in corpus.notes:
            print(f"note: {note}", file=sys.stderr)
        n = choose_tokenizer(config.data, corpus).vocab_size
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=n))
    config = pin_schedule(config)
    devices = None if topology is None else plan.topology_devices(topology)
    found = plan.make_plan(config, devices, sampling=sampling)
    way = None if found.fits or as_json else plan.find_way(config, devices)
    if as_json:
        print(json.dumps(found.record(), indent=1))
    else:
        print(found)
        if way is not None:
            print(f"\nit fits, with {way[1].memory / plan.GIB:.2f} GiB {found.where}, by {way[0]}")
        elif not found.fits:
            print("\nno way was found to fit it: take more devices, or a smaller model or batch")
    return 0 if found.fits else 1


COMMANDS = {
    "train": train_command,
    "sample": sample_command,
    "eval": eval_command,
    "prepare": prepare_command,
    "export": export_command,
    "replay": replay_command,
    "verify": verify_command,
    "plan": plan_command,
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns 0, 1 (it failed), 2 (a mistake) or 128 + a signal."""
    argv = sys.argv[1:] if argv is None else argv
    debug = "--debug" in argv
    try:
        if argv[:1] == ["help"]:
            argv = ["--help"]
        verb, rest = "train", argv
        if argv and not argv[0].startswith("-"):
            verb, rest = argv[0], argv[1:]
            if verb in list_configs():
                raise ConfigError(f"unknown verb {verb!r}; did you mean --config {verb}?")
            if verb not in COMMANDS:
                raise ConfigError(
                    f"unknown verb {verb!r}{suggest(verb, COMMANDS)}; there are "
                    f"{', '.join(COMMANDS)}"
                )
        keep_compiled_programs()
        keep_freed_memory()
        return COMMANDS[verb](rest)
    except (UserError, TrainingError) as error:
        if debug:
            raise
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return leave(error, 2 if isinstance(error, UserError) else 1)
    except RuntimeError as error:
        if debug or not is_out_of_memory(error):
            raise
        print(
            f"error: the memory is too small: {str(error).splitlines()[0]}; use a device with "
            "more, or JAX_PLATFORMS=cpu for the machine's own memory",
            file=sys.stderr,
        )
        return 1
    except OutOfTime as error:
        if debug:
            raise
        print(error, file=sys.stderr)
        return 75
    except KeyboardInterrupt as error:
        if debug:
            raise
        print(str(error) or "interrupted", file=sys.stderr)
        return 128 + getattr(error, "signum", signal.SIGINT)
    except BrokenPipeError:  # the reader went away, as in `| head`
        sys.stdout = None
        return 0


def _leave(signum: int, frame: Any) -> NoReturn:
    """Ends the program while there is nothing to lose: an import swallows KeyboardInterrupt."""
    os.write(2, b"\x1b[?25hinterrupted\n" if os.isatty(2) else b"interrupted\n")
    os._exit(128 + signum)


if __name__ == "__main__":
    if "--debug" not in sys.argv:  # training takes over while it has something to save
        signal.signal(signal.SIGINT, _leave)
        signal.signal(signal.SIGTERM, _leave)
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character shows "?"
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if status := main():
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(status)  # at once: threads of a save that failed may wait for what never comes
