"""Images behind URLs, from a real web server and a real S3 API on the loopback."""

from __future__ import annotations

import csv
import io
import json
import threading
import time
import tracemalloc
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image

from ovseg_batch.errors import FailureCode, RowError, UsageError
from ovseg_batch.io import images
from ovseg_batch.io import remote as module
from ovseg_batch.io.ahead import NETWORK_THREADS, decode_ahead
from ovseg_batch.io.limits import Limits
from ovseg_batch.io.manifest import Manifest, build_manifest
from ovseg_batch.io.remote import Remote, is_remote, listing, name_of, shown
from ovseg_batch.types import ImageRow
from tests.conftest import LABELS, Command, data_files

LIMIT = 1 << 20
HERE = Remote(tries=3, timeout=2.0, private=True)


@dataclass
class Site:
    """A web server: files by path, and answers that misbehave."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    retry_after: str = "0"


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            site.seen[path] += 1
            match path.split("/")[1:]:
                case ["status", code]:
                    self.answer(int(code), b"")
                case ["third-time"] if site.seen[path] < 3:
                    self.answer(503, b"", {"Retry-After": site.retry_after})
                case ["slow"]:
                    self.send_response(200)
                    self.end_headers()
                    for _ in range(100):
                        self.wfile.write(b".")
                        time.sleep(0.2)
                case ["cut"]:
                    self.answer(200, b"half", {"Content-Length": "1000"})
                case ["endless"]:
                    self.send_response(200)
                    self.end_headers()
                    while True:
                        self.wfile.write(b"." * LIMIT)
                case ["away"]:
                    self.answer(302, b"", {"Location": "/photo.png"})
                case ["round"]:
                    self.answer(302, b"", {"Location": "/round"})
                case ["to-a-file"]:
                    self.answer(302, b"", {"Location": "file:///etc/passwd"})
                case ["negative-length"]:
                    self.answer(200, b"half", {"content-length": "-3"})
                case ["no-http"]:
                    self.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"x" * 3000 + b"\r\n\r\n")
                case ["home"]:
                    self.answer(302, b"", {"Location": f"http://127.0.0.1:{port}/photo.png"})
                case _ if path in site.files:
                    self.answer(200, site.files[path])
                case _:
                    self.answer(404, b"")

        def answer(self, code: int, content: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Clients that leave are what is tested."""

    server = Quiet(("", 0), Handler)
    port = server.server_address[1]
    site.url = f"http://localhost:{port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield site
    server.shutdown()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.01)


def test_a_file_is_read_whole(site: Site) -> None:
    site.files["/photo.png"] = bytes(range(256)) * 100
    assert HERE.read(f"{site.url}/photo.png?token=x", LIMIT) == site.files["/photo.png"]
    assert HERE.read(f"{site.url}/away", LIMIT) == site.files["/photo.png"]


def test_no_more_is_taken_than_the_limit(site: Site) -> None:
    assert len(HERE.read(f"{site.url}/endless", LIMIT)) == LIMIT + 1


@pytest.mark.parametrize(
    ("path", "code", "expected", "tries"),
    [
        ("/nothing", FailureCode.MISSING, "is not there", 1),
        ("/status/410", FailureCode.MISSING, "is not there", 1),
        ("/status/403", FailureCode.UNREADABLE, "the server answered 403 Forbidden", 1),
        ("/status/500", FailureCode.UNREADABLE, "the server answered 500 .* \\(3 tries\\)", 3),
        ("/status/429", FailureCode.UNREADABLE, "429", 3),
        (
            "/slow",
            FailureCode.UNREADABLE,
            "the download did not finish within 2 s \\(run.remote_timeout\\) \\(3 tries\\)",
            3,
        ),
        ("/cut", FailureCode.UNREADABLE, "\\(3 tries\\)", 3),
        ("/round", FailureCode.UNREADABLE, "the server redirects without end$", 10),
        ("/to-a-file", FailureCode.UNREADABLE, "redirects to a URL that is not https:// or http://$", 1),
        ("/negative-length", FailureCode.UNREADABLE, "the answer is not valid HTTP: .{1,200}$", 1),
        ("/no-http", FailureCode.UNREADABLE, "the answer is not valid HTTP: .{1,200}$", 1),
    ],
)
def test_what_cannot_be_fetched(site: Site, path: str, code: FailureCode, expected: str, tries: int) -> None:
    with pytest.raises(RowError, match=expected) as caught:
        HERE.read(f"{site.url}{path}?signature=secret", LIMIT)
    assert caught.value.code == code
    assert site.seen[path] == tries
    assert "secret" not in caught.value.message and f"{site.url}{path}" in caught.value.message


