"""Where texts come from: a loopback server stands in for Project Gutenberg."""

import bz2
import contextlib
import gzip
import itertools
import lzma
import os
import shutil
import socket
import sys
import threading
import time
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from gpt_jax import download
from gpt_jax.config import Config, ModelConfig
from gpt_jax.errors import UserError
from gpt_jax.input_pipeline import text_corpus, text_files
from gpt_jax.input_pipeline.corpus import load_corpus, note_on_fallback, parse_mixture
from gpt_jax.input_pipeline.shards.reader import open_shards
from gpt_jax.input_pipeline.shards.writer import ShardWriter
from gpt_jax.input_pipeline.text_corpus import CorpusError, DownloadError, TextCorpus, original_form
from gpt_jax.tokenizer import CharTokenizer

BOOK = (
    "The Wonderful Wizard of Oz\n\nby L. Frank Baum\n\n\nChapter I\nThe Cyclone\n\n\n"
    "Dorothy lived in the midst of the great Kansas prairies, with Uncle\nHenry, who was a "
    "farmer, and Aunt Em, who was the farmer’s wife.\n\n“It’s a cyclone, Em,” he called.\n\n"
    "And oh, Aunt Em! I’m so glad to be at home again!”"
)
PAGE = (
    (
        "The Project Gutenberg eBook of The Wonderful Wizard of Oz\n    \n"
        "This eBook is for the use of anyone anywhere in the United States and\n"
        "most other parts of the world at no cost. *** Read on. ***\n\n"
        "Title: The Wonderful Wizard of Oz\n\nRelease date: February 1, 1993 [eBook #55]\n\n"
        "*** START OF THE PROJECT GUTENBERG EBOOK THE WONDERFUL WIZARD OF OZ ***\n\n\n\n\n"
        f"{BOOK}\n\n\n\n\n"
        "*** END OF THE PROJECT GUTENBERG EBOOK THE WONDERFUL WIZARD OF OZ ***\n\n\n    \n"
        "Updated editions will replace the previous one.\n\nSTART: FULL LICENSE\n"
    )
    .replace("\n", "\r\n")
    .encode("utf-8-sig")
)
ORIGINAL_FORM = "\ufeff" + BOOK


