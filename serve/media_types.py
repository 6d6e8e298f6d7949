"""In which form an answer is given, by the request's `Accept` (RFC 9110, 12.5.1).

Rules this module keeps:

* a form counts with the weight of the most specific range that it is in; the heaviest is given;
* of forms that weigh the same, one that is named wins over one that only a wildcard covers, and
  then the one that is offered first;
* parameters other than the weight are not compared: no form has any;
* what cannot be read matches nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum

from tenancy.data_isolation.core.errors import InvalidInputError


class MediaType(StrEnum):
    """The forms in which results of statements are given."""

    JSON = "application/json"
    NDJSON = "application/x-ndjson"
    ARROW = "application/vnd.apache.arrow.stream"


class NotAcceptableError(InvalidInputError):
    """The answer cannot be given in a form that `Accept` allows."""

    slug, status = "not-acceptable", 406


#: A header longer than that says nothing that anybody needs.
_CHARACTERS_MAX = 1_000
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_ELEMENT = re.compile(rf'(?:[^",]|{_QUOTED})+')
_RANGE = re.compile(rf"\s*({_WORD})/({_WORD})\s*((?:;[^;]*)*)\s*", re.DOTALL)
_WEIGHT = re.compile(r"(?:^|;)\s*[qQ]\s*=\s*([^;]*?)\s*(?=;|$)")
#: At most three digits behind the point (RFC 9110, 12.4.2).
_NUMBER = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")


def chosen(accept: Sequence[str]) -> MediaType:
    """The form for a request whose `Accept` headers have these values.

    Raises `NotAcceptableError`.
    """
    text = ",".join(accept)
    if not text.strip():
        return MediaType.JSON
    if len(text) > _CHARACTERS_MAX:
        raise NotAcceptableError(f"Accept is longer than {_CHARACTERS_MAX} characters")
    ranges = [item for part in _ELEMENT.findall(text) if (item := _parsed(part)) is not None]
    # The first of the best: what is offered first comes first.
    weighed = [(_weight(form, ranges), form) for form in MediaType]
    (weight, _), form = max(weighed, key=lambda item: item[0])
    if not weight:
        raise NotAcceptableError(
            f"Accept allows none of the forms that there are: {', '.join(MediaType)}"
        )
    return form


def _parsed(text: str) -> tuple[str, str, float] | None:
    """Type, subtype and weight of a media range; None for what is none."""
    found = _RANGE.fullmatch(text)
    if found is None:
        return None
    kind, subtype, parameters = found[1].lower(), found[2].lower(), found[3]
    if kind == "*" and subtype != "*":
        return None
    weight = _WEIGHT.search(parameters)
    if weight is None:
        return kind, subtype, 1.0
    if _NUMBER.fullmatch(weight[1]) is None:
        return None
    return kind, subtype, float(weight[1])


def _weight(form: MediaType, ranges: Sequence[tuple[str, str, float]]) -> tuple[float, int]:
    """The weight of the most specific range that has the form, and how specific it is."""
    kind, _, subtype = form.partition("/")
    best = (-1, 0.0)
    for given_kind, given_subtype, weight in ranges:
        if (given_kind, given_subtype) == (kind, subtype):
            specific = 2
        elif (given_kind, given_subtype) == (kind, "*"):
            specific = 1
        elif given_kind == "*":
            specific = 0
        else:
            continue
        best = max(best, (specific, weight))
    specific, weight = best
    return (weight, specific) if specific >= 0 else (0.0, -1)
