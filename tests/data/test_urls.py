"""Fetching from a real server at this machine, which names and addresses of the public internet are led to."""

from __future__ import annotations

import contextlib
import gzip
import ipaddress
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest

from lenext.data import urls
from lenext.data.decode import UnreadableImage

PUBLIC, OTHER = "93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"
BODY = bytes(range(256)) * 40


class Handler(BaseHTTPRequestHandler):
    """Answers by the path; remembers what was asked of it."""

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))  # type: ignore[attr-defined]
        # A client that has had enough is what some tests are about.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.answer(*unquote(self.path).strip("/").split("/", 1))

    def answer(self, kind: str, rest: str = "") -> None:
        match kind:
            case "to":
                self.reply({"Location": rest, "Set-Cookie": "a=b"}, 302)
            case "loop":
                self.reply({"Location": "/loop"}, 301)
            case "nowhere":
                self.reply({}, 302)
            case "missing":
                self.reply({"Content-Length": "0"}, 404)
            case "gzip":
                self.reply({"Content-Encoding": "gzip"}, 200, gzip.compress(b"\0" * 10**6))
            case "large":
                self.reply({"Content-Length": str(10**9)}, 200)
            case "endless":
                self.reply({}, 200)
                while True:
                    self.wfile.write(b"\0" * 10**5)
            case "slow":
                self.reply({}, 200)
                self.drip()
            case "slow-header":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
                self.drip()
                self.wfile.write(b"\r\nContent-Length: 0\r\n\r\n")
            case "nonsense":
                self.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")
            case "short":
                self.reply({"Content-Length": str(len(BODY) + 1)}, 200, BODY)
            case _:
                self.reply({"Content-Length": str(len(BODY))}, 200, BODY)

    def reply(self, headers: dict[str, str], status: int, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def drip(self) -> None:
        """Every byte comes in good time; all of them would take a minute."""
        for _ in range(3000):
            self.wfile.write(b"x")
            time.sleep(0.02)

    def log_message(self, *_) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict[str, str]]] = []

    def handle_error(self, *_) -> None:
        pass  # a client that ends a handshake


