"""Every test runs with a config and a state folder of its own; the weights cache is the user's, filled by `zoo fetch`."""

import json
import os
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings
from warm_interpreter import WarmInterpreter

REPOSITORY = Path(__file__).parents[1]
DISTS = Path(__file__).with_name("dists")
PHOTOS = REPOSITORY / "zoo" / "cli" / "demo" / "photos"

# Examples of hypothesis: few, the same ones each time, and none that is too slow for a busy machine. ZOO_SLOW_TESTS=1: many, and
# other ones each time. A test that needs more asks for a multiple of `settings.default.max_examples`.
settings.register_profile("push", max_examples=20, derandomize=True, deadline=None, database=None)
settings.register_profile("whole", max_examples=200, deadline=None)
settings.load_profile("whole" if os.environ.get("ZOO_SLOW_TESTS") == "1" else "push")


# The files that take longest, longest first. A file is one worker's (its fixtures open models), so what begins late ends alone.
LONGEST = (
    "test_tutorial.py",
    "test_plugins.py",
    "test_composition.py",
    "test_conformance.py",
    "test_scaffold.py",
    "test_docs.py",
    "test_classify.py",
    "test_generate.py",
    "test_transcribe.py",
    "test_weights.py",
    "test_kit.py",
    "test_embed.py",
    "test_search.py",
    "test_faults.py",
    "test_filter.py",
    "test_parity.py",
    "test_model.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that with several workers none ends alone with one."""
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("ZOO_STATE", str(tmp_path / ".state"))
    for name in ("ZOO_DISABLE", "ZOO_PLUGINS", "ZOO_STRICT", "ZOO_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _threads_stay() -> Iterator[None]:
    """No test leaves torch another number of threads: with two workers on two cores, two threads each made all later tests 5 times slower."""
    import torch

    threads = torch.get_num_threads()
    yield
    left = torch.get_num_threads()
    torch.set_num_threads(threads)
    assert left == threads, f"the test leaves torch with {left} threads, expected {threads}"


@pytest.fixture(scope="session")
def warm() -> Iterator[WarmInterpreter]:
    interpreter = WarmInterpreter(sys.executable)
    yield interpreter
    interpreter.close()


@pytest.fixture
def zoo(warm: WarmInterpreter) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command `zoo` in a process of its own; with this interpreter, in one that has imported torch already."""

    def run(
        *arguments: str, python: str = sys.executable, stdin: bytes = b"", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        words, whole = ["-m", "zoo", *arguments], {**os.environ, **environment}
        if python == sys.executable and warm.reads_alike(whole):
            return warm.run(words, environment=whole, stdin=stdin)
        run = subprocess.run([python, *words], input=stdin, capture_output=True, check=False, timeout=300, env=whole)
        return subprocess.CompletedProcess(run.args, run.returncode, run.stdout.decode(), run.stderr.decode())

    return run


@pytest.fixture
def main(capsys: pytest.CaptureFixture[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command `zoo` in this process, which has imported everything already."""
    from zoo.cli import main as command

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        import torch

        threads = torch.get_num_threads()
        try:
            code = command(arguments)
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        finally:
            torch.set_num_threads(threads)  # --threads is for a process, and this one has other tests
        output = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, output.out, output.err)

    return run


@pytest.fixture
def photos() -> Path:
    return PHOTOS


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that `make` has filled, once in a run of the tests, whichever worker asks first. Nobody changes it after that."""
    base = factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once"
    shared.mkdir(exist_ok=True)
    folder, done = shared / name, shared / f"{name}.done"
    with FileLock(shared / f"{name}.lock"):
        if not done.exists():
            folder.mkdir()  # fails if it failed before: the first failure is the one to read
            make(folder)
            done.touch()
    return folder


def make_environment(folder: Path, dists: list[Path]) -> Path:
    """A virtual environment that sees this one's packages (pip and setuptools too), and has `dists`; returns its python.

    What pip would put there is written by hand, which takes milliseconds and not seconds: test_plugins.py holds it to pip's own.
    """
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    site = site_of(folder)
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "outer.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    for dist in dists:
        install(dist, site)
    return python


def site_of(environment: Path) -> Path:
    return next((environment / "lib").glob("python*/site-packages"))


def install(dist: Path, site: Path) -> None:
    """A folder with a pyproject.toml as `pip install` leaves it: files, metadata, entry points, and the record of them all."""
    document = tomllib.loads((dist / "pyproject.toml").read_text(encoding="utf-8"))
    project, setuptools = document["project"], document["tool"]["setuptools"]
    data = setuptools.get("package-data", {})
    files = [dist / f"{name}.py" for name in setuptools.get("py-modules", ())]
    for package in setuptools.get("packages", ()):
        files += [file for pattern in ("*.py", *data.get(package, ())) for file in sorted((dist / package).glob(pattern))]
    texts = {file.relative_to(dist).as_posix(): file.read_bytes() for file in files}
    info = f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    points = [
        f"[{group}]\n" + "".join(f"{name} = {at}\n" for name, at in rows.items())
        for group, rows in project["entry-points"].items()
    ]
    extras = [
        line
        for extra, needs in project.get("optional-dependencies", {}).items()
        for line in (f"Provides-Extra: {extra}", *(f'Requires-Dist: {one}; extra == "{extra}"' for one in needs))
    ]
    metadata = [
        "Metadata-Version: 2.4",
        f"Name: {project['name']}",
        f"Version: {project['version']}",
        f"Requires-Python: {project['requires-python']}",
        *(f"Requires-Dist: {one}" for one in project.get("dependencies", ())),
        *extras,
    ]
    written = {"METADATA": "\n".join(metadata) + "\n", "entry_points.txt": "\n".join(points), "INSTALLER": "pip\n",
               "direct_url.json": json.dumps({"dir_info": {}, "url": dist.as_uri()})}  # fmt: skip
    texts |= {f"{info}/{name}": text.encode() for name, text in written.items()}
    for name, content in texts.items():
        (site / name).parent.mkdir(exist_ok=True)
        (site / name).write_bytes(content)
    (site / info / "RECORD").write_text("".join(f"{name},,\n" for name in (*texts, f"{info}/RECORD")))
