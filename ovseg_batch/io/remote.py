"""Read images from URLs (`s3://`, `gs://`, `https://`, `http://`) through fsspec, if the settings allow it.

URLs come from manifests, which are not trusted. Connections to private networks are refused. The check happens when the
connection is made, so it also covers names that resolve there, and redirects. The number of bytes and the time of a
download are limited. Buckets use the credentials and the endpoint of the environment, as the tools of AWS and Google
do.
"""

from __future__ import annotations

import io
import ipaddress
import posixpath
import random
import re
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from ovseg_batch.errors import FailureCode, RowError, UsageError

# → the extra that installs its library
SCHEMES = {"https": "https", "http": "https", "s3": "s3", "gs": "gs", "gcs": "gs"}
BLOCK = 1 << 20  # bytes read from a connection at a time
NO_SUCH_RANGE = 416  # HTTP status
RETRY_STATUSES = {408, 425, 429}  # and 5xx: HTTP statuses after which a retry may help
LONGEST_PAUSE = 30.0  # seconds
LONGEST_REASON = 200  # characters of a server's text in a message
NOT_HTTP = "the server redirects to a URL that is not https:// or http://"
# errors of aiohttp → what happened. Another try would end in the same way.
REDIRECTS = {
    "TooManyRedirects": "the server redirects without end",
    "NonHttpUrlRedirectClientError": NOT_HTTP,
    "InvalidUrlRedirectClientError": NOT_HTTP,
}

_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True, slots=True)
class Remote:
    """How remote images are fetched.

    Args:
        tries: number of tries before the row fails.
        timeout: seconds for one try, from the first packet to the last byte.
        private: allow web addresses in private networks.
    """

    tries: int = 4
    timeout: float = 60.0
    private: bool = False

    def read(self, url: str, max_bytes: int) -> bytes:
        """Return the content of one file, or the first `max_bytes` + 1 bytes of a longer one.

        Raises:
            RowError: `MISSING`, or `UNREADABLE` after the last try.
        """
        for attempt in range(1, self.tries + 1):
            try:
                return _fetch(url, max_bytes + 1, self)
            except Exception as error:  # every protocol raises other classes
                last = error
            if not _is_transient(last):
                break
            if attempt < self.tries:
                time.sleep(_pause(last, attempt))
        if isinstance(last, FileNotFoundError) or _status(last) == 410:
            raise RowError(FailureCode.MISSING, f"{shown(url)} is not there")
        times = f" ({attempt} tries)" if attempt > 1 else ""
        raise RowError(FailureCode.UNREADABLE, f"{shown(url)}: {_reason(last, self.timeout)}{times}")


