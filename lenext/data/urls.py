"""Pictures of the web, fetched in a way that cannot be turned against the network that this machine is in.

Who names a URL chooses where a server of ours connects to. So every address that a name stands for must be public, the
connection goes to the very address that was checked (a name that is asked twice can answer differently), redirects are
checked like the first, and time and size have limits that count everything. No proxy, cookie or password is used.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from functools import cache
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import httpcore

from lenext.data.decode import UnreadableImage
from lenext.version import __version__

MOST_REDIRECTS = 3
REDIRECTS = frozenset((301, 302, 303, 307, 308))
# Addresses of IPv6 that stand for one of IPv4 in their last 32 bits, which a gateway connects to (RFC 6052).
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
UNICAST = ipaddress.IPv6Network("2000::/3")  # all that the public internet has of IPv6
# What some versions of Python take for public: protocols' own addresses, an address of Oracle's virtual machines among
# them; the relays of 6to4; Teredo and its neighbours, which wrap others; examples in texts (RFC 9637).
RESERVED = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "3fff::/20")))
# Public by its number, yet answered inside Azure's virtual machines.
INSIDE = frozenset((IPv4Address("168.63.129.16"),))


def is_url(text: str) -> bool:
    """Whether this names a thing of the web, in whatever scheme, rather than a file."""
    return re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE) is not None


def fetch(url: str, *, most_bytes: int, seconds: float, count: Callable[[int], object] = lambda size: None) -> bytes:
    """What a server answers to a GET of `url`, after at most three redirects.

    most_bytes: of the body. seconds: for everything together, from the name's resolution to the last byte.
    count: called with the size of every part of the body before it is kept; what it raises ends the fetch.
    May be called from several threads. Raises UnreadableImage with a reason that says nothing of the network inside.
    """
    deadline = time.monotonic() + seconds
    try:
        for _ in range(1 + MOST_REDIRECTS):
            answer = _get(url, most_bytes, deadline, count)
            if isinstance(answer, bytes):
                return answer
            url = urljoin(url, answer)
    except UnreadableImage:
        raise
    except ValueError:  # of the parsers of URLs
        raise UnreadableImage("this is no valid URL") from None
    except httpcore.TimeoutException:
        raise UnreadableImage(f"the server did not send it within {seconds:g} seconds") from None
    except httpcore.ConnectError:
        raise UnreadableImage("the server cannot be reached") from None
    except (httpcore.NetworkError, httpcore.ProtocolError, OSError):
        raise UnreadableImage("the connection broke, or the server does not speak HTTP") from None
    raise UnreadableImage(f"the server sends on to other addresses more than {MOST_REDIRECTS} times")


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is one of the public internet, also where it only wraps another."""
    if any(address in network for network in RESERVED):
        return False
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast and address not in INSIDE
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    relayed = address.sixtofour
    return address.is_global and address in UNICAST and (relayed is None or is_public(relayed))


def _get(url: str, most_bytes: int, deadline: float, count: Callable[[int], object]) -> bytes | str:
    """The body, or where the server says that it is."""
    target, host = _parse(url)
    headers: dict[bytes | str, bytes | str] = {
        "Host": host,
        "User-Agent": f"lenext/{__version__}",
        "Accept": "image/*, */*;q=0.1",
        "Accept-Encoding": "identity",
    }
    too_many = UnreadableImage(f"it has more than the {most_bytes / 1e6:g} MB that are allowed")
    with (
        httpcore.ConnectionPool(ssl_context=_trusted(), network_backend=_Checked(deadline)) as connections,
        connections.stream("GET", target, headers=headers) as response,
    ):
        fields = {name.lower(): value.decode("utf-8", "replace") for name, value in response.headers}
        if response.status in REDIRECTS and b"location" in fields:
            return fields[b"location"]
        if response.status != HTTPStatus.OK:
            raise UnreadableImage(f"the server answered {response.status}")
        if fields.get(b"content-encoding", "identity").strip().lower() != "identity":
            raise UnreadableImage("the server sends it compressed, which was not asked for")
        if int(fields.get(b"content-length", 0)) > most_bytes:
            raise too_many
        body = bytearray()
        for part in response.iter_stream():
            count(len(part))
            body += part
            if len(body) > most_bytes:
                raise too_many
        return bytes(body)


