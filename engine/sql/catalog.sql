-- The catalog: what the runtime knows about tenants, in the database of the first server.

-- name: catalog_1
create schema catalog authorization tenancy_owner;

create table catalog.server (
    name      text collate "C" primary key,
    region    text,
    added_at  timestamptz not null default now()
);

-- Numbers come from one sequence and are never used again.
create table catalog.tenant (
    tenant_no    bigint generated always as identity primary key,
    tenant_id    text collate "C" not null unique,
    tenant_type  text not null check (tenant_type in ('free', 'standard', 'premium', 'enterprise')),
    status       text not null default 'creating'
                 check (status in ('creating', 'active', 'suspended', 'deleting')),
    region       text,
    compliance   text[] not null default '{}',
    metadata     jsonb not null default '{}',
    created_at   timestamptz not null default now(),
    updated_at   timestamptz not null default now()
);

create table catalog.placement (
    tenant_no   bigint primary key references catalog.tenant on delete cascade,
    level       text not null check (level in ('row', 'schema', 'database')),
    server      text collate "C" not null references catalog.server,
    database    text not null,
    schema      text not null,
    role        text not null,
    epoch       bigint not null check (epoch > 0),
    changed_at  timestamptz not null default now()
);
create index on catalog.placement (server, database);

create function catalog.epochs_only_rise() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if new.tenant_no <> old.tenant_no or new.epoch <= old.epoch then
        raise exception using
            errcode = 'check_violation',
            message = format('the epoch of a placement only rises (tenant %s: %s, then %s)',
                             old.tenant_no, old.epoch, new.epoch);
    end if;
    return new;
end;
$$;

create trigger epochs_only_rise before update on catalog.placement
for each row execute function catalog.epochs_only_rise();

-- The script is what the migration comes to on scoped tables (schema_script.py).
create table catalog.migration (
    number         int primary key check (number > 0),
    name           text not null,
    sql            text not null,
    checksum       bytea not null,
    registered_at  timestamptz not null default now(),
    script         jsonb
);

create table catalog.namespace (
    server      text collate "C" not null references catalog.server,
    database    text collate "C" not null,
    schema      text collate "C" not null,
    kind        text not null check (kind in ('shared', 'own', 'template', 'reference')),
    tenant_no   bigint references catalog.tenant,
    version     int not null default 0 check (version >= 0),
    state       text not null check (state in ('current', 'migrating', 'failed')),
    error       text,
    changed_at  timestamptz not null default now(),
    primary key (server, database, schema)
);
create index on catalog.namespace (tenant_no);

create table catalog.api_key (
    key_id      text collate "C" primary key,
    digest      bytea not null check (length(digest) = 32),
    scope       text not null check (scope in ('admin', 'tenant')),
    tenant_no   bigint references catalog.tenant on delete cascade,
    label       text not null,
    created_at  timestamptz not null default now(),
    expires_at  timestamptz,
    revoked_at  timestamptz,
    check ((scope = 'tenant') = (tenant_no is not null))
);
create index on catalog.api_key (tenant_no);

create table catalog.named_operation (
    name        text collate "C" primary key,
    sql         text not null,
    created_at  timestamptz not null default now()
);

-- The numbers of the keys that sign bindings, everywhere: each database has its own key under each
-- number. The runtime signs with the highest one that is signing.
create table catalog.binding_key (
    key_id         int primary key,
    introduced_at  timestamptz not null default now(),
    signing_since  timestamptz,
    retired_at     timestamptz
);
insert into catalog.binding_key (key_id, signing_since) values (1, now());

revoke all on all functions in schema catalog from public;
grant usage on schema catalog to tenancy_control;
grant select, insert, update, delete on all tables in schema catalog to tenancy_control;

-- name: catalog_2
-- The schema of a hybrid tenant's own, for its tables that are marked sensitive.
alter table catalog.placement
    add column sensitive_schema text check (sensitive_schema is null or level = 'row');
