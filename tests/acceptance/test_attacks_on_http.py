"""Requests that HAProxy and the processes behind it might read differently.

An attack hides a second request where only one of the two would see it. The hidden request holds an
administrator's key and registers a named operation, so that it leaves a trace when it gets through;
sent openly, it does. After each attack the victim asks for its own rows over other connections, and
must get them: nothing of the attack may be left in a connection that is used again.
"""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.installation import Installation
from support.raw_http import RawAnswer, answers, exchange

#: The first test here to run waits until the installation has started.
pytestmark = pytest.mark.timeout(300)

_MARK = "smuggled"
_CANARY = "canary@globex.test"
_HEAD_TIMEOUT_S = 10
_numbers = itertools.count()


class Attacker:
    """Sends bytes to an installation, with the credential of the tenant acme."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self.place = installation.place
        self.host = f"{self.place[0]}:{self.place[1]}"
        self._victim = installation.client(installation.keys["globex"])
        self._admin = installation.client(installation.keys["admin"])
        self._clients = (self._victim, self._admin)
        made = self._victim.post(
            "/v1/tenants/globex/query",
            json={
                "query": "insert into users (id, email) values (1, $1) on conflict do nothing",
                "params": [_CANARY],
            },
        )
        assert made.status_code == 200, made.text

    def close(self) -> None:
        """Close the clients."""
        for client in self._clients:
            client.close()

    def head(self, line: str, *fields: str, key: str = "acme") -> bytes:
        """The start of a request, without the empty line that ends it."""
        credential = f"Authorization: Bearer {self._installation.keys[key]}"
        return "\r\n".join((line, f"Host: {self.host}", credential, *fields, "")).encode("latin-1")

    def last(self) -> bytes:
        """A request after which the connection ends."""
        return self.head("GET /healthz HTTP/1.1", "Connection: close") + b"\r\n"

    def hidden(self) -> bytes:
        """A whole request that would leave a trace."""
        body = json.dumps({"sql": "select 1"}).encode()
        head = self.head(
            f"PUT /v1/operations/{_MARK}_{next(_numbers)} HTTP/1.1",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            key="admin",
        )
        return head + b"\r\n" + body

    def send(self, sent: bytes) -> list[RawAnswer]:
        """The answers to an attack, none of which may be the server's fault.

        Behind it goes an open request that ends the connection, wherever the attack's own end is.
        """
        received = exchange(self.place, sent + self.last())
        assert _CANARY.encode() not in received
        found = answers(received)
        assert all(answer.status < 500 for answer in found), received[:500]
        return found

    def traces(self) -> list[str]:
        """What hidden requests have left; taken away again."""
        listed = self._admin.get("/v1/operations").json()["operations"]
        found = [item["name"] for item in listed if item["name"].startswith(_MARK)]
        for name in found:
            self._admin.delete(f"/v1/operations/{name}")
        return found

    def check_victim(self) -> None:
        """The victim gets its own answers over every connection."""
        query = {"query": "select email from users where id = 1"}
        for _ in range(4):
            answer = self._victim.post("/v1/tenants/globex/query", json=query)
            assert (answer.status_code, answer.json()["rows"]) == (200, [[_CANARY]])
        with self._installation.client(self._installation.keys["globex"]) as fresh:
            assert fresh.get("/v1/tenants/globex").json()["tenant_id"] == "globex"


@pytest.fixture(scope="module")
def attacker(installation: Installation) -> Iterator[Attacker]:
    made = Attacker(installation)
    yield made
    made.close()


@pytest.fixture(scope="module", autouse=True)
def slow(attacker: Attacker) -> Iterator[Slow]:
    made = Slow(attacker)
    yield made
    made.close()


_QUERY_LINE = "POST /v1/tenants/acme/query HTTP/1.1"
_JSON = "Content-Type: application/json"


def _framings(attacker: Attacker) -> dict[str, bytes]:
    """Attacks on where a body ends, by name. All hide one request."""
    hidden = attacker.hidden
    found: dict[str, bytes] = {}

    def add(name: str, fields: list[str], body: bytes) -> None:
        found[name] = attacker.head(_QUERY_LINE, _JSON, *fields) + b"\r\n" + body

    def length(body: bytes) -> str:
        return f"Content-Length: {len(body)}"

    chunked_end = b"0\r\n\r\n" + hidden()
    add("CL.TE", [length(chunked_end), "Transfer-Encoding: chunked"], chunked_end)
    inner = hidden()
    one_chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(inner), inner)
    add("TE.CL", ["Content-Length: 4", "Transfer-Encoding: chunked"], one_chunk)
    for name, field in {
        "xchunked": "Transfer-Encoding: xchunked",
        "blank before the colon": "Transfer-Encoding : chunked",
        "tab": "Transfer-Encoding:\tchunked",
        "vertical tab": "Transfer-Encoding: \x0bchunked",
        "folded": "Transfer-Encoding:\r\n chunked",
        "folded into another": "X: y\r\n Transfer-Encoding: chunked",
        "behind a bare line feed": "X: y\nTransfer-Encoding: chunked",
        "behind a bare carriage return": "X: y\rTransfer-Encoding: chunked",
        "identity last": "Transfer-Encoding: chunked, identity",
        "chunked twice": "Transfer-Encoding: chunked, chunked",
        "gzip first": "Transfer-Encoding: gzip, chunked",
        "quoted": 'Transfer-Encoding: "chunked"',
        "two fields": "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
        "upper case": "TRANSFER-ENCODING: CHUNKED",
        "zero byte in the value": "Transfer-Encoding: chunked\0",
        "zero byte in the name": "Transfer\0-Encoding: chunked",
        "with a parameter": "Transfer-Encoding: chunked;q=1",
        "empty": "Transfer-Encoding:",
        "with an underscore": "Transfer_Encoding: chunked",
    }.items():
        body = b"0\r\n\r\n" + hidden()
        add(f"TE {name}", [length(body), field], body)
    for name, fields in {
        "twice, different": ["Content-Length: 0", "Content-Length: {}"],
        "twice, the other way round": ["Content-Length: {}", "Content-Length: 0"],
        "a list": ["Content-Length: 0, {}"],
        "with a sign": ["Content-Length: +0"],
        "negative": ["Content-Length: -1"],
        "hexadecimal": ["Content-Length: 0x0"],
        "empty": ["Content-Length:"],
        "no number": ["Content-Length: nothing"],
        "beyond 64 bits": ["Content-Length: 18446744073709551616"],
        "with a blank inside": ["Content-Length: 0 {}"],
        "blank before the colon": ["Content-Length : {}"],
        "beyond 64 bits by a little": ["Content-Length: 18446744073709551617"],
        "with an underscore as well": ["Content_Length: 0", "Content-Length: {}"],
    }.items():
        body = hidden()
        add(f"CL {name}", [field.format(len(body)) for field in fields], body)
    for name, size in {
        "prefixed": b"0x0",
        "negative": b"-0",
        "signed": b"+0",
        "beyond 64 bits": b"1" + b"0" * 16,
        "blank first": b" 0",
        "not hexadecimal": b"zero",
        "empty": b"",
        "bare line feed in an extension": b"0;a\nb",
    }.items():
        add(f"chunk size {name}", ["Transfer-Encoding: chunked"], size + b"\r\n\r\n" + hidden())
    add("chunk ends with a line feed", ["Transfer-Encoding: chunked"], b"0\n\n" + hidden())
    add("chunk too long", ["Transfer-Encoding: chunked"], b"1\r\n{}\r\n0\r\n\r\n" + hidden())
    return found


def test_what_is_hidden_in_a_body_is_not_taken_for_a_request(attacker: Attacker, subtests: Any):
    # The control: sent openly behind another request, it leaves its trace.
    first = attacker.head("GET /healthz HTTP/1.1") + b"\r\n"
    assert [answer.status for answer in attacker.send(first + attacker.hidden())] == [200, 201, 200]
    assert len(attacker.traces()) == 1
    for name, sent in _framings(attacker).items():
        with subtests.test(name):
            found = attacker.send(sent)

            told = [(answer.status, answer.body[:80]) for answer in found]
            assert attacker.traces() == [], told
            assert len(found) <= 2
            attacker.check_victim()


def test_what_is_hidden_in_a_head_is_not_taken_for_a_request(attacker: Attacker, subtests: Any):
    hidden = attacker.hidden().decode("latin-1")
    for name, line, fields in (
        ("bare carriage returns", "GET /healthz HTTP/1.1", (f"X: y\r\r{hidden}",)),
        ("blank in the target", "GET /healthz /v1/operations HTTP/1.1", ()),
        ("zero byte in a value", "GET /healthz HTTP/1.1", ("X: a\0b",)),
        ("zero byte in a name", "GET /healthz HTTP/1.1", ("X\0: a",)),
        ("folded", "GET /healthz HTTP/1.1", ("X: a\r\n b",)),
        ("folded at the start", "GET /healthz HTTP/1.1\r\n X: a", ()),
        ("no colon", "GET /healthz HTTP/1.1", ("nonsense",)),
        ("no name", "GET /healthz HTTP/1.1", (": x",)),
        ("blank in a name", "GET /healthz HTTP/1.1", ("X Y: z",)),
        ("two hosts", "GET /healthz HTTP/1.1", ("Host: evil.test",)),
        ("a field of 64 KiB", "GET /healthz HTTP/1.1", (f"X: {'x' * 65_536}",)),
        ("a thousand fields", "GET /healthz HTTP/1.1", tuple(f"X-{i}: y" for i in range(1_000))),
        ("a target of 64 KiB", f"GET /{'x' * 65_536} HTTP/1.1", ()),
        ("HTTP/0.9", "GET /v1/tenants", ()),
        ("HTTP/3.7", "GET /healthz HTTP/3.7", ()),
        ("HTTP/2 preface", "PRI * HTTP/2.0", ()),
        ("no such protocol", "GET /healthz HTCPCP/1.0", ()),
        ("h2c", "GET /healthz HTTP/1.1", ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c")),
        (
            "websocket",
            "GET /v1/tenants/globex HTTP/1.1",
            (
                "Connection: Upgrade",
                "Upgrade: websocket",
                "Sec-WebSocket-Version: 13",
                "Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==",
            ),
        ),
        (
            "removed by Connection",
            "GET /v1/tenants/acme HTTP/1.1",
            ("Connection: close, Authorization",),
        ),
    ):
        with subtests.test(name):
            sent = attacker.head(line, *fields, "Connection: close")
            if "Connection" in "".join(fields):
                sent = attacker.head(line, *fields)
            found = attacker.send(sent + b"\r\n")

            assert len(found) <= 2
            assert attacker.traces() == []
            attacker.check_victim()


def test_lines_may_end_with_a_line_feed_for_all_alike(attacker: Attacker):
    """HAProxy takes them as RFC 9112, 2.2 allows, so what follows such a head is no secret to it.

    Whoever puts another proxy in front must have one that reads them so as well, or refuses them.
    """
    sent = attacker.head("GET /healthz HTTP/1.1") + b"X: y\n\n" + attacker.hidden()

    assert [answer.status for answer in attacker.send(sent)] == [200, 201, 200]
    assert len(attacker.traces()) == 1
    attacker.check_victim()


def test_no_spelling_of_a_target_leads_to_another_tenant(attacker: Attacker, subtests: Any):
    body = b'{"query": "select email from users"}'
    for target in (
        "/v1/tenants/acme%2f..%2fglobex/query",
        "/v1/tenants/acme/../globex/query",
        "/v1/tenants/acme/%2e%2e/globex/query",
        "/v1/tenants/acme/..%2fglobex/query",
        "/v1/tenants/acme/..;/globex/query",
        "/v1/tenants/acme/..\\globex/query",
        "/v1/tenants/acme%00/../globex/query",
        "/v1/tenants/globex%2fquery",
        "/v1/tenants/globex/query?tenant_id=acme",
        "/v1/tenants/globex/query#/v1/tenants/acme/query",
        "/v1/tenants/globex;tenant=acme/query",
        "//v1/tenants/globex/query",
        "/v1//tenants//globex//query",
        "/./v1/tenants/globex/query",
        "/V1/TENANTS/GLOBEX/QUERY",
        "/%76%31/tenants/globex/query",
        "/v1/tenants/%67lobex/query",
        "/v1/tenants/%2567lobex/query",
        "/v1/tenants/glo%E2%80%8Bbex/query",
        "/v1/tenants/globex/query\xff",
        "http://globex.test/v1/tenants/globex/query",
        "http://acme@globex.test/v1/tenants/globex/query",
        "https://x/v1/tenants/globex/query",
        "globex.test:443",
        "v1/tenants/globex/query",
        "*",
    ):
        with subtests.test(target):
            sent = attacker.head(
                f"POST {target} HTTP/1.1",
                _JSON,
                f"Content-Length: {len(body)}",
                "Connection: close",
            )
            found = attacker.send(sent + b"\r\n" + body)

            # `send` has looked for what the victim keeps.
            told = [(answer.status, answer.body[:80]) for answer in found]
            assert len(found) == 1, told
            assert 400 <= found[0].status < 500, told
    for line in ("CONNECT globex:443 HTTP/1.1", "TRACE /v1/tenants/globex HTTP/1.1"):
        (answer,) = attacker.send(attacker.head(line, "Connection: close") + b"\r\n")
        assert answer.status in (400, 405)
        assert b"Bearer" not in answer.body


def test_answers_go_to_the_credential_of_their_own_request(attacker: Attacker):
    """Requests of two tenants, one behind the other on one connection, before any is answered."""
    body = b'{"query": "select email, $1::text from users where id = 1", "params": ["%d"]}'
    sent, expected = [], []
    for number in range(40):
        tenant = ("globex", "acme", "initech")[number % 3]
        text = body % number
        head = attacker.head(
            f"POST /v1/tenants/{tenant}/query HTTP/1.1",
            _JSON,
            f"Content-Length: {len(text)}",
            key=tenant,
        )
        sent.append(head + b"\r\n" + text)
        expected.append([[_CANARY, str(number)]] if tenant == "globex" else [])

    found = answers(exchange(attacker.place, b"".join(sent) + attacker.last()))

    assert [answer.status for answer in found] == [200] * 41
    assert [json.loads(answer.body)["rows"] for answer in found[:-1]] == expected


class Slow:
    """Clients that take their time, begun early, so that no test has to wait for all of it."""

    def __init__(self, attacker: Attacker) -> None:
        body = (b"10000\r\n" + b"x" * 65_536 + b"\r\n") * 80
        sent = {
            "head": attacker.head(_QUERY_LINE),
            "body": attacker.head(_QUERY_LINE, _JSON, "Content-Length: 100") + b"\r\n{",
            "endless body": attacker.head(_QUERY_LINE, _JSON, "Transfer-Encoding: chunked")
            + b"\r\n"
            + body,
        }
        self._pool = ThreadPoolExecutor(len(sent))
        self._waiting = {
            name: self._pool.submit(exchange, attacker.place, text) for name, text in sent.items()
        }

    def statuses(self) -> dict[str, list[int]]:
        """What each was told before its connection was closed."""
        return {
            name: [answer.status for answer in answers(waiting.result(_HEAD_TIMEOUT_S * 3))]
            for name, waiting in self._waiting.items()
        }

    def close(self) -> None:
        """Wait for the threads."""
        self._pool.shutdown()


def test_bodies_that_are_wrong_or_never_come_are_the_clients_fault(attacker: Attacker, slow: Slow):
    wrong = {
        b"": 422,
        b"{": 422,
        b"\xff\xfe": 422,
        b'{"query": "select 1", "query": "select 2"}': 422,
        b"[" * 100_000: 422,
        b'{"query": "%s"}' % (b"x" * 300_000): 413,
        b"x" * (5 << 20): 413,
    }
    for body, status in wrong.items():
        head = attacker.head(
            _QUERY_LINE, _JSON, f"Content-Length: {len(body)}", "Connection: close"
        )
        (answer,) = attacker.send(head + b"\r\n" + body)
        assert answer.status == status, body[:50]
        assert answer.headers["content-type"] == "application/problem+json"
    # Each of them was answered, and then let go of.
    assert slow.statuses() == {"head": [408], "body": [408], "endless body": [413]}
    attacker.check_victim()


def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(attacker: Attacker):
    body = b'{"query": "select email from users"}'
    whole = attacker.head(_QUERY_LINE, _JSON, f"Content-Length: {len(body)}") + b"\r\n" + body
    for end in range(1, len(whole), 40):
        with socket.create_connection(attacker.place, timeout=10) as connection:
            connection.sendall(whole[:end])
    attacker.check_victim()
