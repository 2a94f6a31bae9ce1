"""The shared object of native/: built at first use into the zoo's cache, where it is found by what it was built from.

By hand: python -m zoo_fused.compile

It is plain C++ with a C interface, bound neither to Python nor to torch. Each instruction set is a file of its own, compiled with
its own flags; which of them runs is chosen by what the processor has.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NATIVE = Path(__file__).with_name("native")
COMMON = (
    "-std=c++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-pthread",
)
QUIET = ("-w",)
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "vl", "dq", "vnni")), "-mprefer-vector-width=512")
AMX = "amx"
X86 = {"avx2": AVX2, "avx512vnni": AVX512, AMX: (*AVX512, "-mamx-tile", "-mamx-int8")}


class BuildError(RuntimeError):
    """The shared object could not be built; the message says why."""


def units() -> dict[str, tuple[str, ...]]:
    """File of native/ without its suffix -> the flags that only it has."""
    found: dict[str, tuple[str, ...]] = {"library": ("-O2",), "threads": ("-O2",), "portable": ("-O3",)}
    if platform.machine() in ("x86_64", "AMD64"):
        found |= {name: ("-O3", *flags) for name, flags in X86.items()}
    return found


def more_flags() -> list[str]:
    """Those of ZOO_FUSED_FLAGS, for example a sanitiser's."""
    return shlex.split(os.environ.get("ZOO_FUSED_FLAGS", ""))


def sources_key() -> str:
    """sha256 over the sources and the flags: what a shared object was built from, which it tells by `zoo_fused_key`."""
    digest = hashlib.sha256(repr((COMMON, units(), more_flags())).encode())
    for path in sorted(NATIVE.iterdir()):
        if path.suffix in (".h", ".cpp"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def compiler() -> list[str]:
    """The command of the C++ compiler: CXX where it is set. Raises BuildError when there is none."""
    given = shlex.split(os.environ.get("CXX", ""))
    for command in [given] if given else (["g++"], ["clang++"], ["c++"]):
        path = shutil.which(command[0])
        if path is not None:
            return [path, *command[1:]]
    raise BuildError(
        f"there is no C++ compiler ({' '.join(given) if given else 'g++, clang++, c++'}): install one, or name it by CXX"
    )


def cached_path(command: list[str]) -> Path:
    """Where the zoo's cache keeps what this compiler builds."""
    version = _run([*command, "--version"]).splitlines()[0]
    key = hashlib.sha256(f"{sources_key()} {command} {version} {platform.machine()}".encode()).hexdigest()
    return cache_folder() / f"{key}.so"


def cache_folder() -> Path:
    """The folder of ours in the zoo's cache (ZOO_CACHE, or the user's cache folder)."""
    given = os.environ.get("ZOO_CACHE")
    if given:
        return Path(given).expanduser() / "fused"
    import platformdirs

    return platformdirs.user_cache_path("modalzoo") / "fused"


def build(to: Path) -> Path:
    """Compile and link native/ as the file `to`, which is whole or not there.

    Raises BuildError: no compiler, one that fails, or a folder that cannot be written to.
    """
    command = compiler()
    flags = [*command, *COMMON, *QUIET, f'-DZOO_FUSED_KEY="{sources_key()}"']
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=to.parent, prefix=".build-") as folder,
            ThreadPoolExecutor(os.cpu_count()) as pool,
        ):
            names = [name for name, own in units().items() if name != AMX or _compiles([*command, *own])]
            define = f"-DZOO_FUSED_AMX={int(AMX in names)}"

            def compiled(name: str) -> str:
                made = f"{folder}/{name}.o"
                _run([*flags, define, *units()[name], *more_flags(), "-c", str(NATIVE / f"{name}.cpp"), "-o", made])
                return made

            linked = Path(folder, "linked.so")
            _run([*command, "-shared", "-pthread", *more_flags(), *pool.map(compiled, names), "-o", str(linked)])
            linked.replace(to)
    except OSError as error:
        raise BuildError(f"{to} cannot be written ({error}): set ZOO_CACHE to a folder that you may write to") from error
    return to


def _compiles(command: list[str]) -> bool:
    """Whether the compiler knows these flags: those before GCC 11 and clang 11 know no AMX."""
    empty = subprocess.run([*command, "-fsyntax-only", "-x", "c++", os.devnull], capture_output=True, check=False)  # noqa: S603 - the user's own compiler
    return empty.returncode == 0


def built_in_cache() -> Path:
    """The shared object in the zoo's cache, built now where it is not there yet. Raises BuildError."""
    path = cached_path(compiler())
    if not path.is_file():
        print("building the fused kernels, once ...", file=sys.stderr, flush=True)
        build(path)
    return path


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the user's own compiler
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        told = next((line for line in lines if "error" in line), lines[-1] if lines else "it says nothing")
        raise BuildError(f"{command[0]} failed: {told[:300]}")
    return done.stdout


def main() -> None:
    """Build it in the zoo's cache and say where it is."""
    try:
        print(built_in_cache())
    except BuildError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