class Gutenberg:
    """A server that answers each request with the next of its answers, the last one for ever.

    An answer is a status, a body and maybe headers, or a body, or one of the words below.
    """

    def __init__(self, *answers):
        self.paths: list[str] = []
        self._leaving = threading.Event()
        answers_left = itertools.chain(answers, itertools.repeat(answers[-1]))
        gutenberg = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                gutenberg.paths.append(self.path)
                gutenberg._answer(self, next(answers_left))

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/cache/epub/55/pg55.txt"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def _answer(self, handler, answer):
        if answer == "hang":
            self._leaving.wait(60)
            return
        status, body, *more = answer if isinstance(answer, tuple) else (200, answer)
        truncated = body == "truncated"
        if truncated:
            body = PAGE[: len(PAGE) // 2]
        handler.send_response(status)
        handler.send_header("Content-Type", "text/plain; charset=utf-8")
        handler.send_header("Content-Length", str(len(PAGE) if truncated else len(body)))
        for name, value in more[0].items() if more else ():
            handler.send_header(name, value)
        handler.end_headers()
        with contextlib.suppress(OSError):  # the other side may have gone
            handler.wfile.write(body)

    def close(self):
        self._leaving.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """No text of the user's in reach, no proxy, and no waiting; yields the pauses asked for."""
    monkeypatch.setattr(text_corpus, "checkout_dir", lambda: tmp_path / "repository")
    monkeypatch.setenv("GPT_JAX_DATA", str(tmp_path / "texts"))
    monkeypatch.setenv("GPT_JAX_OZ_URL", "http://127.0.0.1:9/unset-by-the-test")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    pauses = []
    clock = types.SimpleNamespace(sleep=pauses.append, monotonic=time.monotonic)
    monkeypatch.setattr(download, "time", clock)
    return pauses


@pytest.fixture
def serve(monkeypatch):
    """Starts a server of the given answers where `oz` is downloaded from."""
    with contextlib.ExitStack() as stack:

        def start(*answers):
            server = Gutenberg(*answers)
            stack.callback(server.close)
            monkeypatch.setenv("GPT_JAX_OZ_URL", server.url)
            return server

        yield start


@pytest.fixture
def no_server(monkeypatch):
    """The address of a port where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/pg55.txt"
    monkeypatch.setenv("GPT_JAX_OZ_URL", url)
    return url


def cached(tmp_path) -> Path:
    return tmp_path / "texts" / "wizard_of_oz.txt"


def download_error(**kwargs) -> str:
    """Loads oz, which must fail with one line that says the ways out; returns the line."""
    with pytest.raises(DownloadError) as caught:
        load_corpus("oz", **kwargs)
    message = str(caught.value)
    assert message.startswith("corpus oz could not be downloaded (http://127.0.0.1:")
    assert "--data.corpus python-manual or --data.corpus PATH" in message
    assert f"put the book at {os.environ['GPT_JAX_DATA']}/wizard_of_oz.txt" in message
    assert "\n" not in message
    return message


# --- oz, downloaded -------------------------------------------------------------------------------


def test_the_page_is_brought_to_the_originals_form_and_kept(serve, tmp_path):
    server = serve(PAGE)
    corpus = load_corpus("oz")
    assert corpus.text == ORIGINAL_FORM
    assert corpus.name == "oz"
    assert corpus.source == f"{server.url}, now at {cached(tmp_path)}"
    assert cached(tmp_path).read_bytes() == ORIGINAL_FORM.encode("utf-8")
    assert [path.name for path in cached(tmp_path).parent.iterdir()] == ["wizard_of_oz.txt"]


def test_the_book_is_downloaded_once(serve, tmp_path):
    server = serve(PAGE)
    first, second = load_corpus("oz"), load_corpus("oz")
    assert server.paths == ["/cache/epub/55/pg55.txt"]
    assert (second.text, second.sha256) == (first.text, first.sha256)
    assert second.source == str(cached(tmp_path))


def test_a_differing_edition_is_reported(serve):
    serve(PAGE)
    (note,) = load_corpus("oz").notes
    assert note == (
        f"this edition of oz is not the original's: {len(ORIGINAL_FORM):,} characters of "
        f"{len(set(ORIGINAL_FORM))} kinds against 207,799 of 73, so the parameter count differs too"
    )


def test_an_edition_with_the_same_vocabulary_has_the_same_parameter_count(serve, monkeypatch):
    monkeypatch.setattr(text_corpus, "OZ_VOCABULARY", len(set(ORIGINAL_FORM)))
    serve(PAGE)
    (note,) = load_corpus("oz").notes
    assert note.startswith("this edition of oz is not the original's: ")
    assert "parameter count" not in note


def test_the_originals_edition_has_no_note(serve, monkeypatch):
    monkeypatch.setattr(text_corpus, "OZ_SHA256", TextCorpus("", "", ORIGINAL_FORM).sha256)
    serve(PAGE)
    assert load_corpus("oz").notes == ()


def test_the_record_names_what_was_read(serve):
    serve(PAGE)
    corpus = load_corpus("oz")
    assert corpus.record() == {
        "name": "oz",
        "requested": "oz",
        "source": corpus.source,
        "sha256": corpus.sha256,
        "characters": len(ORIGINAL_FORM),
        "vocabulary": len(set(ORIGINAL_FORM)),
    }


def test_progress_reaches_the_end(serve):
    serve(PAGE)
    seen = []
    load_corpus("oz", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(PAGE), len(PAGE))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_two_refusals_are_tried_again(serve, nowhere):
    server = serve((503, b"busy"), (503, b"busy"), PAGE)
    assert load_corpus("oz").text == ORIGINAL_FORM
    assert len(server.paths) == 3
    assert nowhere == [0.5, 1.0]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_refusal_that_lasts_is_given_up(serve, status, tmp_path):
    server = serve((status, b"busy"))
    assert f": {status} " in download_error()
    assert len(server.paths) == 3
    assert not cached(tmp_path).exists()


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_for_good_is_not_tried_again(serve, nowhere, status):
    server = serve((status, b"no"))
    assert f": {status} " in download_error()
    assert len(server.paths) == 1
    assert nowhere == []


def test_half_a_page_is_tried_again(serve):
    server = serve("truncated", PAGE)
    assert load_corpus("oz").text == ORIGINAL_FORM
    assert len(server.paths) == 2


def test_half_a_page_is_never_kept(serve, tmp_path):
    serve("truncated")
    download_error()
    assert not cached(tmp_path).exists()


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (b"<html>Please log in to the hotel's network</html>", "no START marker"),
        (PAGE[: PAGE.index(b"*** END")], "no END marker"),
        (PAGE[PAGE.index(b"Dorothy") :], "no START marker"),
        (b"*** START OF THE BOOK ***\r\n \r\n*** END OF THE BOOK ***\r\n", "nothing between"),
        (b"*** END OF THE BOOK ***\nx\n*** START OF THE BOOK ***\n", "no END marker"),
        (PAGE.replace("’".encode(), b"\x92"), "can't decode byte 0x92"),
        (b"", "no START marker of Project Gutenberg in 0 bytes"),
    ],
)
def test_a_page_that_is_not_the_book_is_refused(serve, tmp_path, page, reason):
    server = serve(page)
    assert reason in download_error()
    assert len(server.paths) == 1
    assert not cached(tmp_path).exists()


def test_a_server_that_hangs_is_left(serve, monkeypatch):
    monkeypatch.setattr(text_corpus, "TIMEOUT_SECONDS", (1, 0.2))
    monkeypatch.setattr(text_corpus, "TRIES", 2)
    server = serve("hang")
    assert "timed out" in download_error()
    assert len(server.paths) == 2


def test_no_server_is_said_in_one_line(no_server, nowhere):
    assert no_server in download_error()
    assert nowhere == [0.5, 1.0]


def test_an_address_that_is_none_is_said_in_one_line(monkeypatch):
    monkeypatch.setenv("GPT_JAX_OZ_URL", "not-an-address")
    with pytest.raises(DownloadError, match=r"^corpus oz could not be downloaded \(not-an-address"):
        load_corpus("oz")


def test_a_download_beyond_any_book_is_stopped(serve, monkeypatch):
    monkeypatch.setattr(text_corpus, "MAX_DOWNLOAD_BYTES", 100)
    serve(PAGE)
    assert "more than 100 bytes, so not the book" in download_error()


def test_a_download_that_trickles_is_stopped(serve, monkeypatch):
    minutes = itertools.count(0, 100)
    clock = types.SimpleNamespace(sleep=None, monotonic=lambda: next(minutes))
    monkeypatch.setattr(download, "time", clock)
    serve(PAGE)
    assert "bytes in 60 s" in download_error()


def test_a_server_that_sends_a_byte_now_and_then_is_left(monkeypatch):
    """In the body or in the headers: no wait is longer than the total time and a second."""
    monkeypatch.setattr(text_corpus, "TOTAL_SECONDS", 0.1)
    for begin in (b"HTTP/1.0 200 OK\r\nContent-Length: 9999\r\n\r\n", b"HTTP/1.0 200 OK\r\nA: "):
        with trickle(begin) as url:
            monkeypatch.setenv("GPT_JAX_OZ_URL", url)
            start = time.monotonic()
            assert "bytes in 0.1 s" in download_error()
            assert time.monotonic() - start < 10


@contextlib.contextmanager
def trickle(begin: bytes):
    """A server that answers with `begin`, then a byte every 50 ms."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(begin)
                    while True:
                        time.sleep(0.05)
                        connection.sendall(b"x")

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"


def test_an_attempt_that_is_too_slow_is_tried_again(monkeypatch):
    limits = download.DownloadLimits(1, 0, (5, 5), 1, least_rate=(1000, 0.2))
    with (
        trickle(b"HTTP/1.0 200 OK\r\n\r\n") as url,
        pytest.raises(download.FailedDownload, match="timed out"),
    ):
        download.fetch(url, limits)


def test_a_packed_answer_is_not_unpacked(serve, tmp_path):
    server = serve((200, gzip.compress(PAGE), {"Content-Encoding": "gzip"}))
    assert "the server packs its answer (gzip)" in download_error()
    assert len(server.paths) == 1
    limits = download.DownloadLimits(1, 0, (5, 5), 1 << 10, max_bytes=10_000)
    packed = gzip.compress(bytes(1 << 20))
    server = serve((200, packed, {"Content-Encoding": "gzip"}))
    download.download(server.url, tmp_path / "file", limits)
    assert (tmp_path / "file").read_bytes() == packed


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "http://", "not-an-address", "http://[::1"])
def test_an_address_that_can_never_answer_is_tried_once(monkeypatch, nowhere, url):
    monkeypatch.setenv("GPT_JAX_OZ_URL", url)
    with pytest.raises(DownloadError, match="could not be downloaded"):
        load_corpus("oz")
    assert nowhere == []


