"""The command line's way to the runtime: HTTP, with the administrator's key."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.crypto import api_key_id
from tenancy.data_isolation.core.errors import InvalidInputError
from tenancy.data_isolation.engine.state_directory import file_errors, replace_file
from tenancy.data_isolation.serve.endpoint import Endpoint
from tenancy.data_isolation.serve.json_documents import dump_json, parse_json
from tenancy.data_isolation.serve.runtime_state import Phase, RuntimeDirectory, RuntimeState
from tenancy.data_isolation.serve.terminal import CommandError

_CONNECT_TIMEOUT_S = 5.0
#: A little more than the server takes at most.
_MARGIN_S = 10.0
_ANSWER_DEPTH_MAX = 2_000
_UP = "start it with `tenancy up`"


class AnswerError(CommandError):
    """The runtime answered with a problem (RFC 9457). The fields are the problem's own."""

    def __init__(self, problem: Mapping[str, Any], retry_after_s: float = 0.0) -> None:
        sqlstate = problem.get("sqlstate")
        told = f" (SQLSTATE {sqlstate})" if sqlstate else ""
        super().__init__(f"{problem['detail']}{told}")
        #: The last part of the problem's type.
        self.slug = str(problem.get("type")).rpartition(":")[2]
        self.sqlstate = sqlstate
        #: Whether the same request may succeed when it is sent again, and how long to wait first.
        self.retryable = problem.get("retryable") is True
        self.retry_after_s = retry_after_s


class RuntimeClient:
    """A connection to the runtime of one `TENANCY_HOME`. Use it as a context."""

    def __init__(self, endpoint: Endpoint, key: str, settings: Settings) -> None:
        self._url = endpoint.url
        self._name = endpoint.name
        context = endpoint.context()
        self._timeout_s = (
            settings.statement_timeout_ms + settings.connection_wait_ms
        ) / 1000 + _MARGIN_S
        self._client = httpx.Client(
            base_url=endpoint.local_url,
            verify=True if context is None else context,
            headers={"Authorization": f"Bearer {key}", "Host": endpoint.host},
            timeout=httpx.Timeout(self._timeout_s, connect=_CONNECT_TIMEOUT_S),
            # Our own machine: a proxy of the environment has no part in this.
            trust_env=False,
        )

    @classmethod
    def connect(cls, settings: Settings) -> RuntimeClient:
        """The runtime that runs now; `CommandError` when none does."""
        state = running_state(settings)
        return cls(state.endpoint(), _admin_key(state), settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def get(self, path: str, *, timeout_s: float | None = None, **params: Any) -> Any:
        """What is at that path."""
        given = {name: value for name, value in params.items() if value is not None}
        return self._send("GET", path, params=given, timeout_s=timeout_s)

    def post(
        self,
        path: str,
        body: Any = None,
        *,
        timeout_s: float | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        """The answer to a body."""
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        return self._send("POST", path, body=body, timeout_s=timeout_s, headers=headers)

    def put(self, path: str, body: Any) -> Any:
        """The answer to a body."""
        return self._send("PUT", path, body=body)

    def delete(self, path: str, *, timeout_s: float | None = None) -> None:
        """Remove what is at that path."""
        self._send("DELETE", path, timeout_s=timeout_s)

    def _send(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, Any] | None = None,
        body: Any = None,
        timeout_s: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> Any:
        content = None if body is None else dump_json(body)
        kind = {} if content is None else {"Content-Type": "application/json"}
        try:
            response = self._client.request(
                method,
                path,
                params=params,
                content=content,
                headers=kind | (headers or {}),
                # The certificate is for the name of the endpoint, and not for this machine.
                extensions={"sni_hostname": self._name},
                timeout=httpx.Timeout(timeout_s or self._timeout_s, connect=_CONNECT_TIMEOUT_S),
            )
        except httpx.ConnectError as error:
            if _is_about_certificate(error):
                raise CommandError(
                    f"the certificate at {self._url} is not accepted",
                    "`tenancy status` says which CA is expected to have signed it",
                ) from None
            raise CommandError(
                f"the runtime does not answer at {self._url}", "`tenancy status` says more"
            ) from None
        except httpx.TimeoutException:
            raise CommandError(
                f"the runtime did not answer in time at {self._url}",
                "whether anything was done is not known; look before you try again",
            ) from None
        except httpx.HTTPError as error:
            raise CommandError(
                f"the connection to the runtime broke ({type(error).__name__})",
                "whether anything was done is not known; look before you try again",
            ) from None
        return _answer(response)


def _is_about_certificate(error: BaseException) -> bool:
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, ssl.SSLCertVerificationError):
        seen = seen.__cause__ or seen.__context__
    return seen is not None


def running_state(settings: Settings) -> RuntimeState:
    """The state of the runtime that runs now; `CommandError` when none does."""
    state = RuntimeDirectory(settings.home).present()
    match state.state:
        case Phase.STOPPED:
            raise CommandError(f"nothing runs under {settings.home}", _UP)
        case Phase.STARTING | Phase.STOPPING:
            raise CommandError(
                f"the runtime is {state.state}", "`tenancy up` waits until it is ready"
            )
        case Phase.RUNNING | Phase.DEGRADED:
            if state.url is None:
                raise CommandError("the runtime has no HTTP endpoint now", "`tenancy status`")
            return state


def segment(text: str) -> str:
    """A text as one part of a path."""
    # A dot alone would be taken for a way in the tree of paths.
    return quote(text, safe="") if text.strip(".") else quote(text, safe="").replace(".", "%2E")


def keep_own_key(settings: Settings, key: str) -> Path | None:
    """Put a rotated key in the place of the administrator's, if it is that one; the file then.

    Without it, who rotates the key that these commands use would lock them out.
    """
    state = running_state(settings)
    path = Path(state.admin_key_file or os.devnull)
    if api_key_id(_admin_key(state)) != api_key_id(key):
        return None
    with file_errors(path):
        replace_file(path, key.encode() + b"\n")
    return path


def _admin_key(state: RuntimeState) -> str:
    path = Path(state.admin_key_file or os.devnull)
    try:
        return path.read_text().strip()
    except OSError as error:
        raise CommandError(
            f"the administrator's key in {path} cannot be read: {error.strerror}",
            "run this as the user who ran `tenancy up`",
        ) from None


def _answer(response: httpx.Response) -> Any:
    if response.status_code == httpx.codes.NO_CONTENT:
        return None
    try:
        value = parse_json(response.content, depth_max=_ANSWER_DEPTH_MAX)
    except InvalidInputError as error:
        if response.is_success:
            raise CommandError(f"the runtime's answer cannot be read: {error.detail}") from None
        value = None
    if response.is_success:
        return value
    if isinstance(value, dict) and isinstance(value.get("detail"), str):
        raise AnswerError(value, _seconds(response.headers.get("Retry-After")))
    raise CommandError(f"the runtime answered with status {response.status_code}")


def _seconds(text: str | None) -> float:
    """What `Retry-After` says; 0 for a date or nothing."""
    return float(text) if text is not None and text.isdecimal() else 0.0
