"""`python main.py export`: writes a run as a GPT-2 folder of Hugging Face."""

from __future__ import annotations

from gpt_jax import devices
from gpt_jax.cli.parsers import run_folder, run_parser
from gpt_jax.storage import to_local
from gpt_jax.terminal import program_command, visible


def command(argv: list[str]) -> int:
    parser = run_parser("export")
    parser.add_argument("--out", type=to_local, metavar="FOLDER", required=True,
                        help="folder to write, created if missing; never overwritten")  # fmt: skip
    args = parser.parse(argv)

    devices.request_cpu_devices(1)
    from gpt_jax.run.load import export, load_run

    out = args.out
    export(load_run(run_folder(args.run_dir, args.init_from), args.checkpoint), out)
    names = ", ".join(sorted(path.name for path in out.iterdir()))
    print(visible(f"wrote {out}: {names}"))
    print(f"  in transformers: AutoModelForCausalLM.from_pretrained({str(out)!r})")
    here = program_command("sample", "--run-dir", out)
    print(visible(f"  here:            {here}"))
    return 0