def test_a_failed_download_ends_within_its_total_time(serve, monkeypatch, nowhere):
    monkeypatch.setattr(text_corpus, "TOTAL_SECONDS", 0.25)
    server = serve((503, b"busy"))
    download_error()
    assert len(server.paths) == 1
    assert nowhere == []


# --- shakespeare ----------------------------------------------------------------------------------

PLAY = "First Citizen:\nBefore we proceed any further, hear me speak.\n"


@pytest.fixture
def serve_play(serve, monkeypatch):
    """Starts a server of the given answers where `shakespeare` is downloaded from."""
    monkeypatch.setattr(text_corpus, "SHAKESPEARE_SHA256", TextCorpus("", "", PLAY).sha256)

    def start(*answers):
        server = serve(*answers)
        monkeypatch.setenv("GPT_JAX_SHAKESPEARE_URL", server.url)
        return server

    return start


def test_shakespeare_is_downloaded_once_and_taken_as_it_is(serve_play, tmp_path):
    server = serve_play(PLAY.encode())
    first, second = load_corpus("shakespeare"), load_corpus("shakespeare")
    path = tmp_path / "texts" / "tinyshakespeare.txt"
    assert first.text == second.text == PLAY == path.read_text("utf-8")
    assert (first.name, first.notes, second.notes) == ("shakespeare", (), ())
    assert (first.source, second.source) == (f"{server.url}, now at {path}", str(path))
    assert len(server.paths) == 1