create index on catalog.placement (server) where sensitive_schema is not null;

-- name: catalog_3
-- The secret that a key had before it was rotated, for as long as it may still be used.
alter table catalog.api_key
    add column previous_digest bytea check (length(previous_digest) = 32),
    add column previous_until  timestamptz,
    add column rotated_at      timestamptz,
    add column last_used_at    timestamptz,
    add check ((previous_digest is null) = (previous_until is null));

-- name: catalog_4
-- Moves of tenants between placements (core/move.py). Whoever carries one out has its term.
create table catalog.move (
    move_id     text collate "C" primary key check (move_id ~ '^m_[0-9a-f]{20}$'),
    tenant_no   bigint not null references catalog.tenant on delete cascade,
    state       text not null,
    source      jsonb not null,
    target      jsonb not null,
    term        bigint not null default 0 check (term >= 0),
    priority    int not null default 0,
    paused      boolean not null default false,
    wish        text check (wish in ('cancel', 'rollback', 'confirm')),
    reversing   boolean not null default false,
    cleaned     boolean not null default false,
    progress    jsonb not null default '{}',
    report      jsonb not null default '{}',
    error       text,
    created_at  timestamptz not null default clock_timestamp(),
    changed_at  timestamptz not null default clock_timestamp(),
    opened_at   timestamptz
);
-- One move of a tenant at a time, until nothing is left of the one before.
create unique index move_of_tenant on catalog.move (tenant_no)
where not (cleaned and state in ('confirmed', 'failed', 'cancelled', 'rolled_back'));
create index on catalog.move (created_at, move_id);
create index on catalog.placement (changed_at);
grant select, insert, update, delete on catalog.move to tenancy_control;

-- name: catalog_5
-- The catalog to the keeper, for the reasons that keeper.sql gives.
alter schema catalog owner to tenancy_keeper;
alter table catalog.api_key owner to tenancy_keeper;
alter table catalog.binding_key owner to tenancy_keeper;
alter table catalog.migration owner to tenancy_keeper;
alter table catalog.move owner to tenancy_keeper;
alter table catalog.named_operation owner to tenancy_keeper;
alter table catalog.namespace owner to tenancy_keeper;
alter table catalog.placement owner to tenancy_keeper;
alter table catalog.server owner to tenancy_keeper;
alter table catalog.tenant owner to tenancy_keeper;
alter function catalog.epochs_only_rise() owner to tenancy_keeper;
set local role tenancy_keeper;
-- At which version the schema `tenancy` is in the databases of single tenants, so that a start asks
-- here and enters only those that are behind. It never says more than what is there.
create table catalog.database (
    tenant_no   bigint not null references catalog.tenant on delete cascade,
    server      text collate "C" not null,
    database    text collate "C" not null,
    version     int not null check (version >= 0),
    changed_at  timestamptz not null default now(),
    primary key (tenant_no, server, database)
);
create index on catalog.placement (tenant_no) where level = 'database';
grant select, insert, update, delete on catalog.database to tenancy_control;
set local role none;