def test_a_server_that_recovers_costs_nothing(site: Site) -> None:
    site.files["/third-time"] = b"at last"
    assert HERE.read(f"{site.url}/third-time", LIMIT) == b"at last"
    for site.retry_after in ("\xb2", "\xbd", "-1", "1e999", "nan", "9" * 5000, "Wed, 21 Oct 2015 07:28:00 GMT", ""):
        site.seen.clear()
        assert HERE.read(f"{site.url}/third-time", LIMIT) == b"at last", site.retry_after


def test_nobody_there() -> None:
    with pytest.raises(RowError, match="3 tries") as caught:
        HERE.read("http://localhost:1/x.png", LIMIT)
    assert caught.value.code == FailureCode.UNREADABLE


@pytest.mark.parametrize("path", ["/photo.png", "/home"])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_no_way_into_a_private_network(site: Site, path: str, host: str) -> None:
    site.files["/photo.png"] = b"internal"
    with pytest.raises(RowError, match="is a private address") as caught:
        Remote(tries=3, timeout=5).read(site.url.replace("localhost", host) + path, LIMIT)
    assert caught.value.code == FailureCode.UNREADABLE
    assert site.seen == Counter()


def test_no_way_into_a_private_network_by_a_redirect(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first address passes for a public one; the one it leads to is looked at again."""
    looked_at: list[str] = []

    def is_private(address: str) -> bool:
        looked_at.append(address)
        return len(looked_at) > 1

    monkeypatch.setattr(module, "_is_private", is_private)
    site.files["/photo.png"] = b"internal"
    port = site.url.rpartition(":")[2]
    with pytest.raises(RowError, match="is a private address"):
        Remote(tries=1, timeout=4.5).read(f"http://127.0.0.2:{port}/home", LIMIT)
    assert looked_at == ["127.0.0.2", "127.0.0.1"] and site.seen == Counter(["/home"])


@pytest.mark.parametrize(
    ("address", "private"),
    [
        ("127.0.0.1", True),
        ("10.1.2.3", True),
        ("172.16.0.1", True),
        ("192.168.0.1", True),
        ("169.254.169.254", True),
        ("100.64.0.1", True),
        ("0.0.0.0", True),
        ("224.0.0.1", True),
        ("255.255.255.255", True),
        ("::1", True),
        ("fe80::1%eth0", True),
        ("fd00::1", True),
        ("::ffff:10.0.0.1", True),
        ("64:ff9b::a00:1", True),
        ("64:ff9b:1::7f00:1", True),
        ("::7f00:1", True),
        ("::ffff:0:7f00:1", True),
        ("::ffff:0:808:808", False),
        ("2002:7f00:1::", True),
        ("ff02::1", True),
        ("8.8.8.8", False),
        ("2606:4700::1111", False),
        ("64:ff9b::808:808", False),
    ],
)
def test_which_addresses_are_private(address: str, private: bool) -> None:
    assert module._is_private(address) is private


def test_names_hold_no_secrets() -> None:
    url = "https://user:pass@host:8080/a/../b%20c/photo.jpg?X-Amz-Signature=secret#f"
    assert shown(url) == "https://host:8080/a/../b%20c/photo.jpg"
    assert name_of(url) == "host:8080/b c/photo.jpg"
    assert name_of("https://host/../../etc/passwd") == "host/etc/passwd"
    assert is_remote("s3://bucket/x") and not is_remote("/a://b") and not is_remote("C:\\x")


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The endpoint of an S3 with a bucket `photos`."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    for name, value in {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=s3)
    client.create_bucket(Bucket="photos")
    yield client
    for item in client.list_objects_v2(Bucket="photos").get("Contents", []):
        client.delete_object(Bucket="photos", Key=item["Key"])
    client.delete_bucket(Bucket="photos")
    module._made_filesystem.cache_clear()


def test_a_bucket(bucket: object) -> None:
    def put(key: str, content: bytes) -> None:
        bucket.put_object(Bucket="photos", Key=key, Body=content)  # type: ignore[attr-defined]

    put("a/1.jpg", b"one")
    put("a/b/2.jpg", b"22")
    put("a/", b"")
    put("a/empty.jpg", b"")
    put("a/big.jpg", b"x" * 100)
    found = [(e["name"], e["folder"], e["bytes"]) for e in listing("s3://photos/a/", HERE)]
    assert [line[:2] for line in found] == [("1.jpg", False), ("b", True), ("big.jpg", False), ("empty.jpg", False)]
    assert [size for _, folder, size in found if not folder] == [3, 100, 0]
    assert HERE.read("s3://photos/a/1.jpg", LIMIT) == b"one"
    assert HERE.read("s3://photos/a/empty.jpg", LIMIT) == b""
    assert len(HERE.read("s3://photos/a/big.jpg", 10)) == 11
    for url in ("s3://photos/a/none.jpg", "s3://no-bucket/1.jpg"):
        with pytest.raises(RowError) as caught:
            HERE.read(url, LIMIT)
        assert caught.value.code == FailureCode.MISSING
    with pytest.raises(UsageError, match="There is no s3://photos/zzz"):
        list(listing("s3://photos/zzz", HERE))


def test_a_run_over_a_bucket_gives_what_a_run_over_the_folder_gives(
    bucket: object, few_scenes: Path, finished: Path, tmp_path: Path, command: Command
) -> None:
    for path in (few_scenes / "images").iterdir():
        bucket.upload_file(str(path), "photos", f"set/{path.name}")  # type: ignore[attr-defined]
    arguments = ("run", "s3://photos/set", "-o", tmp_path / "run", "--labels", LABELS, "--set", "manifest.shard_rows=2")
    refused = command(*arguments)
    assert refused.returncode == 2 and "--allow-remote" in refused.stderr
    done = command(*arguments, "--allow-remote")
    assert done.returncode == 0, done.stderr
    assert command(*arguments, "--allow-remote").returncode == 0
    ours, theirs = data_files(tmp_path / "run"), data_files(finished)
    refined = [
        {Path(name).name: content for name, content in files.items() if name.startswith("stages/refine-")}
        for files in (ours, theirs)
    ]
    assert refined[0] == refined[1] and len(refined[0]) == 3
    results = [
        (folder / "annotations.json").read_bytes().split(b'"images"')[1] for folder in (tmp_path / "run", finished)
    ]
    assert results[0] == results[1]


def test_a_list_of_urls(site: Site, few_scenes: Path, tmp_path: Path, command: Command) -> None:
    names = sorted(path.name for path in (few_scenes / "images").iterdir())[:3]
    for name in names:
        site.files[f"/{name}"] = (few_scenes / "images" / name).read_bytes()
    urls = [f"{site.url}/{name}?sig=secret" for name in [*names, "gone.png"]]
    (tmp_path / "list.txt").write_text("\n".join(urls))
    made = command("manifest", tmp_path / "list.txt", "-o", tmp_path / "m.parquet")
    assert made.returncode == 0 and site.seen == Counter()
    assert Manifest.open(tmp_path / "m.parquet").remote == {"http": 4}
    arguments = ("run", tmp_path / "m.parquet", "-o", tmp_path / "run", "--labels", LABELS)
    refused = command(*arguments)
    assert refused.returncode == 2 and "4 of 4 images are behind URLs (http://)" in refused.stderr
    done = command(*arguments, "--allow-remote", "--set", "run.remote_private=true")
    assert done.returncode == 3, done.stderr
    with (tmp_path / "run" / "failures.csv").open() as file:
        assert [(line["row"], line["code"]) for line in csv.DictReader(file)] == [("3", "missing")]
    for path in ("failures.csv", "annotations.json"):
        assert "secret" not in (tmp_path / "run" / path).read_text()
    site.files["/gone.png"] = site.files[f"/{names[0]}"]
    assert command("retry", tmp_path / "run").returncode == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ftp://host/x.jpg", "ftp:// is not read"),
        ("https://host/gallery", "cannot be listed"),
        ("s3://bucket/folder", "--allow-remote"),
    ],
)
def test_urls_that_mean_nothing(text: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=expected):
        build_manifest([text], tmp_path / "m.parquet", 2)


def test_a_bad_url_in_a_list_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("https://host/x.jpg\nftp://host/y.jpg\n")
    with pytest.raises(UsageError, match=r"list\.txt line 2: .*ftp:// is not read"):
        build_manifest([str(tmp_path / "list.txt")], tmp_path / "m.parquet", 2)


def test_google_cloud_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what its JSON API is used, by a server that knows two objects; not an emulator of Google's."""
    objects = {"a/1.jpg": b"one", "a/b/2.jpg": b"22", "a/empty.jpg": b""}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(url.query))
            name = urllib.parse.unquote(url.path.rpartition("/o/")[2])
            if url.path.endswith("/b/photos/o"):
                self.answer(json.dumps(self.listed(query["prefix"])).encode(), "application/json")
            elif name not in objects:
                self.send_error(404)
            elif query.get("alt") != "media" and "download" not in url.path:
                self.answer(json.dumps(self.described(name)).encode(), "application/json")
            elif not objects[name] and "Range" in self.headers:
                self.send_error(416)
            else:
                self.answer(objects[name], "image/jpeg")

        def listed(self, prefix: str) -> dict[str, object]:
            below = [name for name in objects if name.startswith(prefix)]
            here = [name for name in below if "/" not in name[len(prefix) :]]
            deeper = sorted({prefix + name[len(prefix) :].partition("/")[0] + "/" for name in {*below} - {*here}})
            return {"items": [self.described(name) for name in here], "prefixes": deeper}

        def described(self, name: str) -> dict[str, str]:
            changed = "2026-01-02T03:04:05.000Z"
            size = str(len(objects[name]))
            return {"name": name, "bucket": "photos", "size": size, "updated": changed, "timeCreated": changed}

        def answer(self, content: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_address[1]}")
    try:
        found = [(e["name"], e["folder"], e["mtime_ns"]) for e in listing("gs://photos/a", HERE)]
        assert found == [
            ("1.jpg", False, 1767323045 * 10**9),
            ("b", True, None),
            ("empty.jpg", False, 1767323045 * 10**9),
        ]
        assert HERE.read("gs://photos/a/1.jpg", LIMIT) == b"one"
        assert HERE.read("gs://photos/a/empty.jpg", LIMIT) == b""
        with pytest.raises(RowError) as caught:
            HERE.read("gs://photos/a/none.jpg", LIMIT)
        assert caught.value.code == FailureCode.MISSING
    finally:
        server.shutdown()
        module._made_filesystem.cache_clear()


