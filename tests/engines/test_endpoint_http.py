"""Only the named server is called, over verified TLS; what may pass is tried again, and no key is shown."""

from __future__ import annotations

import datetime
import logging
import socket
import ssl
import time
from email.utils import format_datetime
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest

from hemorrhage.engines import endpoint_http
from hemorrhage.engines.endpoint_http import Client, EndpointError, LostError, RejectedError, check_url, read_key
from tests.engines.lying_server import Lying, Server, Table, pieces, serving

KEY = "sk-very-secret-0123456789"


def lying(*faults: str) -> Lying:
    return Lying(Table(), pieces(64), faults=frozenset(faults))


def answering(monkeypatch: pytest.MonkeyPatch, *answers: httpx.Response | Exception, **settings: object) -> Client:
    """A client whose requests get these answers, one after the other, and the last from then on."""
    left = list(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        given = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(given, Exception):
            raise given
        return httpx.Response(given.status_code, headers=given.headers, content=given.content)

    client = Client("http://127.0.0.1:1", **settings)  # type: ignore[arg-type]
    client._client = httpx.Client(transport=httpx.MockTransport(answer))
    monkeypatch.setattr(time, "sleep", lambda seconds: pauses.append(seconds))
    clock = [100.0]
    pauses: list[float] = []

    def now() -> float:
        clock[0] += sum(pauses)
        pauses.clear()
        return clock[0]

    monkeypatch.setattr(time, "monotonic", now)
    client.clock = clock  # type: ignore[attr-defined]
    return client


OK = httpx.Response(200, json={"fine": True})


@pytest.mark.parametrize(
    "passing",
    [
        httpx.Response(429),
        httpx.Response(500),
        httpx.Response(503, text="busy"),
        httpx.ReadTimeout("late"),
        httpx.ConnectError("refused"),
        httpx.RemoteProtocolError("gone"),
        httpx.ReadError("reset"),
    ],
)
def test_what_may_pass_is_tried_again(monkeypatch: pytest.MonkeyPatch, passing: httpx.Response | Exception) -> None:
    client = answering(monkeypatch, passing, passing, OK)
    assert client.post("/x", {}) == {"fine": True}
    assert client.requests == 3
    with pytest.raises(LostError, match="6 times; run again to resume"):
        answering(monkeypatch, passing).post("/x", {})


@pytest.mark.parametrize(("header", "least", "most"), [("7", 7, 7), ("0", 0, 0), ("soon", 0.3, 0.7), (None, 0.3, 0.7)])
def test_retry_after_is_obeyed(monkeypatch: pytest.MonkeyPatch, header: str | None, least: float, most: float) -> None:
    client = answering(monkeypatch, httpx.Response(429, headers={"Retry-After": header} if header else {}), OK)
    before = time.monotonic()
    client.get("/x")
    assert least <= time.monotonic() - before <= most


def test_a_date_is_a_retry_after_too(monkeypatch: pytest.MonkeyPatch) -> None:
    date = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=20)
    client = answering(monkeypatch, httpx.Response(503, headers={"Retry-After": format_datetime(date, True)}), OK)
    before = time.monotonic()
    client.get("/x")
    assert 17 <= time.monotonic() - before <= 20


def test_pauses_grow_up_to_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    client = answering(monkeypatch, *[httpx.Response(500)] * 11, OK, attempts=12)
    before = time.monotonic()
    client.get("/x")
    total = time.monotonic() - before
    expected = sum(min(0.5 * 2**attempt, 30) for attempt in range(11))
    assert 0.7 * expected < total < 1.3 * expected


