"""What is safe to print: every control character, every word for a shell, output that fails."""

import errno
import io
import shlex
import subprocess
import sys
import unicodedata

import pytest

from gpt_jax import terminal
from gpt_jax.cli.parsers import run_parser
from gpt_jax.console import Display, wrap_command
from gpt_jax.terminal import (
    for_stream,
    one_line,
    program_command,
    say,
    shell_command,
    visible,
)

WORDS = ["a b", "it's", "-x", "--x", "$HOME", "`ls`", "a;b", "*", "\\", '"', "é", "", "a=b", "#"]

TURNING = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}


class Full(io.StringIO):
    """A stream whose device is full."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


class Tty(io.StringIO):
    def isatty(self):
        return True


def test_no_control_character_but_tab_and_line_feed_is_left():
    for character in map(chr, range(0x3000)):
        steers = unicodedata.category(character) == "Cc" and character not in "\t\n"
        turns = unicodedata.bidirectional(character) in TURNING or character in "\u200e\u200f\u061c"
        shown = ascii(character)[1:-1] if steers or turns else character
        assert visible(f"a{character}b") == f"a{shown}b"
    text = "Dorothy\tsaid: «é» 你好 🙂\n"
    assert visible(text) == text


def test_an_escape_sequence_is_shown():
    assert visible("\x1b]0;title\x07\x9b31m") == "\\x1b]0;title\\x07\\x9b31m"
    assert one_line("a\nb\r\nc\x1b\u2028d") == "a b c\\x1b d"


def test_generated_text_is_changed_for_a_terminal_alone():
    assert for_stream("\x1b", Tty()) == "\\x1b"
    assert for_stream("\x1b", io.StringIO()) == "\x1b"
    assert for_stream("\x1b", None) == "\x1b"


@pytest.mark.parametrize("word", WORDS)
def test_a_command_is_pasted_as_it_was_meant(word):
    command = shell_command("python", "main.py", "sample", "--run-dir", word, "--seed", 3)
    argv = shlex.split(command)[2:]
    parser = run_parser("sample")
    parser.add_argument("--seed")
    args = parser.parse(argv[1:])
    assert (str(args.run_dir), args.seed) == (word or ".", "3")
    script = command.replace("python main.py", "printf '%s\\n'")
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == argv


def test_a_command_is_broken_between_the_words_of_a_shell_only():
    command = shell_command("python", "main.py", "--run-dir", "a b " * 9, "--seed", 3)
    for width in range(1, 80):
        lines = wrap_command(command, width)
        assert shlex.split(" ".join(lines)) == shlex.split(command)
        assert all(len(line) <= width or len(shlex.split(line)) == 1 for line in lines)


def test_a_message_that_cannot_be_written_is_nobodys_loss(monkeypatch):
    for stream in (Full(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        say("error: a line")


def test_a_display_goes_on_where_the_output_is_full(monkeypatch):
    monkeypatch.setattr(terminal, "lost_output", lost := [])
    monkeypatch.setattr("gpt_jax.console.lost_output", lost)
    monkeypatch.setattr(sys, "stdout", Full())
    display = Display()
    for _ in range(2):
        display.line("a line")
        display.write("text")
        display.command("what", "python main.py")
    assert [error.errno for error in lost] == [errno.ENOSPC]  # it is quiet from then on


def test_what_a_display_prints_of_names_is_visible(capsys):
    display = Display()
    display.facts({"corpus": "\x1b[31mname"})
    display.note("\x07")
    display.command("what", "python main.py --run-dir '\x1b'")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "\\x1b[31mname" in out


@pytest.mark.parametrize(
    ("argv0", "begins"),
    [
        ("main.py", "python main.py"),
        ("/usr/local/bin/gpt_jax", "gpt_jax"),
        ("/site-packages/gpt_jax/__main__.py", "python -m gpt_jax"),
        ("/home/a/experiment.py", "python main.py"),
        ("", "python main.py"),
    ],
)
def test_printed_commands_begin_as_the_one_that_was_typed(monkeypatch, argv0, begins):
    monkeypatch.setattr(sys, "argv", [argv0])
    command = program_command("sample", "--run-dir", "my run")
    assert command == f"{begins} sample --run-dir 'my run'"
