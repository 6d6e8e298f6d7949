"""Histories of what concurrent clients of tenants saw, and checkers that say what is wrong in them.

::

    await engine.apply_migration("0001_history", statements.TABLES)
    trial = await run_trial(engine, ["acme"], seconds=5, nemesis=moves, plan=Plan(rate_per_s=500))
    assert trial.anomalies == [], str(trial)

`workload` has the clients, `nemesis` what happens to them, `trial` puts them together; a history is
a list of `call.Call`, and `check` runs all checkers over one.
"""