@pytest.mark.parametrize("served", [b"<html>not here</html>", PLAY[:-1].encode(), b"\xff\xfe"])
def test_what_is_not_shakespeare_is_refused_and_never_kept(serve_play, tmp_path, served):
    server = serve_play(served)
    with pytest.raises(DownloadError) as caught:
        load_corpus("shakespeare")
    path = tmp_path / "texts" / "tinyshakespeare.txt"
    message = str(caught.value)
    assert message.startswith(f"corpus shakespeare could not be downloaded ({server.url}: ")
    assert f"{len(served)} bytes with sha256 " in message
    assert message.endswith(
        f"put the text at {path}, or train on another text with --data.corpus python-manual or "
        "--data.corpus PATH"
    )
    assert not path.exists()


def test_a_users_own_shakespeare_has_a_note(serve_play, tmp_path):
    server = serve_play(PLAY.encode())
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "tinyshakespeare.txt").write_text("To be")
    corpus = load_corpus("shakespeare")
    assert corpus.text == "To be"
    assert corpus.notes == (
        "this shakespeare is not nanoGPT's: 5 characters against 1,115,394, or others",
    )
    assert server.paths == []


def test_a_fallback_serves_for_shakespeare_too(no_server, monkeypatch):
    monkeypatch.setenv("GPT_JAX_SHAKESPEARE_URL", no_server)
    corpus = load_corpus("shakespeare", fallback="python-manual")
    assert (corpus.name, corpus.requested) == ("python-manual", "shakespeare")
    assert corpus.notes[0].startswith("corpus shakespeare could not be downloaded (")


@pytest.mark.skipif(
    not (Path(os.environ.get("GPT_JAX_DATA") or "absent") / "tinyshakespeare.txt").is_file(),
    reason="GPT_JAX_DATA names no folder with nanoGPT's tinyshakespeare.txt",
)
def test_nanogpts_shakespeare(monkeypatch):
    monkeypatch.setenv("GPT_JAX_DATA", REAL_DATA)
    corpus = load_corpus("shakespeare")
    assert corpus.notes == ()
    assert (len(corpus.text), len(set(corpus.text))) == (text_corpus.SHAKESPEARE_CHARACTERS, 65)
    assert int(0.9 * len(corpus.text)) == 1_003_854  # nanoGPT's training tokens


# --- in its place ---------------------------------------------------------------------------------


def test_a_fallback_serves_and_every_record_says_so(no_server):
    corpus = load_corpus("oz", fallback="python-manual")
    assert corpus.text == load_corpus("python-manual").text
    assert corpus.name == "python-manual"
    (note,) = corpus.notes
    assert note.startswith(f"corpus oz could not be downloaded ({no_server}: ")
    assert note.endswith("); using python-manual instead")
    assert "\n" not in note
    assert corpus.record()["name"] == "python-manual"
    assert corpus.record()["requested"] == "oz"


