"""Which form an answer has, by `Accept` (RFC 9110, 12.5.1)."""

from __future__ import annotations

import pytest

from tenancy.data_isolation.serve.media_types import MediaType, NotAcceptableError, chosen

_JSON, _NDJSON, _ARROW = MediaType


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ([], _JSON),
        ([""], _JSON),
        (["*/*"], _JSON),
        (["application/*"], _JSON),
        (["application/json"], _JSON),
        (["application/json; charset=utf-8"], _JSON),
        (["application/x-ndjson"], _NDJSON),
        (["APPLICATION/X-NDJSON"], _NDJSON),
        (["application/vnd.apache.arrow.stream"], _ARROW),
        # What is named wins over what a wildcard covers.
        (["application/x-ndjson, */*"], _NDJSON),
        (["*/*, application/vnd.apache.arrow.stream"], _ARROW),
        # Of equals, the one that is offered first; their order says nothing.
        (["application/x-ndjson, application/json"], _JSON),
        (["application/x-ndjson;q=0.9, application/json;q=0.8"], _NDJSON),
        (["application/x-ndjson;q=0.1, */*;q=0.5"], _JSON),
        (["application/x-ndjson ; Q=0.5 , application/json;q=0.4"], _NDJSON),
        # The most specific range counts, not the heaviest.
        (["application/json;q=0, */*"], _NDJSON),
        (["application/json;q=0.0, application/x-ndjson;q=0, */*;q=0.1"], _ARROW),
        (["application/json;q=0.2, application/*;q=0.1"], _JSON),
        # Several headers are one list.
        (["text/html", "application/x-ndjson"], _NDJSON),
        # A comma in quotes ends no range; what cannot be read matches nothing.
        (['text/html;x="a,b", application/x-ndjson'], _NDJSON),
        (["nonsense, application/x-ndjson;q=0.5"], _NDJSON),
        (["application/json;q=2, application/x-ndjson;q=0.001"], _NDJSON),
    ],
)
def test_the_heaviest_form_is_given(accept, form):
    assert chosen(accept) is form


@pytest.mark.parametrize(
    "accept",
    [
        "text/html",
        "*/*;q=0",
        "application/json;q=0",
        "application/json;q=0.0001",
        "application/json;q=x",
        "*/json",
        "nonsense",
        "application/problem+json",
        '"' * 900,
        "application/json," * 100,
    ],
)
def test_what_cannot_be_given_is_refused_with_the_forms_that_can(accept):
    with pytest.raises(NotAcceptableError, match=r"application/x-ndjson|longer") as refused:
        chosen([accept])

    assert refused.value.status == 406