class Net:
    """names: what the resolver knows, a list of answers for each time that it is asked. connected: to which address."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.names: dict[str, list[list[str]]] = {"public.example": [[PUBLIC]]}
        self.lookups: list[str] = []
        self.connected: list[str] = []
        self.silent: set[str] = set()

    def getaddrinfo(self, host, port, *rest, real=socket.getaddrinfo, **named):
        self.lookups.append(host)
        if host not in self.names:
            return real(host, port, *rest, **named) if any(c in host for c in "0123456789:") else self.unknown()
        answers = self.names[host]
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [
            (socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in addresses
        ]

    def unknown(self):
        raise socket.gaierror(-2, "Name or service not known")

    def create_connection(self, address, timeout=None, *rest, real=socket.create_connection, **named):
        self.connected.append(address[0])
        if address[0] in self.silent:
            raise TimeoutError("timed out")
        assert urls.is_public(ipaddress.ip_address(address[0])), address
        return real(self.server.server_address, timeout)


@pytest.fixture
def net(monkeypatch) -> Iterator[Net]:
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    net = Net(server)
    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", net.getaddrinfo)
        patch.setattr(socket, "create_connection", net.create_connection)
        yield net
    server.shutdown()
    server.server_close()


def fetch(url: str, most_bytes: int = 10**6, seconds: float = 20) -> bytes:
    return urls.fetch(url, most_bytes=most_bytes, seconds=seconds)


def test_fetches_from_the_address_that_was_checked(net, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetch("http://public.example/a picture.png?size=1 2&n=%C3%BC#part") == BODY
    (path, headers), *_ = net.server.asked
    assert path == "/a%20picture.png?size=1%202&n=%C3%BC"
    assert headers["Host"] == "public.example"
    assert headers["Accept-Encoding"] == "identity"
    assert net.connected == [PUBLIC]
    assert net.lookups[0] == "public.example"
    net.names["xn--fiq228c.example"] = [[OTHER]]
    assert fetch("HTTP://中文.example:8080/") == BODY
    assert net.server.asked[-1][1]["Host"] == "xn--fiq228c.example:8080"
    assert net.connected == [PUBLIC, OTHER]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.1", "2130706433", "0x7f.0.0.1", "0x7f000001", "0177.0.0.1", "0", "0.0.0.0", "１２７.0.0.1",
        "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.100.100.200", "168.63.129.16",
        "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "[::1]", "[::]", "[::ffff:127.0.0.1]",
        "[::ffff:a9fe:a9fe]", "[::127.0.0.1]", "[64:ff9b::10.0.0.1]", "[64:ff9b:1::8.8.8.8]", "[2002:7f00:1::]",
        "[2002:a9fe:a9fe::1]", "[2001:0:7f00:1::]", "[fe80::1]", "[fe80::1%1]", "[fc00::1]", "[fd00:ec2::254]",
        "[ff02::1]", "[2001:db8::1]", "192.0.0.192", "192.0.0.8", "192.88.99.1", "[::ffff:192.0.0.192]",
        "[64:ff9b::192.0.0.192]", "[2002:c000:c0::1]", "[2002:c058:6301::1]", "[2001:0:808:808::1]", "[2001:20::1]",
        "[3fff::1]", "[::ffff:0:8.8.8.8]", "[::8.8.8.8]", "[5f00::1]", "[fec0::1]", "[100::1]",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public_are_never_connected_to(net, address):
    with pytest.raises(UnreadableImage):
        fetch(f"http://{address}/")
    assert net.connected == []
    host = address.strip("[]").partition("%")[0]
    net.names["inside.example"] = [[host]] if host.count(".") == 3 or ":" in host else [["127.0.0.1"]]
    if host.isascii() and not host.startswith("0"):
        with pytest.raises(UnreadableImage, match=r"inside\.example is not an address of the public internet"):
            fetch("http://inside.example/")
    assert net.connected == []


@pytest.mark.parametrize("address", [PUBLIC, OTHER, "8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"])
def test_public_addresses(address):
    assert urls.is_public(ipaddress.ip_address(address))


def test_one_private_address_among_public_ones_is_enough_to_refuse(net):
    net.names["mixed.example"] = [[PUBLIC, "10.0.0.1"]]
    with pytest.raises(UnreadableImage, match="not an address of the public internet"):
        fetch("http://mixed.example/")
    assert net.connected == []


def test_a_name_that_changes_its_answer_is_asked_once(net):
    net.names["rebinding.example"] = [[PUBLIC], ["127.0.0.1"]]
    assert fetch("http://rebinding.example/") == BODY
    assert (net.lookups.count("rebinding.example"), net.connected) == (1, [PUBLIC])
    with pytest.raises(UnreadableImage, match="not an address of the public internet"):
        fetch("http://rebinding.example/")


def test_the_next_address_is_tried_where_one_is_silent(net):
    net.names["two.example"] = [[OTHER, PUBLIC]]
    net.silent = {OTHER}
    assert fetch("http://two.example/") == BODY
    assert net.connected == [OTHER, PUBLIC]
    net.silent = {OTHER, PUBLIC}
    with pytest.raises(UnreadableImage, match="did not send it within 20 seconds"):
        fetch("http://two.example/")


def test_redirects_are_checked_like_the_first_address(net):
    assert fetch("http://public.example/to//to//a.png") == BODY
    assert all("Cookie" not in headers for _, headers in net.server.asked)
    port = net.server.server_address[1]
    net.names["rebinding.example"] = [["10.0.0.1"]]
    for target in (
        f"http://127.0.0.1:{port}/secret",
        f"//[::ffff:127.0.0.1]:{port}/secret",
        "http://rebinding.example/secret",
        "file:///etc/passwd",
        "gopher://public.example/secret",
        "http://user:password@public.example/secret",
        "http://[::1",
    ):
        with pytest.raises(UnreadableImage):
            fetch(f"http://public.example/to/{target}")
    assert not [path for path, _ in net.server.asked if path.startswith("/secret")]
    assert set(net.connected) == {PUBLIC}


def test_too_many_redirects(net):
    before = len(net.server.asked)
    with pytest.raises(UnreadableImage, match="more than 3 times"):
        fetch("http://public.example/loop")
    assert len(net.server.asked) - before == 4


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd", "only http and https URLs are fetched, not file"),
        ("gopher://public.example/", "not gopher"),
        ("ftp://public.example/a.png", "not ftp"),
        ("data:image/png;base64,AAAA", "not data"),
        ("//public.example/a.png", "not this"),
        ("http://user:secret@public.example/", "user name or password"),
        ("http://public.example\\@127.0.0.1/", "user name or password"),
        ("http://public.example\r\nX-Injected: 1/", "control characters"),
        ("http:///a.png", "no valid URL"),
        ("http://public.example:0/", "no valid URL"),
        ("http://public.example:99999/", "no valid URL"),
        ("http://[::1", "no valid URL"),
        ("http://a..example/", "no valid URL"),
        ("http://public.example%2f@x/", "user name or password"),
        ("http://nobody.example/", "there is no server of the name nobody.example"),
    ],
)
def test_what_is_no_address_of_the_web(net, url, reason):
    with pytest.raises(UnreadableImage, match=reason):
        fetch(url)
    assert net.connected == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing", "the server answered 404"),
        ("nowhere", "the server answered 302"),
        ("gzip", "compressed"),
        ("large", "more than the 1 MB"),
        ("endless", "more than the 1 MB"),
        ("nonsense", "does not speak HTTP"),
        ("short", "the connection broke"),
    ],
)
def test_answers_that_are_of_no_use(net, path, reason):
    with pytest.raises(UnreadableImage, match=reason):
        fetch(f"http://public.example/{path}")


def test_every_part_is_counted_before_it_is_kept(net):
    sizes: list[int] = []
    urls.fetch("http://public.example/", most_bytes=10**6, seconds=20, count=sizes.append)
    assert sum(sizes) == len(BODY)

    def refuse(size: int) -> None:
        raise UnreadableImage("enough")

    with pytest.raises(UnreadableImage, match="enough"):
        urls.fetch("http://public.example/endless", most_bytes=10**12, seconds=20, count=refuse)


@pytest.mark.parametrize("path", ["slow", "slow-header"])
def test_the_time_limit_counts_everything(net, path):
    with pytest.raises(UnreadableImage, match=r"did not send it within 0\.5 seconds"):
        fetch(f"http://public.example/{path}", seconds=0.5)


def test_the_time_limit_counts_a_resolver_that_does_not_answer(monkeypatch):
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait() and [])
    try:
        with pytest.raises(UnreadableImage, match=r"within 0\.2 seconds"):
            fetch("http://public.example/", seconds=0.2)
    finally:
        answered.set()


def test_https_asks_for_the_name_and_believes_only_known_certificates(net, tmp_path, monkeypatch):
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days",
         "2", "-subj", "/CN=public.example", "-addext", "subjectAltName=DNS:public.example", "-keyout", key,
         "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    net.server.socket = context.wrap_socket(net.server.socket, server_side=True)
    with pytest.raises(UnreadableImage, match="certificate is not valid"):
        fetch("https://public.example/")
    monkeypatch.setattr(urls, "_trusted", lambda: ssl.create_default_context(cafile=certificate))
    assert fetch("https://public.example/") == BODY
    net.names["other.example"] = [[PUBLIC]]
    with pytest.raises(UnreadableImage, match="certificate is not valid"):
        fetch("https://other.example/")