-- name: catalog_6
set local role tenancy_keeper;
-- What tenants' operations came to, in windows of time, as the processes that carried them out have told.
-- It is thrown away after a while, also what is of tenants that are gone.
create table catalog.load (
    began_at    timestamptz not null,
    tenant_no   bigint not null,
    operations  bigint not null check (operations >= 0),
    busy_us     bigint not null check (busy_us >= 0),
    primary key (began_at, tenant_no)
);
create index on catalog.load (tenant_no, began_at);
-- The same of all tenants of a server together. A window that nobody has told of is none.
create table catalog.load_window (
    began_at    timestamptz not null,
    server      text collate "C" not null,
    operations  bigint not null check (operations >= 0),
    busy_us     bigint not null check (busy_us >= 0),
    reports     int not null check (reports > 0),
    primary key (began_at, server)
);
-- What the orchestrator remembers of a tenant (core/level_policy.py, Streak), and its size.
create table catalog.tendency (
    tenant_no  bigint primary key references catalog.tenant on delete cascade,
    streak     jsonb not null default '{}',
    size       jsonb,
    sized_at   timestamptz
);
-- Proposals to move a tenant (core/proposal.py).
create table catalog.proposal (
    proposal_id   text collate "C" primary key check (proposal_id ~ '^p_[0-9a-f]{20}$'),
    tenant_no     bigint not null references catalog.tenant on delete cascade,
    state         text not null
                  check (state in ('proposed', 'accepted', 'dismissed', 'withdrawn', 'refused')),
    action        text not null check (action in ('promote', 'demote', 'relocate')),
    source_level  text not null check (source_level in ('row', 'schema', 'database')),
    target_level  text check (target_level in ('row', 'schema', 'database')),
    region        text,
    movable       boolean not null default true,
    reasons       jsonb not null,
    evidence      jsonb not null default '{}',
    acts          jsonb not null default '[]',
    accepted_by   text check (accepted_by in ('operator', 'orchestrator')),
    accepted_at   timestamptz,
    move_id       text collate "C" unique,
    -- Whether nothing is left to do or to tell about its move.
    done          boolean not null default false,
    created_at    timestamptz not null,
    changed_at    timestamptz not null,
    check ((state = 'accepted') = (move_id is not null))
);
create unique index proposal_of_tenant on catalog.proposal (tenant_no) where state = 'proposed';
create index on catalog.proposal (created_at, proposal_id);
create index on catalog.proposal (tenant_no, changed_at);
create index on catalog.proposal (accepted_at) where accepted_by = 'orchestrator';
create index on catalog.proposal (proposal_id) where state = 'accepted' and not done;
create index on catalog.move (tenant_no, created_at);
-- The one process that decides, for how long nobody else may, and up to which window it has looked.
create table catalog.orchestrator (
    only_one     boolean primary key default true check (only_one),
    holder       text,
    held_until   timestamptz not null default '-infinity',
    term         bigint not null default 0,
    looked_upto  timestamptz not null default '-infinity',
    mode         text,
    told         jsonb not null default '{}'
);
insert into catalog.orchestrator default values;
grant select, insert, update, delete
on catalog.load, catalog.load_window, catalog.tendency, catalog.proposal to tenancy_control;
grant select, update on catalog.orchestrator to tenancy_control;
set local role none;

-- name: catalog_7
set local role tenancy_keeper;
-- At once, and not first for the triggers and then for the index: who reads the table and then writes it
-- would wait for this in a circle.
lock table catalog.placement in access exclusive mode;
-- How many tenants there are of each kind, as changes to be added up: counting them takes longer with each
-- tenant, and one row that all of them change is waited for. Whoever reads many changes folds them into one.
create table catalog.placement_change (
    change_id  bigint generated always as identity primary key,
    level      text not null,
    hybrid     boolean not null,
    tenants    bigint not null
);
grant select, insert, delete on catalog.placement_change to tenancy_control;
create function catalog.count_placements() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'INSERT' then
        insert into catalog.placement_change (level, hybrid, tenants)
        select level, sensitive_schema is not null, count(*) from added group by 1, 2;
    elsif tg_op = 'DELETE' then
        insert into catalog.placement_change (level, hybrid, tenants)
        select level, sensitive_schema is not null, -count(*) from removed group by 1, 2;
    else
        insert into catalog.placement_change (level, hybrid, tenants)
        select level, hybrid, sum(tenants)
        from (select level, sensitive_schema is not null as hybrid, 1 as tenants from added
              union all
              select level, sensitive_schema is not null, -1 from removed) as changed
        group by 1, 2 having sum(tenants) <> 0;
    end if;
    return null;
