"""Problem details: stable types, no secrets, the same words where they must be the same."""

from __future__ import annotations

import json
import logging
import pickle

import pytest
from pydantic import BaseModel, ValidationError

from tenancy.data_isolation.core import errors
from tenancy.data_isolation.serve.models import BatchBody, Body
from tenancy.data_isolation.serve.problems import (
    InvalidFieldsError,
    problem,
    problem_response,
    unexpected_response,
)
from tenancy.data_isolation.serve.request_bodies import checked


def _all_errors(kind=errors.TenancyError):
    yield kind
    for derived in kind.__subclasses__():
        yield from _all_errors(derived)


@pytest.mark.parametrize("kind", sorted(set(_all_errors()), key=lambda kind: kind.__name__))
def test_every_error_becomes_a_problem_with_all_that_is_promised(kind):
    error = kind([]) if kind is InvalidFieldsError else kind()

    response = problem_response(error)
    body = json.loads(response.body)

    assert response.status_code == body["status"] == kind.status
    assert response.headers["content-type"] == "application/problem+json"
    assert body["type"] == f"urn:tenancy:problem:{kind.slug}"
    assert body["title"]
    assert body["detail"]
    assert body["retryable"] is kind.retryable


def test_the_sqlstate_is_told_where_there_is_one():
    assert problem(errors.ConstraintError("no", "23505"))["sqlstate"] == "23505"
    assert "sqlstate" not in problem(errors.ConstraintError("no"))


def test_a_missing_tenant_has_one_text_whatever_the_error_says():
    assert problem(errors.TenantNotFoundError("there is no tenant acme")) == problem(
        errors.TenantNotFoundError("globex is gone")
    )


@pytest.mark.parametrize(
    ("error", "header"),
    [
        (errors.OverloadedError(retry_after_s=0.2), "1"),
        (errors.OverloadedError(retry_after_s=2.1), "3"),
        (errors.RateLimitedError(), "1"),
        (errors.ServerUnavailableError(), "1"),
        (errors.SerializationError(retry_after_s=1), "1"),
        (errors.ConstraintError(), None),
    ],
)
def test_who_may_come_again_is_told_when(error, header):
    assert problem_response(error).headers.get("retry-after") == header


def test_who_lacks_a_credential_is_told_which_kind():
    response = problem_response(errors.UnauthenticatedError())

    assert response.headers["www-authenticate"].startswith("Bearer")


def test_an_unforeseen_error_is_logged_under_an_id_and_not_told(caplog):
    with caplog.at_level(logging.ERROR):
        response = unexpected_response(ValueError("password=hush"))

    body = json.loads(response.body)
    assert (body["status"], body["retryable"]) == (500, False)
    assert "hush" not in response.body.decode()
    assert body["instance"].startswith("urn:uuid:")
    assert body["instance"] in caplog.text
    assert "hush" in caplog.text


class _Shape(BaseModel):
    name: int


def test_wrong_fields_are_listed_without_their_values():
    with pytest.raises(ValidationError) as caught:
        _Shape.model_validate({"name": "hush"})

    told = InvalidFieldsError([("state", "odd")], what="a parameter is not right")
    assert pickle.loads(pickle.dumps(told)).detail == "a parameter is not right: state: odd"
    body = problem(InvalidFieldsError.of(caught.value, _Shape))

    assert [item["field"] for item in body["errors"]] == ["name"]
    assert "hush" not in json.dumps(body)


def _bodies() -> list[type[Body]]:
    # Imported late: they are the subclasses there are once the routes are known.
    import tenancy.data_isolation.serve.api

    assert tenancy.data_isolation.serve.api
    return sorted(Body.__subclasses__(), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("shape", _bodies())
def test_what_no_field_is_called_gets_the_names_that_there_are(shape: type[Body]):
    with pytest.raises(InvalidFieldsError) as caught:
        checked({"colour": 1}, shape)

    known = ", ".join(shape.model_fields)
    assert ("colour", f"there is no such field; the fields are {known}") in caught.value.fields


def test_within_a_list_the_names_are_those_of_its_objects():
    with pytest.raises(InvalidFieldsError) as caught:
        checked({"operations": [{"query": "", "colour": 1}]}, BatchBody)

    assert caught.value.fields == (
        ("operations.0.colour", "there is no such field; the fields are query, params"),
    )


def test_wrong_fields_survive_pickling():
    error = InvalidFieldsError([("a", "missing")])

    assert pickle.loads(pickle.dumps(error)).fields == error.fields


@pytest.mark.parametrize("kind", [errors.UnsafeRoleError, errors.UnsafeServerError])
def test_in_what_an_installation_is_not_safe_is_not_told_to_everybody(kind):
    error = kind("role tenancy_rows has BYPASSRLS; mend: alter role tenancy_rows nobypassrls")

    told = problem(error)["detail"]

    assert "tenancy_rows" not in told
    assert "tenancy doctor" in told


@pytest.mark.parametrize(
    ("value", "fields", "told"),
    [
        (
            {"operations": ["select 1", 5, None, []]},
            [(f"operations.{n}", "must be a JSON object") for n in range(4)],
            "operations.0, operations.1, operations.2 and others: must be a JSON object",
        ),
        (
            {"operations": [{"query": "select 1", "params": 5}]},
            [("operations.0.params", "must be a list or a JSON object")],
            "operations.0.params: must be a list or a JSON object",
        ),
        ({"operations": {}}, [("operations", "must be a list")], "operations: must be a list"),
        ("x", [("", "must be a JSON object")], "body: must be a JSON object"),
    ],
)
def test_what_has_to_be_there_is_said_in_words_of_json_and_once(value, fields, told):
    with pytest.raises(InvalidFieldsError) as refused:
        checked(value, BatchBody)

    assert list(refused.value.fields) == fields
    assert refused.value.detail == f"the body does not have the shape that is needed: {told}"