def test_a_wait_beyond_the_deadline_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    client = answering(monkeypatch, httpx.Response(429, headers={"Retry-After": "3600"}))
    client.deadline = time.monotonic() + 60
    with pytest.raises(LostError, match="asks to wait 3600 s, which the time budget does not allow"):
        client.get("/x")
    client.deadline = time.monotonic() - 1
    with pytest.raises(LostError, match="the time budget is used up"):
        client.get("/x")


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_a_no_is_not_tried_again(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    for said in ({"error": {"message": "top is too high"}}, {"detail": "top is too high"}, "top is too high"):
        client = answering(monkeypatch, httpx.Response(status, json=said))
        with pytest.raises(RejectedError, match=f"answers {status}: top is too high"):
            client.get("/x")
        assert client.requests == 1


def test_a_redirect_is_not_followed() -> None:
    message = r"answers with a redirect \(307\), which is not followed"
    with (
        serving(served := lying("redirect")) as url,
        Client(url) as client,
        pytest.raises(EndpointError, match=message),
    ):
        client.post("/v1/completions", {"a": 1})
    assert len(served.seen) == 1


def test_proxies_and_netrc_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret")
    monkeypatch.setenv("NETRC", str(netrc))
    with serving(served := lying()) as url, Client(url) as client:
        client.post("/v1/completions", {"prompt": [1, 2], "max_tokens": 1})
    assert "Authorization" not in served.headers[0]


def certificate(folder: Path) -> Path:
    """A file with a certificate of 127.0.0.1, which signed itself, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tiny")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.TraditionalOpenSSL
    secret = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    file = folder / "tiny.pem"
    file.write_bytes(secret + signed.public_bytes(serialization.Encoding.PEM))
    return file


def test_tls_is_verified(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pem = certificate(tmp_path)
    monkeypatch.setenv("TINY_KEY", KEY)
    server = Server(0, lying())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with serving(server.lying, server) as url:
        url = url.replace("http:", "https:")
        endpoint_http._tls.cache_clear()
        with Client(url, "TINY_KEY") as client, pytest.raises(EndpointError, match="TLS failed"):
            client.get("/v1/models")
        assert server.lying.headers == []
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        endpoint_http._tls.cache_clear()
        with Client(url, "TINY_KEY") as client:
            client.post("/v1/completions", {"prompt": [1, 2], "max_tokens": 1})
    endpoint_http._tls.cache_clear()
    assert server.lying.headers[0]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "said",
    [KEY, f"your key {KEY} is wrong", f'{{"error": "{KEY}"}}', f"a\x1b[31m{KEY}\n{KEY}"],
)
@pytest.mark.parametrize("status", [400, 429, 500])
def test_a_server_that_repeats_the_key_is_masked(
    said: str, status: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TINY_KEY", KEY)
    client = answering(monkeypatch, httpx.Response(status, text=said), key_env="TINY_KEY", attempts=2)
    with pytest.raises(EndpointError) as raised:
        client.get("/x")
    assert KEY not in str(raised.value)
    assert str(raised.value).isprintable()
    assert raised.value.__cause__ is None
    assert KEY not in caplog.text
    assert KEY not in repr(client)


def test_a_long_message_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    client = answering(monkeypatch, httpx.Response(400, text="x" * 100_000))
    with pytest.raises(RejectedError) as raised:
        client.get("/x")
    assert len(str(raised.value)) < 400


def test_an_endless_answer_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_http, "LARGEST_ANSWER", 1000)
    with pytest.raises(EndpointError, match="an answer is larger than"):
        answering(monkeypatch, httpx.Response(200, text="1" * 2000)).get("/x")


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "[::1]:8000", "127.0.0.2"])
def test_a_key_goes_to_this_machine_without_tls(host: str) -> None:
    check_url(f"http://{host}", has_key=True)


@pytest.mark.parametrize("host", ["example.org", "10.0.0.1", "127.0.0.1.example.org", "localhost.example.org"])
def test_a_key_goes_to_no_other_machine_without_tls(host: str) -> None:
    check_url(f"https://{host}", has_key=True)
    with pytest.raises(EndpointError, match="https only"):
        check_url(f"http://{host}", has_key=True)


@pytest.mark.parametrize("url", ["", "127.0.0.1:80", "file:///etc/passwd", "http://", "http://a:b@h", "http://h/?k=s"])
def test_a_url_that_cannot_be_called_is_one_line_without_secrets(url: str) -> None:
    with pytest.raises(EndpointError) as raised:
        check_url(url)
    assert "a:b" not in str(raised.value)
    assert "k=s" not in str(raised.value)


def test_a_key_that_is_not_there_is_one_line_with_the_variables_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINY_KEY", raising=False)
    with pytest.raises(EndpointError, match="the environment variable TINY_KEY is empty"):
        Client("http://127.0.0.1", "TINY_KEY")
    monkeypatch.setenv("TINY_KEY", "a\nb")
    with pytest.raises(EndpointError, match="characters that no header may have") as raised:
        read_key("TINY_KEY")
    assert "a\nb" not in str(raised.value)
    assert read_key(None) is None


def test_no_connection_is_left_open() -> None:
    with serving(lying()) as url:
        with Client(url) as client:
            client.get("/v1/models")
        assert client._client.is_closed
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) != 0