end;
$$;
revoke all on function catalog.count_placements() from public;
create trigger count_added after insert on catalog.placement
referencing new table as added
for each statement execute function catalog.count_placements();
create trigger count_removed after delete on catalog.placement
referencing old table as removed
for each statement execute function catalog.count_placements();
create trigger count_changed after update on catalog.placement
referencing old table as removed new table as added
for each statement execute function catalog.count_placements();
-- Those that were there before; nobody adds one until this is committed, since making the triggers has
-- locked the table.
insert into catalog.placement_change (level, hybrid, tenants)
select level, sensitive_schema is not null, count(*) from catalog.placement group by 1, 2;
-- A tenant's first place is no move.
create index placement_moved on catalog.placement (changed_at) where epoch > 1;
drop index catalog.placement_changed_at_idx;
-- The watchdog asks whose a login is.
create index on catalog.placement (role);
set local role none;

-- name: catalog_8
set local role tenancy_keeper;
-- Tenants whose results are kept (cache_switch.py). The nonce is null while nothing may be kept.
create table catalog.result_cache (
    tenant_no   bigint primary key references catalog.tenant on delete cascade,
    nonce       text,
    version     int not null default 0 check (version >= 0),
    serving     boolean not null default false,
    changed_at  timestamptz not null default clock_timestamp(),
    -- When the last period ended; false while the row is about to go.
    ended_at    timestamptz,
    wanted      boolean not null default true,
    -- Pinned tenants (pinned_tenants.py): the name under which processes share what they ask for.
    pinned      text unique,
    check (nonce is not null or not serving)
);
create index on catalog.result_cache (changed_at);
grant select, insert, update, delete on catalog.result_cache to tenancy_control;
set local role none;

-- name: add_server
insert into catalog.server as s (name, region) values ($1, $2)
on conflict (name) do update set region = excluded.region
where s.region is distinct from excluded.region;

-- name: servers
select name, region from catalog.server order by name;

-- name: insert_tenant
insert into catalog.tenant (tenant_id, tenant_type, region, compliance, metadata)
values ($1, $2, $3, $4, $5::jsonb)
on conflict (tenant_id) do nothing
returning tenant_no;

-- name: insert_placed_tenant
-- A tenant and its first placement, in one commit.
with made as (
    insert into catalog.tenant (tenant_id, tenant_type, region, compliance, metadata)
    values ($1, $2, $3, $4, $5::jsonb)
    on conflict (tenant_id) do nothing
    returning tenant_no
)
insert into catalog.placement
    (tenant_no, level, server, database, schema, role, epoch, sensitive_schema)
select tenant_no, $6, $7, $8, $9, $10, $11, $12 from made
returning tenant_no;

-- name: insert_row_tenants
-- As `insert_placed_tenant`, for many that get the same placement: $1 to $5 = their properties, with lists
-- and objects as JSON. In the order of their names, so that two who add the same ones do not wait for each
-- other in a circle.
with made as (
    insert into catalog.tenant (tenant_id, tenant_type, region, compliance, metadata)
    select x.tenant_id, x.tenant_type, x.region,
           array(select jsonb_array_elements_text(x.compliance::jsonb)), x.metadata::jsonb
    from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
        as x (tenant_id, tenant_type, region, compliance, metadata)
    order by x.tenant_id collate "C"
    on conflict (tenant_id) do nothing
    returning tenant_no
), placed as (
    insert into catalog.placement
        (tenant_no, level, server, database, schema, role, epoch, sensitive_schema)
    select tenant_no, $6, $7, $8, $9, $10, $11, $12 from made
    returning tenant_no
)
select count(*) from placed;

-- name: given_tenants
-- Of the tenants of $1 to $5, as in `insert_row_tenants`, those there are, and whether they are the same.
select t.tenant_no, t.tenant_id, t.tenant_type, t.status, t.region, t.compliance,
       p.level, p.server, p.database, p.schema, p.role, p.epoch, p.sensitive_schema,
       t.tenant_type = x.tenant_type and t.region is not distinct from x.region
       and t.compliance = array(select jsonb_array_elements_text(x.compliance::jsonb))
       and t.metadata = x.metadata::jsonb as same
