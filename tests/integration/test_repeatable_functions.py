"""Functions whose result may be kept are those that the server's own catalog knows to be steady."""

from __future__ import annotations

import asyncpg
from support.postgres import PostgresServer

from tenancy.data_isolation.engine.guard_rules import ALLOW
from tenancy.data_isolation.engine.repeatable import _CHANGING

_BY_NAME = """
select proname, array_agg(distinct provolatile::text) as kinds
from pg_proc
where pronamespace = 'pg_catalog'::regnamespace and proname = any($1)
group by proname
"""

#: Stable for what a session is set to, which tenants cannot change, or for the schema, whose
#: version is a part of what is kept; none reads a clock. What a release adds is looked at first.
STEADY = frozenset(
    {
        "array_to_json",
        "array_to_string",
        "concat",
        "concat_ws",
        "convert",
        "convert_from",
        "convert_to",
        "date",
        "date_add",
        "date_part",
        "date_subtract",
        "date_trunc",
        "enum_first",
        "enum_last",
        "enum_range",
        "extract",
        "format",
        "generate_series",
        "get_current_ts_config",
        "json_agg",
        "json_agg_strict",
        "json_build_array",
        "json_build_object",
        "json_object_agg",
        "json_object_agg_strict",
        "json_object_agg_unique",
        "json_object_agg_unique_strict",
        "json_to_tsvector",
        "jsonb_agg",
        "jsonb_agg_strict",
        "jsonb_build_array",
        "jsonb_build_object",
        "jsonb_object_agg",
        "jsonb_object_agg_strict",
        "jsonb_object_agg_unique",
        "jsonb_object_agg_unique_strict",
        "jsonb_path_exists_tz",
        "jsonb_path_match_tz",
        "jsonb_path_query_array_tz",
        "jsonb_path_query_first_tz",
        "jsonb_path_query_tz",
        "jsonb_to_tsvector",
        "length",
        "make_timestamptz",
        "overlaps",
        "phraseto_tsquery",
        "plainto_tsquery",
        "quote_literal",
        "quote_nullable",
        "row_to_json",
        "timezone",
        "to_char",
        "to_date",
        "to_json",
        "to_jsonb",
        "to_number",
        "to_timestamp",
        "to_tsquery",
        "to_tsvector",
        "ts_headline",
        "websearch_to_tsquery",
    }
)


async def test_what_the_catalog_calls_volatile_is_never_kept(postgres_server: PostgresServer):
    connection = await asyncpg.connect(postgres_server.admin_dsn)
    try:
        rows = await connection.fetch(_BY_NAME, sorted(ALLOW.functions))
    finally:
        await connection.close()
    of_kind = {kind: {row["proname"] for row in rows if kind in row["kinds"]} for kind in "vs"}

    assert {"random", "clock_timestamp"} <= of_kind["v"]
    assert of_kind["v"] - _CHANGING == set()
    assert of_kind["s"] - _CHANGING - STEADY == set()
    # It leaves something in the session, and so never comes as far as that.
    assert "setseed" not in ALLOW.functions
