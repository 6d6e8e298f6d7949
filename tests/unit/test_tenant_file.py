"""Files of tenants to make."""

from __future__ import annotations

import pytest

from tenancy.data_isolation.core.errors import InvalidInputError
from tenancy.data_isolation.serve.tenant_file import read_tenants

DEFAULTS = {"tenant_type": "standard"}


def read(text: str, **defaults: object):
    return list(read_tenants(text.splitlines(keepends=True), {**DEFAULTS, **defaults}))


def test_a_line_says_what_is_special_about_its_tenant():
    lines = read(
        "\ufefftenant_id,tenant_type,isolation_level,region,compliance,metadata\r\n"
        'acme,premium,row,,gdpr; hipaa,"{""size_rows"": 5}"\r\n'
        "\r\n"
        "globex,,,europe,,\r\n"
    )

    assert [line.body for line in lines] == [
        {
            "tenant_id": "acme",
            "tenant_type": "premium",
            "isolation_level": "row",
            "compliance": ["gdpr", "hipaa"],
            "metadata": {"size_rows": 5},
        },
        {"tenant_id": "globex", "tenant_type": "standard", "region": "europe"},
    ]
    assert [line.number for line in lines] == [2, 4]


def test_options_hold_where_a_line_says_nothing():
    (first, second) = read(
        "tenant_id,isolation_level\na,\nb,schema\n", isolation_level="row", compliance=["gdpr"]
    )

    assert first.body is not None
    assert second.body is not None
    assert first.body["isolation_level"] == "row"
    assert second.body["isolation_level"] == "schema"
    assert first.body["compliance"] == second.body["compliance"] == ["gdpr"]


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        ("a,gold,,", "tenant_type"),
        ("a,,cell,", "isolation_level"),
        ("a,,,{", "metadata"),
        ('a,,,"[1]"', "metadata"),
        ("a,,,,", "5 cells for 4 columns"),
        (",free,,", "tenant_id"),
    ],
)
def test_what_is_wrong_with_a_line_is_told_with_it_and_the_others_are_read(cells, told):
    columns = "tenant_id,tenant_type,isolation_level,metadata"

    before, wrong, after = read(f"{columns}\nb,,,\n{cells}\nc,,,\n")

    assert before.error is None
    assert after.error is None
    assert (wrong.number, wrong.body) == (3, None)
    assert told in (wrong.error or "")


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_line_is_told_that_is_not_in_utf_8(number):
    lines = ["tenant_id,region\n", "a,x\n", "b,y\n"]
    lines[number - 1] = lines[number - 1].replace(",", "\udce9,")

    with pytest.raises(InvalidInputError, match=f"line {number} is not in UTF-8"):
        list(read_tenants(lines, DEFAULTS))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name\nacme\n",
        "tenant_id,colour\nacme,red\n",
        "tenant_id,tenant_id\nacme,acme\n",
        "tenant_type\nfree\n",
        'tenant_id\n"acme\n',
    ],
)
def test_what_is_no_such_file_is_refused(text):
    with pytest.raises(InvalidInputError):
        read(text)