from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
    as x (tenant_id, tenant_type, region, compliance, metadata)
join catalog.tenant t on t.tenant_id = x.tenant_id
left join catalog.placement p using (tenant_no);

-- name: tenants_named
select t.tenant_no, t.tenant_id, t.tenant_type, t.status, t.region, t.compliance,
       p.level, p.server, p.database, p.schema, p.role, p.epoch, p.sensitive_schema,
       c.nonce as cache_nonce, c.version as cache_version, c.serving as cache_serving,
       c.wanted as cache_wanted, c.pinned is not null as cache_pinned,
       extract(epoch from clock_timestamp() - c.ended_at)::float8 as cache_ended_s
from catalog.tenant t left join catalog.placement p using (tenant_no)
left join catalog.result_cache c using (tenant_no)
where t.tenant_id = any ($1::text[]);

-- name: same_tenant
select tenant_no,
       tenant_type = $2 and region is not distinct from $3 and compliance = $4
       and metadata = $5::jsonb as same
from catalog.tenant where tenant_id = $1;

-- name: tenant
select t.tenant_no, t.tenant_id, t.tenant_type, t.status, t.region, t.compliance,
       p.level, p.server, p.database, p.schema, p.role, p.epoch, p.sensitive_schema,
       c.nonce as cache_nonce, c.version as cache_version, c.serving as cache_serving,
       c.wanted as cache_wanted, c.pinned is not null as cache_pinned,
       extract(epoch from clock_timestamp() - c.ended_at)::float8 as cache_ended_s
from catalog.tenant t left join catalog.placement p using (tenant_no)
left join catalog.result_cache c using (tenant_no)
where t.tenant_id = $1;

-- name: tenant_by_number
select t.tenant_no, t.tenant_id, t.tenant_type, t.status, t.region, t.compliance,
       p.level, p.server, p.database, p.schema, p.role, p.epoch, p.sensitive_schema
from catalog.tenant t left join catalog.placement p using (tenant_no)
where t.tenant_no = $1;

-- name: known_tenants
select tenant_no from catalog.tenant where tenant_no = any($1::bigint[]);

-- name: moving
-- Tenants that may change their place before long, and where they will be then: null as long as it is
-- too early to have anything ready there. A move whose first attempts to hold the tenant came to nothing
-- never leaves these states in between.
select t.tenant_id,
       case when m.state = 'open' then m.source
            when m.state <> 'catching_up' and not m.reversing then m.target end as place
from catalog.move m join catalog.tenant t using (tenant_no)
where m.state in ('catching_up', 'verified', 'cutting_over')
   or m.state = 'open' and m.wish = 'rollback'
limit $1;

-- name: moved
-- The catalog's time, and tenants whose placement, or whether their results are kept, has changed since
-- $1, newest first. Going back by some seconds, because a change is seen when it is committed and has
-- the time at which it was made. New tenants, of which there may be thousands, have changed nothing.
select clock_timestamp() as now, m.tenant_id, m.epoch, m.nonce, m.serving
from (select) x
left join lateral (
    select t.tenant_id, p.epoch, c.nonce, c.serving
    from (
        -- Each once, since as many as the limit are taken for too many to tell.
        select tenant_no, max(changed_at) as changed_at
        from (
            select tenant_no, changed_at from catalog.placement
            where changed_at > coalesce($1, clock_timestamp()) - interval '10 seconds'
              and epoch > 1
            union all
            select tenant_no, changed_at from catalog.result_cache
            where changed_at > coalesce($1, clock_timestamp()) - interval '10 seconds'
        ) each
        group by tenant_no
    ) changed
    join catalog.tenant t using (tenant_no)
    join catalog.placement p on p.tenant_no = t.tenant_no and p.epoch > 1
    left join catalog.result_cache c on c.tenant_no = t.tenant_no
    order by changed.changed_at desc
    limit $2
) m on true;

