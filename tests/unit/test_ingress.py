"""The configuration of HAProxy, made safe."""

from __future__ import annotations

import json

import pytest

from tenancy.data_isolation.serve.ingress import (
    IngressTls,
    UnknownConfigurationError,
    corrected,
    write_error_files,
)

_END_OF_HEAD = "\r\n\r\n"
_CONFIGURATION = """global
    # A comment about the log.
    log 127.0.0.1:514 local0 info
    stats socket /run/x/s mode 666 level admin expose-fd listeners
    maxconn 4096
defaults
    mode http
    log global
    errorfile 503 /run/x/500.http
    balance leastconn
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind 127.0.0.1:8000
    log global
    acl is_app path_beg /
    use_backend app if is_app
    default_backend default_backend
backend app
    server replica 127.0.0.1:30000 check
backend default_backend
    http-request return status 404
listen stats
  bind *:8404
  stats enable
"""


def test_nothing_but_the_endpoint_listens(tmp_path):
    found = corrected(_CONFIGURATION, tmp_path)

    assert [line.split()[1] for line in found.splitlines() if "bind" in line] == ["127.0.0.1:8000"]
    assert "9101" not in found
    assert "8404" not in found


def test_the_administration_socket_is_for_its_owner(tmp_path):
    assert "mode 600 level admin" in corrected(_CONFIGURATION, tmp_path)


def test_requests_are_reported_to_nobody(tmp_path):
    lines = [line.strip() for line in corrected(_CONFIGURATION, tmp_path).splitlines()]

    assert not [line for line in lines if line.startswith("log ")]


def test_headers_that_steer_serve_are_removed_before_a_backend_is_chosen(tmp_path):
    lines = [line.strip() for line in corrected(_CONFIGURATION, tmp_path).splitlines()]
    removals = [i for i, line in enumerate(lines) if line.startswith("http-request del-header")]

    assert len(removals) == 7
    assert max(removals) < lines.index("use_backend app if is_app")
    assert lines.index("use_backend app if is_app") < lines.index("default_backend default_backend")


def test_what_passes_for_another_request_is_refused_before_a_backend_is_chosen(tmp_path):
    lines = [line.strip() for line in corrected(_CONFIGURATION, tmp_path).splitlines()]
    refusals = [line for line in lines if line.startswith("http-request return status 400")]
    length, target = sorted(refusals, key=lambda line: "path_beg" in line)

    assert "hdr Connection close" in length
    assert "!{ req.fhdr(content-length) -m reg ^[0-9]{1,15}$ }" in length
    assert target.endswith("if !{ path_beg / }")
    for line in refusals:
        assert f"content-type application/problem+json file {tmp_path}/400.json" in line
        assert lines.index(line) < lines.index("use_backend app if is_app")


def test_errors_of_its_own_are_problem_details(tmp_path):
    write_error_files(tmp_path)
    found = corrected(_CONFIGURATION, tmp_path)

    for status in (400, 408, 502, 503, 504):
        assert f"errorfile {status} {tmp_path}/{status}.http" in found
        head, _, body = (tmp_path / f"{status}.http").read_bytes().decode().partition(_END_OF_HEAD)
        assert f"HTTP/1.1 {status} " in head
        assert f"Content-Length: {len(body)}" in head
        assert json.loads(body)["status"] == status
    assert "/run/x/500.http" not in found
    assert json.loads((tmp_path / "405.json").read_text())["status"] == 405


@pytest.mark.parametrize(
    ("host", "bound"), [("0.0.0.0", "0.0.0.0:8000"), ("::1", "[::1]:8000"), ("10.0.0.1", None)]
)
def test_the_endpoint_listens_where_it_is_wanted_and_nothing_else_moves(host, bound, tmp_path):
    found = corrected(_CONFIGURATION, tmp_path, host)

    assert f"bind {bound or f'{host}:8000'}\n" in found
    assert "server replica 127.0.0.1:30000" in found


def test_while_there_is_no_application_everything_can_be_tried_again(tmp_path):
    found = corrected(_CONFIGURATION, tmp_path)

    assert "return status 404" not in found
    assert f"return status 503 content-type application/problem+json file {tmp_path}/503" in found


def test_what_follows_stays_as_it_was(tmp_path):
    found = corrected(_CONFIGURATION, tmp_path)

    assert "    server replica 127.0.0.1:30000 check\n" in found
    assert "    maxconn 4096\n" in found


def test_correcting_twice_changes_nothing_more_that_matters(tmp_path):
    once = corrected(_CONFIGURATION, tmp_path)

    assert sorted(set(corrected(once, tmp_path).splitlines())) == sorted(set(once.splitlines()))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("frontend http_frontend", "frontend something_else"),
        ("listen stats", "listen figures"),
        ("mode 666", "mode 777"),
        ("global\n", "    \n"),
    ],
)
def test_a_configuration_of_another_shape_is_not_used(old, new, tmp_path):
    with pytest.raises(UnknownConfigurationError):
        corrected(_CONFIGURATION.replace(old, new), tmp_path)


def test_with_a_certificate_the_endpoint_and_nothing_else_speaks_tls(tmp_path):
    tls = IngressTls(certificate=tmp_path / "endpoint.pem", hsts_s=60)
    found = corrected(_CONFIGURATION, tmp_path, "0.0.0.0", tls)
    lines = [line.strip() for line in found.splitlines()]

    [bound] = [line for line in lines if line.startswith("bind")]
    assert bound.startswith(f'bind 0.0.0.0:8000 ssl crt "{tmp_path}/endpoint.pem" ssl-min-ver TLS')
    assert 'http-after-response set-header Strict-Transport-Security "max-age=60"' in lines
    assert lines.index("http-request set-header X-Forwarded-Proto https") < lines.index(
        "use_backend app if is_app"
    )
    # Serve calls the launcher again with what it has corrected before.
    again = corrected(found, tmp_path, None, tls)
    assert sorted(set(again.splitlines())) == sorted(set(found.splitlines()))


def test_without_one_there_is_nothing_of_tls(tmp_path):
    assert IngressTls.of({}) is None
    found = corrected(_CONFIGURATION, tmp_path)
    assert "Strict-Transport" not in found
    assert " ssl" not in found