def test_a_fallback_may_be_a_file(no_server, tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("some text")
    corpus = load_corpus("oz", fallback=str(book))
    assert (corpus.name, corpus.text, corpus.requested) == (str(book), "some text", "oz")


def test_a_run_on_its_fallback_is_told_when_the_other_can_be_had(serve, no_server, monkeypatch):
    record = load_corpus("oz", fallback="python-manual").record()
    assert note_on_fallback("oz", record) == ()  # still nobody there
    assert note_on_fallback("python-manual", record) == ()
    server = serve(PAGE)
    (note,) = note_on_fallback("oz", record)
    assert note.startswith(f"corpus oz can be had now ({server.url}, now at ")
    assert "began on python-manual instead and stays on it" in note
    assert note.endswith("with another --run-dir")
    assert note_on_fallback("oz", load_corpus("oz").record()) == ()
    assert len(server.paths) == 1


def test_without_a_fallback_there_is_none(no_server):
    assert no_server in download_error(fallback=None)


def test_a_fallback_is_not_used_where_the_book_is_had(serve):
    serve(PAGE)
    corpus = load_corpus("oz", fallback="python-manual")
    assert (corpus.name, corpus.text) == ("oz", ORIGINAL_FORM)


def test_a_fallback_does_not_hide_a_users_mistake(tmp_path):
    with pytest.raises(CorpusError, match="neither a file nor a name"):
        load_corpus(str(tmp_path / "absent.txt"), fallback="python-manual")
    cached(tmp_path).parent.mkdir()
    cached(tmp_path).write_bytes(b"\xff\xf0")
    with pytest.raises(CorpusError, match="is not UTF-8"):
        load_corpus("oz", fallback="python-manual")


# --- the user's own copy --------------------------------------------------------------------------


def test_the_users_own_copy_wins_and_is_taken_as_it_is(serve, tmp_path):
    server = serve(PAGE)
    cached(tmp_path).parent.mkdir()
    own = "\n  *** START OF THE BOOK ***\r\nmine, with its \r\n\r\n line ends  \n"
    cached(tmp_path).write_bytes(own.encode())
    corpus = load_corpus("oz")
    assert corpus.text == own
    assert corpus.source == str(cached(tmp_path))
    assert server.paths == []
    assert corpus.notes[0].startswith("this edition of oz is not the original's")


def test_a_copy_in_the_repositorys_data_folder_wins_too(serve, tmp_path):
    server = serve(PAGE)
    copy = tmp_path / "repository" / "data" / "wizard_of_oz.txt"
    copy.parent.mkdir(parents=True)
    copy.write_text("from the repository")
    assert load_corpus("oz").text == "from the repository"
    cached(tmp_path).parent.mkdir()
    cached(tmp_path).write_text("from GPT_JAX_DATA")
    assert load_corpus("oz").text == "from GPT_JAX_DATA"
    assert server.paths == []


def test_a_folder_that_cannot_be_written_only_costs_the_cache(serve, tmp_path, monkeypatch):
    server = serve(PAGE)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("GPT_JAX_DATA", str(tmp_path / "file" / "texts"))
    for _ in range(2):
        corpus = load_corpus("oz")
        assert corpus.text == ORIGINAL_FORM
        assert corpus.source == server.url
        assert corpus.notes[-1] == (
            f"{tmp_path}/file/texts/wizard_of_oz.txt could not be written (Not a directory): the "
            "book is downloaded every time"
        )
    assert len(server.paths) == 2


def test_where_texts_are_kept(tmp_path, monkeypatch):
    assert text_corpus.data_dir() == tmp_path / "texts"
    monkeypatch.setenv("GPT_JAX_DATA", "")
    assert text_corpus.data_dir() == tmp_path / "repository" / "data"
    monkeypatch.setattr(text_corpus, "checkout_dir", lambda: None)  # an installed package
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert text_corpus.data_dir() == tmp_path / "cache" / "gpt_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert text_corpus.data_dir() == tmp_path / "home" / ".cache" / "gpt_jax"


# --- the form -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page",
    [
        PAGE,
        PAGE.replace(b"\r\n", b"\n"),
        PAGE.replace(b"\r\n", b"\r"),
        PAGE.removeprefix(b"\xef\xbb\xbf"),
        b"\xef\xbb\xbf" + PAGE[PAGE.index(b"*** START") :],
        PAGE.replace(b"*** START OF THE", b"***START OF THIS").replace(b"*** END", b"***END"),
        PAGE.replace(b" OZ ***\r\n", b" OZ *** \r\n"),
    ],
)
def test_every_edition_of_the_page_has_one_form(page):
    assert original_form(page) == ORIGINAL_FORM


def test_spaces_inside_the_book_stay():
    page = (
        b"*** START OF THE BOOK ***\n \n  a\n\n\n  b  \n*** starry ***\nc \n\n*** END OF THE BOOK"
    )
    assert original_form(page + b" ***\n") == "\ufeffa\n\n\n  b  \n*** starry ***\nc"


@pytest.mark.skipif(
    not (Path(os.environ.get("GPT_JAX_DATA") or "absent") / "wizard_of_oz.txt").is_file(),
    reason="GPT_JAX_DATA names no folder with the original's wizard_of_oz.txt",
)
def test_the_originals_book(monkeypatch):
    monkeypatch.setenv("GPT_JAX_DATA", REAL_DATA)
    corpus = load_corpus("oz")
    if corpus.sha256 != text_corpus.OZ_SHA256:
        assert "this edition of oz is not the original's" in corpus.notes[0]
        return
    assert corpus.notes == ()
    assert len(corpus.text) == 207_799
    assert len(set(corpus.text)) == 73
    assert corpus.text.startswith("\ufeff")
    assert original_form(PAGE.replace(BOOK_BYTES, _crlf(corpus.text[1:]))) == corpus.text
    from gpt_jax.input_pipeline.dataset import datasets_of_arrays, split_text

    tokenizer = CharTokenizer.train(corpus.text)
    texts = split_text(corpus.text, 0.8)
    tokens = {name: tokenizer.encode(text) for name, text in texts.items()}
    splits = datasets_of_arrays(tokens, tokenizer.token_bytes, 64)
    assert [splits[name].n_tokens for name in ("train", "val")] == [166_239, 41_560]


