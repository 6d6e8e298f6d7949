"""Results that are kept: given while they are current, and by whom, and what else happens."""

from __future__ import annotations

import pytest
from support.caching import again, caching, kept
from support.engines import TABLES, ask, make_tenant

pytestmark = pytest.mark.migrated("0001_users", TABLES)

COUNT = "select count(*) from users"


async def test_a_result_is_given_again_until_something_is_written(install, own_redis):
    async with caching(install, own_redis) as engine:
        await make_tenant(engine)
        await kept(engine)
        assert (await again(engine, "acme", COUNT)) [1] == "misses"
        assert (await again(engine, "acme", COUNT)) [1] == "hits_memory"
        await ask(engine, "acme", "insert into users (id, email) values (9, 'x')")
        result, how = await again(engine, "acme", COUNT)
        assert result.rows == [[4]]
        assert how == "misses stale_avoided"
        print(engine.results.document())
