"""Addresses and images in memory: what goes wrong with one of them costs the others nothing."""

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from zoo.data.inputs import media_items
from zoo.data.item_content import load_image
from zoo.errors import MediaError
from zoo.media.image import open_image
from zoo.tasks.classify import classify

LABELS = ["cat", "dog"]


@pytest.mark.parametrize(
    "words",
    [
        ("classify", "", "--labels", "cat,dog"),
        ("classify", " ", "--labels", "cat,dog"),
        ("embed", "", "--out", "e.npz"),
        ("search", "", "a cat"),
    ],
)
def test_an_empty_argument_is_not_the_current_folder(main, photos: Path, monkeypatch, words: tuple[str, ...]) -> None:
    monkeypatch.chdir(photos)
    run = main(*words)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith(f"zoo: an empty argument {words[1]!r}: expected ")
    assert "(the current folder is called .)" in run.stderr


@pytest.fixture
def server(photos: Path) -> Iterator[tuple[str, list[str]]]:
    """Its address, and the paths that were asked for."""
    asked: list[str] = []
    photo = (photos / "chelsea.jpg").read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path == "/garbage":
                self.wfile.write(b"this is no HTTP\r\n\r\n")
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(photo)))
            self.end_headers()
            self.wfile.write(photo[: len(photo) // 2] if self.path == "/short" else photo)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as service:
        thread = threading.Thread(target=service.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{service.server_port}", asked
        service.shutdown()
        thread.join()


def test_bad_addresses_cost_the_good_one_nothing(server) -> None:
    address, _ = server
    given = [f"{address}/a b.jpg", f"{address}/garbage", f"{address}/short", f"{address}/good.jpg", "http://[bad/x.jpg"]
    outcome = classify(given, LABELS, allow_urls=True)
    assert [answer.label for answer in outcome.results] == [None, None, None, "cat", None]
    assert "broke off after" in outcome.results[2].error
    assert all(given[number] in outcome.results[number].error for number in (0, 1, 2, 4))


def test_offline_means_that_nobody_is_asked(server, monkeypatch: pytest.MonkeyPatch) -> None:
    address, asked = server
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    (answer,) = classify([f"{address}/good.jpg"], LABELS, allow_urls=True).results
    assert "the network is switched off" in answer.error
    assert asked == []


def test_one_image_object_may_be_given_many_times(photos: Path) -> None:
    """Pillow reads lazily, and not from several threads."""
    for _ in range(20):
        image = Image.open(photos / "chelsea.jpg")
        items = media_items([image] * 8)
        threads = [threading.Thread(target=load_image, args=(item,), kwargs={"allow_urls": False}) for item in items]
        assert image.im is not None  # it was read before any thread could
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def test_the_limit_holds_for_an_image_object_too() -> None:
    data = io.BytesIO()
    Image.new("L", (300, 300)).save(data, "PNG")
    with pytest.raises(MediaError, match="the PIL image: 300 x 300 is 90,000 pixels, more than the limit of 80,000"):
        open_image(Image.open(data), max_pixels=80_000)
