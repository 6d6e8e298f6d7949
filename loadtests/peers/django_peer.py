"""django-tenants and django-rls-tenants: a process with ten threads, each with its connection.

Django's ORM blocks, so what is in flight waits in a queue in front of the threads. Connections are
kept for good (`CONN_MAX_AGE=None`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import django
from django.conf import settings
from django.db import models

THREADS = 10


def reader(target: dict[str, Any]) -> Callable[[int, int], int]:
    """The operation, blocking, as the library of `target["library"]` does it."""
    return _TENANTS[target["library"]](target["dsn"])


def _django_tenants(dsn: dict[str, str]) -> Callable[[int, int], int]:
    _configure(
        dsn["schemas"],
        "django_tenants.postgresql_backend",
        INSTALLED_APPS=["django_tenants", "django.contrib.contenttypes"],
        SHARED_APPS=["django_tenants"],
        TENANT_APPS=["django.contrib.contenttypes"],
        TENANT_MODEL="peers.Client",
        TENANT_DOMAIN_MODEL="peers.Domain",
        DATABASE_ROUTERS=["django_tenants.routers.TenantSyncRouter"],
    )
    from django_tenants.utils import schema_context

    class User(models.Model):
        bal = models.BigIntegerField()

        class Meta:
            app_label, db_table, managed = "peers", "users", False

    def read(tenant: int, row: int) -> int:
        with schema_context(f"t_tenant_{tenant}"):
            return int(User.objects.values_list("bal", flat=True).get(id=row))

    return read


def _django_rls_tenants(dsn: dict[str, str]) -> Callable[[int, int], int]:
    _configure(
        dsn["dj"],
        "django.db.backends.postgresql",
        INSTALLED_APPS=["django_rls_tenants"],
        RLS_TENANTS={"TENANT_MODEL": "peers.Tenant"},
    )
    from django_rls_tenants import RLSProtectedModel, tenant_context

    class Tenant(models.Model):
        class Meta:
            app_label, managed = "peers", False

    class User(RLSProtectedModel):
        bal = models.BigIntegerField()

        class Meta(RLSProtectedModel.Meta):
            app_label, db_table, managed, abstract = "peers", "users", False, False

    def read(tenant: int, row: int) -> int:
        with tenant_context(tenant):
            return int(User.objects.values_list("bal", flat=True).get(id=row))

    return read


def _configure(dsn: str, backend: str, **more: Any) -> None:
    parts = urlsplit(dsn)
    database = {
        "ENGINE": backend,
        "NAME": parts.path.lstrip("/"),
        "USER": parts.username,
        "PASSWORD": parts.password,
        "HOST": parts.hostname,
        "PORT": parts.port,
        "CONN_MAX_AGE": None,
    }
    settings.configure(
        DATABASES={"default": database}, DEFAULT_AUTO_FIELD="django.db.models.AutoField", **more
    )
    django.setup()


_TENANTS = {"django-tenants": _django_tenants, "django-rls-tenants": _django_rls_tenants}