REAL_DATA = os.environ.get("GPT_JAX_DATA", "")  # before a test changes it


def _crlf(text: str) -> bytes:
    return text.replace("\n", "\r\n").encode("utf-8")


BOOK_BYTES = _crlf(BOOK)


# --- files ----------------------------------------------------------------------------------------


def test_a_file_is_taken_as_it_is(tmp_path, monkeypatch):
    path = tmp_path / "book.txt"
    text = "\ufeff line ends\r\nstay\r as they are\n\n 😀 \t"
    path.write_bytes(text.encode("utf-8"))
    monkeypatch.chdir(tmp_path)
    for name in (str(path), "book.txt"):
        corpus = load_corpus(name)
        assert corpus.text == text
        assert corpus.name == str(path)  # absolute, so that a run finds it from anywhere
        assert corpus.source == name
        assert corpus.notes == ()
        assert corpus.record()["requested"] == str(path)


def test_a_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "book.txt").write_text("at home")
    assert load_corpus("~/book.txt").text == "at home"


@pytest.mark.parametrize("name", ["absent.txt", "wizard", "~no_such_user_here/book.txt", "a\0b"])
def test_a_missing_file_is_named_with_the_names_there_are(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CorpusError) as caught:
        load_corpus(name)
    assert str(caught.value) == (
        f"corpus {name!r} is neither a file nor a name; the names are oz, shakespeare and "
        "python-manual"
    )


def test_a_data_folder_of_nobody_is_just_a_name(monkeypatch, tmp_path, serve):
    serve(PAGE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPT_JAX_DATA", "~no_such_user_here/texts")
    assert load_corpus("oz").text == ORIGINAL_FORM


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "corpus {} is a folder; give the path of a text file"),
        (b"", "corpus {} is empty; give a text file"),
        (b"GIF89a\0\1\2", "corpus {} looks binary (a zero byte at 6); give a text"),
        ("Zauberer: schön".encode("latin-1"), "corpus {} is not UTF-8 (byte 0xf6 at 13); convert "),
        ("Zauberer".encode("utf-16"), "corpus {} looks like UTF-16, not UTF-8; convert it, for "),
        ("Zauberer".encode("utf-16-be"), "corpus {} looks binary (a zero byte at 0); give a text"),
    ],
)
def test_a_file_that_is_no_text_is_named_with_what_it_is(tmp_path, content, message):
    path = tmp_path / "corpus"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(CorpusError) as caught:
        load_corpus(str(path))
    assert str(caught.value).startswith(message.format(path))
    assert isinstance(caught.value, UserError)
    assert not isinstance(caught.value, DownloadError)


LINES = b'{"text": "one"}\n{"text": "two"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            LINES,
            "is JSON lines, not a text; make a corpus of it: python main.py prepare",
        ),
        ("a.txt", LINES, "--source jsonl --input"),
        ("a.txt", b"\xef\xbb\xbf" + LINES, "--source jsonl --input"),
        (
            "a",
            b'{"id": 1, "text": "x' + 70_000 * b"y" + b'"}\n',
            "is JSON, not a text; make a corpus",
        ),
        ("a.txt", b'[\n {"a": 1},\n {"a": 2}]', "is JSON, not a text"),
        ("a.txt", b'["one", "two"]', "is JSON, not a text"),
        ("a b.json", b"{}", "--source jsonl --input '"),
        (
            "A.CSV",
            b"id,text\n1,one\n",
            "is a table (CSV), not a text; make JSON lines of it: python",
        ),
        ("a.tsv", b"id\ttext\n1\tone\n", "is a table (CSV), not a text"),
        (
            "a.parquet",
            b"PAR1...",
            "is Parquet, not a text; make a corpus of it: python main.py prep",
        ),
        ("a.txt", b"PAR1\x15...", "--source parquet --input"),
        ("a.txt.gz", gzip.compress(b"text"), "is packed with gzip; unpack it first: gunzip -k /"),
        ("a", gzip.compress(b"text"), "is packed with gzip"),
        ("a.jsonl.gz", gzip.compress(LINES), "is JSON lines packed with gzip, not a text; make a"),
        ("a.txt.bz2", bz2.compress(b"text"), "unpack it first: bunzip2 -k /"),
        ("a.xz", lzma.compress(b"text"), "unpack it first: unxz -k /"),
        ("a.zst", b"\x28\xb5\x2f\xfd....", "unpack it first: unzstd /"),
        ("a.warc.wet", b"WARC/1.0\r\n", "--source wet --input"),
        ("a.docx", b"PK\3\4....", "is a ZIP archive (.zip, .docx, .epub, .npz), not a text"),
        ("a.pdf", b"%PDF-1.7", "is a PDF, not a text"),
        ("a.tar", b"x" * 257 + b"ustar" + bytes(300), "is a tar archive"),
    ],
)
def test_a_file_that_is_no_prose_is_refused_with_what_reads_it(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError) as caught:
        load_corpus(str(tmp_path / name))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "{ he said } and so on",
        '{"quoted": and so on',
        '{"a": 1}\nThen prose.',
        "[[File:wizard.jpg]]\nThe wizard.",
        "[1] A note, and another",
        "BZh is a tool.",
        "PARENTS and",
        "id, text and other words\n",
        "{\n",
    ],
)
def test_prose_that_begins_like_something_else_is_prose(tmp_path, text):
    for content in (text, text + "x" * 70_000):
        (tmp_path / "a.txt").write_text(content)
        assert load_corpus(str(tmp_path / "a.txt")).text == content


