"""What the command prints, and its exit statuses, as far as no runtime is needed."""

from __future__ import annotations

import json

import pytest

from tenancy.data_isolation.serve.cli import run
from tenancy.data_isolation.serve.runtime_client import RuntimeClient, segment
from tenancy.data_isolation.serve.terminal import print_error, print_table, visible


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("TENANCY_HOME", str(tmp_path / "home"))


_NEED_A_RUNTIME = [
    ["tenant", "list"],
    ["tenant", "show", "acme"],
    ["tenant", "create", "acme"],
    ["tenant", "suspend", "acme"],
    ["tenant", "resume", "acme"],
    ["tenant", "erase", "acme", "--yes"],
    ["tenant", "delete", "acme", "--yes"],
    ["tenant", "export", "acme", "--output", "rows"],
    ["sql", "acme", "select 1"],
    ["schema", "status"],
    ["key", "list"],
    ["key", "create", "--admin"],
    ["key", "revoke", "x"],
    ["operation", "list"],
    ["operation", "set", "x", "select 1"],
    ["operation", "remove", "x"],
]


@pytest.mark.parametrize("arguments", _NEED_A_RUNTIME, ids=" ".join)
def test_without_a_runtime_a_command_says_how_to_start_one(arguments, capsys):
    assert run(arguments) == 1

    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines()[0].startswith("error: nothing runs under")
    assert "`tenancy up`" in told.err.splitlines()[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["tenant"],
        ["tenant", "fly"],
        ["tenant", "create"],
        ["tenant", "create", "acme", "--level", "cell"],
        ["tenant", "create", "acme", "--type", "gold"],
        ["tenant", "create", "acme", "--metadata", "[]"],
        ["tenant", "create", "acme", "--metadata", "{"],
        ["tenant", "list", "--limit", "0"],
        ["tenant", "erase", "acme"],
        ["tenant", "delete", "acme"],
        ["tenant", "export", "acme"],
        ["tenant", "export", "--output", "rows"],
        ["status", "--colour"],
        ["sql", "acme"],
        ["sql", "acme", "select 1", "--params", "{"],
        ["sql", "acme", "select 1", "--params", "5"],
        ["sql", "acme", "select 1", "--params", "[]", "--param", "x"],
        ["key", "create"],
        ["key", "create", "--admin", "--tenant", "acme"],
        ["up", "--timeout", "0"],
    ],
    ids=" ".join,
)
def test_wrong_usage_has_a_status_of_its_own_and_no_traceback(arguments, capsys):
    assert run(arguments) == 2

    told = capsys.readouterr()
    assert told.out == ""
    assert told.err
    assert "Traceback" not in told.err


def test_a_wrong_setting_is_named(monkeypatch, capsys):
    monkeypatch.setenv("TENANCY_HTTP_PORT", "many")

    assert run(["status"]) == 1
    assert "TENANCY_HTTP_PORT" in capsys.readouterr().err


def test_settings_are_listed_also_for_whoever_has_misspelt_one(monkeypatch, capsys):
    monkeypatch.setenv("TENANCY_HTP_PORT", "1")

    assert run(["status"]) == 1
    assert "`tenancy settings` lists all" in capsys.readouterr().err
    assert run(["settings", "--json"]) == 1
    told = capsys.readouterr()
    document = json.loads(told.out)
    listed = document["settings"]
    assert {"variable": "TENANCY_HTTP_PORT", "default": 8000, "set": None} in listed
    assert {"variable": "TENANCY_FREE_LOCKS_MAX", "default": 500, "set": None} in listed
    (problem,) = document["problems"]
    assert problem.startswith("TENANCY_HTP_PORT is not a setting; did you mean TENANCY_HTTP_PORT ")
    assert told.err == f"error: {problem}\n"


def test_everything_that_is_wrong_with_settings_is_told_at_once(monkeypatch, capsys):
    monkeypatch.setenv("TENANCY_HTP_PORT", "1")
    monkeypatch.setenv("TENANCY_HTTP_PORT", "70000")
    monkeypatch.setenv("TENANCY_DATABASE", "")

    assert run(["settings"]) == 1
    told = capsys.readouterr()
    errors = [line for line in told.err.splitlines() if line.startswith("error: ")]
    assert [line.split()[1] for line in errors] == [
        "TENANCY_DATABASE",
        "TENANCY_HTP_PORT",
        "TENANCY_HTTP_PORT",
    ]
    assert "TENANCY_STATEMENT_TIMEOUT_MS" in told.out