-- name: tenants
select t.tenant_no, t.tenant_id, t.tenant_type, t.status, t.region, t.compliance,
       p.level, p.server, p.database, p.schema, p.role, p.epoch, p.sensitive_schema,
       c.nonce as cache_nonce, c.version as cache_version, c.serving as cache_serving,
       c.wanted as cache_wanted, c.pinned is not null as cache_pinned,
       extract(epoch from clock_timestamp() - c.ended_at)::float8 as cache_ended_s
from catalog.tenant t left join catalog.placement p using (tenant_no)
left join catalog.result_cache c using (tenant_no)
where t.tenant_id > $1
order by t.tenant_id
limit $2;

-- name: metadata
select metadata::text from catalog.tenant where tenant_no = $1;

-- name: unlike_metadata
-- Of the tenants of $1, the names in their metadata that have other values in $2, as JSON.
select t.tenant_id, array(
    select coalesce(here.key, wanted.key)
    from jsonb_each(t.metadata) here full join jsonb_each(x.metadata::jsonb) wanted using (key)
    where here.value is distinct from wanted.value
    order by 1) as names
from unnest($1::text[], $2::text[]) as x (tenant_id, metadata)
join catalog.tenant t on t.tenant_id = x.tenant_id;

-- name: count_by_strategy
-- And of how many changes that is the sum.
select level, hybrid, sum(tenants)::bigint as tenants, count(*) as changes
from catalog.placement_change
group by 1, 2;

-- name: fold_placement_changes
-- Of two who do it at the same time, one finds nothing left.
with taken as (
    delete from catalog.placement_change returning level, hybrid, tenants
)
insert into catalog.placement_change (level, hybrid, tenants)
select level, hybrid, sum(tenants) from taken group by 1, 2 having sum(tenants) <> 0
returning change_id;

-- name: hybrid_counts
select server, count(*) as tenants from catalog.placement
where sensitive_schema is not null
group by server;

-- name: set_status
update catalog.tenant set status = $2, updated_at = now()
where tenant_no = $1 and status = $3
returning tenant_no;

-- name: set_statuses
-- As `set_status`, for many; the numbers of those that were changed.
with changed as (
    update catalog.tenant set status = $2, updated_at = now()
    where tenant_no = any ($1::bigint[]) and status = $3
    returning tenant_no
)
select array(select tenant_no from changed);

-- name: has_move
-- Whether something is left to do for a move of the tenant.
select exists (
    select from catalog.move
    where tenant_no = $1
      and not (cleaned and state in ('confirmed', 'failed', 'cancelled', 'rolled_back')));

-- name: status
select status from catalog.tenant where tenant_no = $1;

-- name: first_placement
insert into catalog.placement
    (tenant_no, level, server, database, schema, role, epoch, sensitive_schema)
values ($1, $2, $3, $4, $5, $6, $7, $8)
on conflict (tenant_no) do nothing
returning tenant_no;

-- name: next_placement
update catalog.placement
set level = $2, server = $3, database = $4, schema = $5, role = $6, epoch = $7,
    sensitive_schema = $8, changed_at = now()
where tenant_no = $1 and epoch = $9
returning tenant_no;

-- name: remove_tenant
delete from catalog.tenant where tenant_no = $1 and status = 'deleting' returning tenant_no;

-- name: migrations
select number, name, sql, checksum, registered_at from catalog.migration
where number > $1 order by number limit $2;

-- name: insert_migration
insert into catalog.migration (number, name, sql, checksum) values ($1, $2, $3, $4)
on conflict (number) do nothing
returning number;

-- name: migration_checksum
select checksum from catalog.migration where number = $1;

-- name: newest_migration
select coalesce(max(number), 0) from catalog.migration;

-- name: record_namespace
insert into catalog.namespace as n
    (server, database, schema, kind, tenant_no, version, state, error)
values ($1, $2, $3, $4, $5, $6, $7, $8)
on conflict (server, database, schema) do update
set kind = excluded.kind, tenant_no = excluded.tenant_no, version = excluded.version,
    state = excluded.state, error = excluded.error, changed_at = now();