def test_what_has_no_end_or_no_file_is_not_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(CorpusError, match="is a device or a pipe, not a file; write its text"):
            load_corpus(str(path))
    (tmp_path / "hole.txt").touch()
    os.truncate(tmp_path / "hole.txt", 1 << 40)
    with pytest.raises(CorpusError, match=r"looks binary .a zero byte at 0."):
        load_corpus(str(tmp_path / "hole.txt"))
    monkeypatch.setattr(text_files, "available_memory", lambda: 29)
    (tmp_path / "a.txt").write_text("ten bytes.")
    with pytest.raises(CorpusError, match=r"too many for this .* main.py prepare --input .*a.txt"):
        load_corpus(str(tmp_path / "a.txt"))
    monkeypatch.setattr(text_files, "available_memory", lambda: 30)
    assert load_corpus(str(tmp_path / "a.txt")).text == "ten bytes."


@pytest.mark.parametrize(
    ("names", "command"),
    [
        (["b.md", "a.txt", "c.txt"], "--input '{}/*.txt' --out FOLDER"),
        (["a.parquet", "README"], "--source parquet --input '{}/*.parquet'"),
        (["a.jsonl.gz", "b.jsonl.gz", "c.txt"], "--source jsonl --input '{}/*.jsonl.gz'"),
        ([], "--input '{}/*.txt'"),
    ],
)
def test_a_folder_is_refused_with_what_prepares_its_files(tmp_path, names, command):
    for name in names:
        (tmp_path / name).write_text("x")
    with pytest.raises(CorpusError) as caught:
        load_corpus(str(tmp_path))
    assert f"python main.py prepare {command.format(tmp_path)}" in str(caught.value)


def test_a_path_that_is_not_utf8_is_refused_before_it_is_read(tmp_path, monkeypatch):
    name = os.fsdecode(b"b\xffk.txt")
    (tmp_path / name).write_text("text")
    with pytest.raises(CorpusError, match=r"b\\udcffk.txt'?: its path is not UTF-8"):
        load_corpus(str(tmp_path / name))
    (tmp_path / os.fsdecode(b"\xff")).mkdir()
    monkeypatch.chdir(tmp_path / os.fsdecode(b"\xff"))
    with pytest.raises(CorpusError, match="its path is not UTF-8"):
        load_corpus("book.txt")


def test_the_way_out_of_another_encoding_is_a_command(tmp_path):
    (tmp_path / "book.txt").write_bytes(b"\xe9")
    with pytest.raises(CorpusError, match=r"with: iconv -f latin1 -t utf-8$"):
        load_corpus(str(tmp_path / "book.txt"))


def test_a_file_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CorpusError, match="can't be read: Not a directory"):
        load_corpus(str(tmp_path / "file" / "book.txt"))


# --- python-manual --------------------------------------------------------------------------------


def test_the_python_manual_is_always_there_and_always_the_same():
    first, second = load_corpus("python-manual"), load_corpus("python-manual")
    assert first == second
    assert len(first.text) > 100_000
    assert 'The "if" statement' in first.text
    assert first.notes == ()
    version = ".".join(map(str, sys.version_info[:3]))
    assert first.record()["name"] == first.record()["requested"] == "python-manual"
    assert first.source == f"pydoc_data.topics of Python {version}"


# --- prepared folders -----------------------------------------------------------------------------