def test_settings_that_do_not_go_together_are_told(monkeypatch, capsys):
    monkeypatch.setenv("TENANCY_SCHEMA_PROMOTE_ROWS", "5000000")
    assert run(["settings", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []
    monkeypatch.setenv("TENANCY_SCHEMA_DEMOTE_ROWS", "6000000")
    assert run(["settings", "--json"]) == 1
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert "it must be below TENANCY_SCHEMA_PROMOTE_ROWS" in problem


def test_settings_tell_what_is_set_but_no_secret(monkeypatch, capsys):
    monkeypatch.setenv("TENANCY_HTTP_PORT", "8100")
    secret = "5e5a3e" + "00" * 29
    for name in ("MASTER_KEY", "POSTGRES_DSN", "REDIS_URL"):
        monkeypatch.setenv(f"TENANCY_{name}", secret)

    assert run(["settings", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["settings"]
    told = {item["variable"]: item["set"] for item in listed if item["set"] is not None}
    del told["TENANCY_HOME"]  # Every test has its own.
    assert told == {
        "TENANCY_HTTP_PORT": "8100",
        "TENANCY_MASTER_KEY": "(not shown)",
        "TENANCY_POSTGRES_DSN": "(not shown)",
        "TENANCY_REDIS_URL": "(not shown)",
    }
    assert run(["settings"]) == 0
    assert "TENANCY_MASTER_KEY" in capsys.readouterr().out


def test_a_stopped_runtime_has_a_status_of_its_own_and_is_told_as_json(capsys):
    assert run(["status", "--json"]) == 3

    state = json.loads(capsys.readouterr().out)
    assert state["state"] == "stopped"
    assert {"url", "admin_key_file", "postgres_dsn", "redis_url", "ray_address"} <= set(state)


def test_ending_what_does_not_run_is_no_error(capsys):
    assert run(["down", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"state": "stopped", "was_running": False}


def test_ctrl_c_is_told_with_what_may_go_on(monkeypatch, capsys):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RuntimeClient, "connect", interrupted)

    assert run(["schema", "status"]) == 130
    told = capsys.readouterr()
    assert told.out == ""
    first, second = told.err.split("\n", 1)
    assert first == "error: interrupted"
    assert second.startswith("hint: what was asked of the runtime may go on there")
    assert "`tenancy schema status`" in second


def test_an_interrupted_export_is_told_once(tmp_path, monkeypatch, capsys):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RuntimeClient, "connect", interrupted)

    assert run(["tenant", "export", "acme", "--output", str(tmp_path / "rows")]) == 130
    assert (
        capsys.readouterr().err == f"error: interrupted; nothing was left at {tmp_path / 'rows'}\n"
    )


def test_help_is_there_for_every_command(capsys):
    for arguments in ([], ["tenant"], ["schema"], ["key"], ["operation"]):
        assert run([*arguments, "--help"]) == 0
    assert "doctor" in capsys.readouterr().out


def test_the_version_is_told(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("tenancy ")


def test_migrations_are_looked_at_before_anything_is_asked(tmp_path, capsys):
    (tmp_path / "users.sql").write_text("select 1")

    assert run(["schema", "apply", str(tmp_path)]) == 1
    assert "0001" in capsys.readouterr().err


def test_an_error_is_one_line_however_it_came(capsys):
    print_error("one\n  two\nthree", "do this")

    assert capsys.readouterr().err == "error: one two three\nhint: do this\n"


def test_a_table_is_neither_cut_nor_taken_for_markup_and_carries_no_control_characters(capsys):
    print_table(("a", "[b]"), [["x" * 150, "[red]\x1b[31m"], [None, {"k": [1, True]}]])

    out = capsys.readouterr().out
    assert "x" * 150 in out
    assert "[red]" in out
    assert "[b]" in out
    assert "\x1b" not in out
    assert '{"k":[1,true]}' in out


@pytest.mark.parametrize(
    ("text", "path"),
    [("acme", "acme"), ("a/b", "a%2Fb"), ("..", "%2E%2E"), ("a b?c#d", "a%20b%3Fc%23d")],
)
def test_a_text_stays_one_part_of_a_path(text, path):
    assert segment(text) == path


def test_what_a_terminal_would_obey_is_shown_and_not_obeyed():
    assert visible("table \x1b[2Kx\r\u202ey\n ü") == "table \\x1b[2Kx\\r\\u202ey\n ü"
