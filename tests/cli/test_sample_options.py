"""`sample --special` and `--interactive`."""

import io

import pytest

import gpt_jax
import main
from gpt_jax.errors import ConfigError
from gpt_jax.inference import generation
from gpt_jax.tokenizer import BpeTokenizer, CharTokenizer


def test_special_tokens_of_a_prompt_are_tokens_only_where_asked_for():
    pattern = r"\p{L}+|\s|[^\p{L}\s]"
    tokens = [bytes([i]) for i in range(256)] + [b"ab"]
    tokenizer = BpeTokenizer(tokens, pattern, {"<|endoftext|>": 257, "<|user|>": 258})
    text = "ab<|user|>ab<|endoftext|>"
    assert generation.encode_prompt(tokenizer, text, True).tolist() == [256, 258, 256, 257]
    as_text = generation.encode_prompt(tokenizer, text, False)
    assert max(as_text) == 256
    assert tokenizer.decode(as_text) == text
    characters = CharTokenizer("<>ab|")
    assert generation.encode_prompt(characters, "<|a|>", True).tolist() == [
        *characters.encode("<|a|>").tolist()
    ]
    assert generation.encode_prompt(characters, "", True).tolist() == [characters.start_token]


def typed(monkeypatch, raw: bytes, is_terminal: bool = False):
    stdin = io.TextIOWrapper(io.BytesIO(raw), "utf-8")
    monkeypatch.setattr(stdin, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setattr("sys.stdin", stdin)


@pytest.mark.slow
def test_prompts_are_typed_one_after_another(tiny_config, finished_run, monkeypatch, capsys):
    run = finished_run(tiny_config)
    argv = ["sample", "--run-dir", str(run.run_dir), "--max-new-tokens", "6", "--seed", "3"]
    typed(monkeypatch, "the \nwizard 中\nthe \n\nnever read\n".encode())
    assert main.main([*argv, "--interactive"]) == 0
    shown = capsys.readouterr()
    first, second = (gpt_jax.generate(run, "the ", seed=s, max_new_tokens=6) for s in (3, 5))
    assert shown.out == f"{first}\n{second}\n"
    assert shown.err.count("error: ") == 1  # of the prompt that can't be encoded
    assert "中" in shown.err
    typed(monkeypatch, b"the \n", is_terminal=True)
    assert main.main([*argv, "--interactive"]) == 0
    assert capsys.readouterr().out == f"> {first}\n> "
    typed(monkeypatch, b"\xff\n")
    assert main.main([*argv, "--interactive"]) == 2
    assert "not UTF-8" in capsys.readouterr().err
    assert main.main([*argv, "--interactive", "--prompt", "a"]) == 2
    assert "leave --prompt out" in capsys.readouterr().err


def test_num_samples_of_generate_is_one_line(tiny_config):
    with pytest.raises(ConfigError, match=r"generate returns one text; gpt_jax\.stream yields"):
        gpt_jax.generate(None, "a", num_samples=3)