def test_files_behind_urls_wait_for_room_before_they_are_read(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen answers without an end hold one file of the limit and what the budget allows, not sixteen."""
    monkeypatch.setattr(images, "FIRST_BYTES", LIMIT // 4)
    limits = Limits(max_pixels=10**6, max_file_bytes=8 * LIMIT, remote=HERE)
    rows = [ImageRow(k, str(k), str(k), f"{site.url}/endless?{k}") for k in range(NETWORK_THREADS)]
    tracemalloc.start()
    try:
        answers = [answer for _, answer in decode_ahead(rows, 1, LIMIT, limits)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [answer.code for answer in answers if isinstance(answer, RowError)] == [FailureCode.TOO_LARGE] * len(rows)
    assert 8 * LIMIT < peak < 32 * LIMIT  # the file in front and its growing buffer, but not all files


def test_a_file_larger_than_the_first_part_is_read_whole(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "FIRST_BYTES", 1000)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    site.files["/large.png"] = file.getvalue()
    rows = [ImageRow(k, str(k), str(k), f"{site.url}/large.png") for k in range(20)]
    found = [answer for _, answer in decode_ahead(rows, 1, LIMIT, Limits(10**6, LIMIT, HERE))]
    assert all(isinstance(one, np.ndarray) and (one == pixels).all() for one in found) and len(found) == 20