def _parse(url: str) -> tuple[httpcore.URL, str]:
    """(what to ask for, the Host header): the connection is made from these parts, so that there is one reading.

    Raises ValueError for what is no URL.
    """
    if any(c < " " or c == "\x7f" for c in url):
        raise UnreadableImage("this URL holds control characters")
    parts = urlsplit(url)
    scheme, port = parts.scheme.lower(), parts.port
    host = (parts.hostname or "").encode("idna").decode("ascii")
    if scheme not in ("http", "https"):
        raise UnreadableImage(f"only http and https URLs are fetched, not {scheme or 'this'}")
    if "@" in parts.netloc:
        raise UnreadableImage("a URL with a user name or password is not fetched")
    if not re.fullmatch(r"[\w.:-]+", host, re.ASCII) or port == 0:
        raise UnreadableImage("this is no valid URL")
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
    query = "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~?") if parts.query else ""
    name = f"[{host}]" if ":" in host else host
    return (
        httpcore.URL(scheme=scheme.encode(), host=host.encode(), port=port, target=(path + query).encode()),
        name if port is None else f"{name}:{port}",
    )


def _public_addresses(host: str, port: int, seconds: float) -> list[str]:
    """The addresses of a name, every one of them public."""
    addresses = dict.fromkeys(str(info[4][0]) for info in _resolve(host, port, seconds))
    if not addresses or not all(is_public(ipaddress.ip_address(address)) for address in addresses):
        raise UnreadableImage(f"{host} is not an address of the public internet")
    return list(addresses)


def _resolve(host: str, port: int, seconds: float) -> list[Any]:
    """The system's resolver, which knows no time limit, in a thread that nothing has to wait for."""
    answer: SimpleQueue[list[Any] | Exception] = SimpleQueue()

    def ask() -> None:
        try:
            answer.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:  # raised below, where somebody hears it
            answer.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        found = answer.get(timeout=max(seconds, 0))
    except Empty:
        raise httpcore.ConnectTimeout from None
    if isinstance(found, Exception):
        raise UnreadableImage(f"there is no server of the name {host}")
    return found


@cache
def _trusted() -> ssl.SSLContext:
    return httpcore.default_ssl_context()


class _Checked(httpcore.NetworkBackend):
    """Connections to checked addresses, whose every wait ends at the deadline (of time.monotonic)."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline

    def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore.NetworkStream:
        failure: Exception | None = None
        addresses = _public_addresses(host, port, _remaining(self.deadline))
        for address in addresses:
            # A silent address must leave time for the others.
            seconds = _remaining(self.deadline) / len(addresses)
            try:
                return _Stream(httpcore.SyncBackend().connect_tcp(address, port, seconds), self.deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        assert failure is not None
        raise failure


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, deadline: float) -> None:
        self.inner, self.deadline = inner, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.inner.read(max_bytes, _remaining(self.deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.inner.write(buffer, _remaining(self.deadline))

    def close(self) -> None:
        self.inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        try:
            inner = self.inner.start_tls(ssl_context, server_hostname, _remaining(self.deadline))
        except httpcore.ConnectError as error:
            if isinstance(error.__cause__, ssl.SSLCertVerificationError):
                raise UnreadableImage("the server does not prove who it is: its certificate is not valid") from None
            raise
        return _Stream(inner, self.deadline)

    def get_extra_info(self, info: str) -> Any:
        return self.inner.get_extra_info(info)


def _remaining(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise httpcore.ReadTimeout
    return seconds