def is_remote(path: str) -> bool:
    """Return whether the text is a URL and not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


def scheme_of(url: str) -> str:
    """Return the scheme of a URL, such as `https` or `s3`.

    Raises:
        UsageError: the scheme is not supported.
    """
    scheme = url.partition("://")[0].lower()
    if scheme not in SCHEMES:
        raise UsageError(f"{shown(url)}: {scheme}:// is not read. Images can be behind {', '.join(SCHEMES)}.")
    return scheme


def check_installed(scheme: str) -> None:
    """Raise UsageError where the library that reads the scheme is not installed."""
    modules = {"https": "aiohttp", "s3": "s3fs", "gs": "gcsfs"}
    try:
        __import__("fsspec")
        __import__(modules[SCHEMES[scheme]])
    except ImportError:
        package = modules[SCHEMES[scheme]]
        raise UsageError(f"{scheme}:// needs more packages. Run `pip install fsspec {package}`.") from None


def shown(url: str) -> str:
    """Return a URL for messages: without password, and without the query, which may be a signature."""
    if not is_remote(url):
        return url
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def name_of(url: str) -> str:
    """Return the file name of the image in outputs: host or bucket, and path."""
    parts = urllib.parse.urlsplit(url)
    path = posixpath.normpath("/" + urllib.parse.unquote(parts.path)).lstrip("/")
    return f"{parts.netloc.rpartition('@')[2]}/{path}"


def listing(url: str, remote: Remote) -> Iterator[dict[str, Any]]:
    """List the files and folders directly under `s3://bucket/folder`, in the order of their names.

    Yields:
        dictionaries with `name` (without the folder), `url`, `folder` (bool), `bytes` and `mtime_ns`, which are None
        where the store does not return them.

    Raises:
        UsageError: no such bucket or folder, or no right to list it.
    """
    files = _filesystem(SCHEMES[scheme_of(url)], remote)
    root = url.partition("://")[2].rstrip("/")
    try:
        found = files.ls(root, detail=True)
    except FileNotFoundError:
        raise UsageError(f"There is no {shown(url)}.") from None
    except Exception as error:
        raise UsageError(f"Cannot list {shown(url)}: {_reason(error, remote.timeout)}") from None
    for info in sorted(found, key=lambda info: str(info["name"])):
        name = info["name"].rstrip("/").rpartition("/")[2]
        if name and info["name"].rstrip("/") != root:  # a marker object of the folder itself
            changed = info.get("LastModified") or info.get("mtime")
            yield {
                "name": name,
                "url": f"{url.rstrip('/')}/{name}",
                "folder": info["type"] == "directory",
                "bytes": info.get("size"),
                "mtime_ns": int(changed.timestamp()) * 10**9 if hasattr(changed, "timestamp") else None,
            }


def _fetch(url: str, most: int, remote: Remote) -> bytes:
    """Return at most the first `most` bytes of a file."""
    scheme = SCHEMES[scheme_of(url)]
    files = _filesystem(scheme, remote)
    if scheme != "https":
        try:
            content: bytes = files.cat_file(url, start=0, end=most, timeout=remote.timeout)
        except Exception as error:
            if _status(error) == NO_SUCH_RANGE:  # an empty file has no first byte
                return b""
            raise
        return content
    from fsspec.asyn import sync
    from fsspec.implementations.http import HTTPStreamFile

    session = sync(files.loop, files.set_session)
    with HTTPStreamFile(files, url, loop=files.loop, session=session) as file:
        read, size = io.BytesIO(), 0
        while size < most and (block := file.read(min(BLOCK, most - size))):
            size += read.write(block)
    return read.getvalue()  # returns the buffer without a copy


def _filesystem(scheme: str, remote: Remote) -> Any:
    """Return the fsspec file system of a scheme. There is one per process."""
    check_installed(scheme)
    with _ONE_AT_A_TIME:
        return _made_filesystem(scheme, remote)


@cache
def _made_filesystem(scheme: str, remote: Remote) -> Any:
    if scheme == "https":
        from fsspec.implementations.http import HTTPFileSystem

        return HTTPFileSystem(skip_instance_cache=True, get_client=_web_client(remote))
    if scheme == "s3":
        import s3fs

        waits = {"connect_timeout": remote.timeout, "read_timeout": remote.timeout, "retries": {"max_attempts": 1}}
        return s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False, config_kwargs=waits)
    import gcsfs

    return gcsfs.GCSFileSystem(skip_instance_cache=True, use_listings_cache=False, timeout=remote.timeout)


def _web_client(remote: Remote) -> Any:
    """Return the factory of the HTTP session, which has a time limit and connects to allowed addresses only."""
    import aiohttp

    def connect(address: Any) -> socket.socket:
        family, kind, protocol, _, where = address
        if not remote.private and _is_private(where[0]):
            raise _PrivateAddress(f"{where[0]} is a private address; run.remote_private: true allows it")
        return socket.socket(family, kind, protocol)

    async def client(**_: Any) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(socket_factory=connect)
        return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=remote.timeout))

    return client


class _PrivateAddress(OSError):
    """The address is in a private network, which manifests may not access."""


#: Networks whose addresses end in that of an IPv4 host: NAT64 (RFC 6052), IPv4-compatible and IPv4-translated ones.
LAST_32_BITS = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "::/96", "::ffff:0:0:0/96")))
LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")  # RFC 8215: leads to hosts of the own network


def _is_private(address: str) -> bool:
    """Return whether an address is not public: loopback, link-local, RFC 1918, or an IPv6 form of one of these."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        hidden = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if any(ip in network for network in LAST_32_BITS):
            hidden.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if any(inner is not None and not inner.is_global for inner in hidden):
            return True
        if ip in LOCAL_NAT64:
            return True
    return not ip.is_global or ip.is_multicast


def _status(error: BaseException) -> int | None:
    """Return the HTTP status in an error of aiohttp, gcsfs or s3fs, or None."""
    response = getattr(error.__cause__, "response", None)
    if isinstance(response, dict):  # of botocore, the cause of the OSError that s3fs raises
        return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) or None
    for name in ("status", "code"):
        with_number = getattr(error, name, None)
        if isinstance(with_number, int) or (isinstance(with_number, str) and with_number.isdecimal()):
            return int(with_number)
    return None


def _is_transient(error: BaseException) -> bool:
    """Return whether a retry may succeed."""
    inner = getattr(error, "os_error", None)
    if isinstance(error, FileNotFoundError | PermissionError | UsageError | _PrivateAddress) or isinstance(
        inner, _PrivateAddress
    ):
        return False
    name = type(error).__name__
    if "Credentials" in name or name in REDIRECTS:
        return False
    status = _status(error)
    return status is None or status >= 500 or status in RETRY_STATUSES


def _pause(error: BaseException, attempt: int) -> float:
    """Return the seconds until the next try: those that the server requests, or exponential backoff with jitter."""
    wanted = (getattr(error, "headers", None) or {}).get("Retry-After", "")
    seconds = float(wanted) if wanted.isdecimal() else random.uniform(0.5, 1) * 2 ** (attempt - 1)
    return min(seconds, LONGEST_PAUSE)


def _reason(error: BaseException, timeout: float) -> str:
    """Return the reason of an error without the URL, whose query may be secret."""
    if redirect := REDIRECTS.get(type(error).__name__):
        return redirect
    status = _status(error)
    if status is not None and hasattr(error, "message"):
        message = f"{error.message}".partition("\n")[0][:LONGEST_REASON].rstrip(" :")
        if type(error.__cause__).__module__ == "aiohttp.http_exceptions":  # the status is aiohttp's, not the server's
            return f"the answer is not valid HTTP: {message}"
        return f"the server answered {status} {message}"
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return f"the download did not finish within {timeout:g} s (run.remote_timeout)"
    inner = getattr(error, "os_error", None) or error
    return re.sub(r"\?\S*", "", f"{inner}" or type(inner).__name__)