-- name: namespace
select server, database, schema, kind, tenant_no, version, state, error, changed_at
from catalog.namespace where (server, database, schema) = ($1, $2, $3);

-- name: namespaces
select server, database, schema, kind, tenant_no, version, state, error, changed_at
from catalog.namespace
where (server, database, schema) > ($1, $2, $3)
  and ($4::text is null or kind = $4)
  and ($5::int is null or version < $5 or state <> 'current')
order by server, database, schema
limit $6;

-- name: remove_namespace
delete from catalog.namespace where (server, database, schema) = ($1, $2, $3);

-- name: named_operation
select sql from catalog.named_operation where name = $1;

-- name: named_operations
select name, sql from catalog.named_operation where name > $1 order by name limit $2;

-- name: add_named_operation
insert into catalog.named_operation (name, sql) values ($1, $2)
on conflict (name) do nothing
returning name;

-- name: set_named_operation
insert into catalog.named_operation (name, sql) values ($1, $2)
on conflict (name) do update set sql = excluded.sql;

-- name: remove_named_operation
delete from catalog.named_operation where name = $1 returning name;

-- name: insert_api_key
insert into catalog.api_key (key_id, digest, scope, tenant_no, label, expires_at)
values ($1, $2, $3, $4, $5, $6);

-- name: api_key
select k.digest, k.previous_digest, k.previous_until, k.scope, k.tenant_no, t.tenant_id,
       k.expires_at, k.revoked_at,
       k.last_used_at is null or k.last_used_at < now() - make_interval(secs => $2) as use_is_news
from catalog.api_key k left join catalog.tenant t using (tenant_no)
where k.key_id = $1;

-- name: types_of_logins
-- The shared login works for tenants of several types.
select distinct p.server, p.role, t.tenant_type
from catalog.placement p join catalog.tenant t using (tenant_no)
where p.role = any ($1::text[]);

-- name: api_keys
-- All, those of a tenant ($2), or the one of an id ($3), in pages.
select k.key_id, k.scope, k.tenant_no, t.tenant_id, k.label, k.created_at, k.expires_at,
       k.revoked_at, k.rotated_at, k.previous_until, k.last_used_at
from catalog.api_key k left join catalog.tenant t using (tenant_no)
where k.key_id > $1 and ($2::bigint is null or k.tenant_no = $2)
and ($3::text is null or k.key_id = $3)
order by k.key_id
limit $4;

-- name: note_use_of_api_key
-- Processes that use a key at the same moment note it once.
update catalog.api_key set last_used_at = now()
where key_id = $1
and (last_used_at is null or last_used_at < now() - make_interval(secs => $2));

-- name: rotate_api_key
-- Nothing, unless the key is good at $4. Without an overlap ($3 is null) the old secret is gone.
update catalog.api_key
set digest = $2,
    previous_digest = case when $3::timestamptz is not null then digest end,
    previous_until = $3,
    rotated_at = $4
where key_id = $1 and revoked_at is null and (expires_at is null or expires_at > $4)
returning key_id;

-- name: revoke_api_key
update catalog.api_key
set revoked_at = coalesce(revoked_at, now()), previous_digest = null, previous_until = null
where key_id = $1
returning key_id;

-- name: binding_key_numbers
select key_id, signing_since is not null as signing, retired_at is not null as retired
from catalog.binding_key order by key_id;

-- name: introduce_binding_key
insert into catalog.binding_key (key_id)
select max(key_id) + 1 from catalog.binding_key
returning key_id;

-- name: start_signing
update catalog.binding_key set signing_since = coalesce(signing_since, now())
where key_id = $1 and retired_at is null
returning key_id;

-- name: retire_key_number
update catalog.binding_key set retired_at = coalesce(retired_at, now())
where key_id = $1
and exists (select from catalog.binding_key n
            where n.key_id > $1 and n.signing_since is not null and n.retired_at is null)
returning key_id;