def prepared(folder, tokenizer):
    folder.mkdir()
    writer = ShardWriter(folder, tokenizer, 100)
    for split in ("train", "val"):
        writer.append(split, np.arange(20) % tokenizer.vocab_size)
    writer.finish("char", {"train": 1, "val": 1})
    return folder


def test_a_mixture_is_paths_that_end_at_their_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here:1,there:2").touch()

    def entries(name):
        return [(str(path), weight) for path, weight in parse_mixture(name)]

    assert entries("a:0.7,b:.3") == [(str(tmp_path / "a"), "0.7"), (str(tmp_path / "b"), ".3")]
    assert entries("/x,y:z:1, /w:2.") == [("/x,y:z", "1"), ("/w", "2.")]
    for name in ("oz", "a,b", "a:0.7,b", "a:0.7b", ":1", "here:1,there:2"):
        assert entries(name) == [], name


def test_prepared_folders_are_corpora_of_their_own_tokens(tmp_path):
    tokenizer = CharTokenizer("abc")
    a, b = (prepared(tmp_path / name, tokenizer) for name in "ab")
    one = load_corpus(str(a))
    assert (one.name, one.size) == (str(a), "40 tokens")
    assert one.tokenizer.to_json() == tokenizer.to_json()
    assert one.record()["sha256"] == one.sha256 == open_shards(a).record["sha256"]
    mixture = load_corpus(f"{a}:1,{b}:3")
    assert [float(weight) for weight, _ in mixture.components] == [0.25, 0.75]
    assert mixture.record()["sha256"] == mixture.sha256 == load_corpus(f"{a}:2,{b}:6").sha256
    assert mixture.sha256 not in (one.sha256, load_corpus(f"{a}:1,{b}:2").sha256)


def test_a_mixture_of_one_folder_is_that_folder(tmp_path):
    """Its record too, but for the name: a run on one resumes on the other."""
    folder = prepared(tmp_path / "a", CharTokenizer("abc"))
    one, mixture = load_corpus(str(folder)), load_corpus(f"{folder}:3")
    assert mixture.record() == {**one.record(), "name": f"{folder}:3", "requested": f"{folder}:3"}
    config = Config(model=ModelConfig(block_size=4))
    datasets = [corpus.make_datasets(one.tokenizer, config) for corpus in (one, mixture)]
    for split in ("train", "val"):
        (a,), (b,) = (dataset[split].components for dataset in datasets)
        assert a.weight == b.weight == 1
        assert a.n_bytes == b.n_bytes
        np.testing.assert_array_equal(a.shards, b.shards)


@pytest.mark.parametrize("name", ["one,two", "one, two", "one:0.7,two", "one,two:.3"])
def test_a_list_without_weights_says_how_to_give_them(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for folder in ("one", "two"):
        prepared(tmp_path / folder, CharTokenizer("ab"))
    with pytest.raises(CorpusError, match=r"share of each; for equal ones: one:0.5,two:0.5$"):
        load_corpus(name)


def test_corpora_of_different_tokenizers_are_not_mixed(tmp_path):
    a, b = prepared(tmp_path / "a", CharTokenizer("abc")), tmp_path / "b"
    for vocabulary, difference in (("abcd", "3 tokens and 4"), ("abd", "token 2 is 'c' and 'd'")):
        prepared(b, CharTokenizer(vocabulary))
        with pytest.raises(CorpusError, match=f"different tokenizers: {difference}; prepare both"):
            load_corpus(f"{a}:1,{b}:1")
        shutil.rmtree(b)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a:1,text.txt:1", "text.txt of a mixture is not a prepared folder; make one"),
        ("a:1,a:0", "/a has the weight 0; give it more, or leave it out"),
        ("a:1,absent:1", "absent of a mixture is not a prepared folder"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(tmp_path, monkeypatch, name, message):
    prepared(tmp_path / "a", CharTokenizer("abc"))
    (tmp_path / "text.txt").write_text("abc")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CorpusError, match=message):
        load_corpus(name)


def test_damage_and_a_foreign_vocabulary_are_one_line(tmp_path):
    a = prepared(tmp_path / "a", CharTokenizer("abc"))
    (a / "tokenizer.json").write_text(CharTokenizer("abd").to_json())
    with pytest.raises(UserError, match=r"tokenizer.json is not the tokenizer that .* was made"):
        load_corpus(str(a))
    b = prepared(tmp_path / "b", CharTokenizer("abc"))
    np.full(20, 3, "<u2").tofile(b / "train-00000.bin")
    with pytest.raises(UserError, match=r"train-00000.bin has id 3, .* vocabulary is 3"):
        load_corpus(str(b))
