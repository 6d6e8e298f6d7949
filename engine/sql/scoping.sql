-- What scoping reads from the system catalogs (PostgreSQL manual, chapter "System Catalogs").

-- name: schema_snapshot
-- Everything that scope_plan needs to know of the schema $1, as one JSON document, so that it costs
-- one round trip and is one moment's view. The search_path must be that schema alone: then names
-- inside it come out unqualified, and the documents of two equal schemas are equal. $2 is a schema
-- that may be referred to as well and stands behind it in the search_path; null for none.
-- Columns that PostgreSQL 15 does not have yet are read through to_jsonb.
with space as materialized (
    select oid, nspname, nspowner, nspacl
    from pg_namespace
    where nspname = $1
),
relation as materialized (
    select class.*
    from pg_class as class
    join space on space.oid = class.relnamespace
    where class.relkind in ('r', 'p', 'v', 'm', 'f', 'S', 'c')
),
routine as materialized (
    select routine.*
    from pg_proc as routine
    join space on space.oid = routine.pronamespace
),
-- Types of the schema's own making: neither row types of tables nor array types.
type as materialized (
    select type.*
    from pg_type as type
    join space on space.oid = type.typnamespace
    where type.typcategory <> 'A'
      and not exists (
          select from pg_class as row_class
          where row_class.oid = type.typrelid and row_class.relkind <> 'c'
      )
),
-- By way of what they belong to: the catalog has no index on the namespace, and in a database of many
-- schemas reading all of it would cost more than the rest.
constraint_ as materialized (
    select con.*, to_jsonb(con) as document
    from relation
    join pg_constraint as con on con.conrelid = relation.oid
    union all
    select con.*, to_jsonb(con)
    from type
    join pg_constraint as con on con.contypid = type.oid
),
index_ as materialized (
    select ind.*, class.relname, class.relam, class.relnamespace
    from pg_index as ind
    join relation on relation.oid = ind.indrelid
    join pg_class as class on class.oid = ind.indexrelid
),
member as materialized (
    select 'pg_class'::regclass::oid as classid, oid as objid from relation
    union all select 'pg_class'::regclass, indexrelid from index_
    union all select 'pg_proc'::regclass, oid from routine
    union all
    select 'pg_type'::regclass, type.oid
    from pg_type as type join space on space.oid = type.typnamespace
    union all select 'pg_constraint'::regclass, oid from constraint_
    union all
    select 'pg_attrdef'::regclass, part.oid
    from pg_attrdef as part join relation on relation.oid = part.adrelid
    union all
    select 'pg_rewrite'::regclass, part.oid
    from pg_rewrite as part join relation on relation.oid = part.ev_class
    union all
    select 'pg_trigger'::regclass, part.oid
    from pg_trigger as part join relation on relation.oid = part.tgrelid
    where part.tgname !~ '^tenancy_m_[0-9a-f]{20}_'
    union all
    select 'pg_policy'::regclass, part.oid
    from pg_policy as part join relation on relation.oid = part.polrelid
),
-- Objects of other schemas that objects of this one depend on. PostgreSQL records no dependency on
-- what initdb made in pg_catalog, and the two functions of the binding belong there by design.
outside as materialized (
    select distinct
        (pg_identify_object(depend.classid, depend.objid, 0)).identity as object,
        (pg_identify_object(depend.classid, depend.objid, 0)).type as kind,
        target.identity as target
    from member
    -- OFFSET keeps it a look into the index for each member, whatever the planner believes of them.
    cross join lateral (
        select * from pg_depend as entry
        where entry.classid = member.classid and entry.objid = member.objid
        offset 0
    ) as depend
    cross join lateral pg_identify_object(depend.refclassid, depend.refobjid, 0) as target
    where depend.refclassid in (
            'pg_class'::regclass, 'pg_proc'::regclass, 'pg_type'::regclass,
            'pg_operator'::regclass, 'pg_collation'::regclass, 'pg_opclass'::regclass,
            'pg_opfamily'::regclass, 'pg_ts_config'::regclass, 'pg_ts_dict'::regclass,
            'pg_conversion'::regclass
        )
      and not exists (
          select from member as own
          where own.classid = depend.refclassid and own.objid = depend.refobjid
      )
      and target.schema not in ('pg_catalog', 'pg_toast', $1)
      and target.schema is distinct from $2::text
      and target.identity not in ('tenancy.tenant()', 'tenancy.bound_tenant()')
),
-- Kinds of objects that a namespace never holds.
stranger as (
    select 'operator' as kind, oprname as name, oprnamespace as space from pg_operator
    union all select 'operator class', opcname, opcnamespace from pg_opclass
    union all select 'operator family', opfname, opfnamespace from pg_opfamily
    union all select 'collation', collname, collnamespace from pg_collation
    union all select 'conversion', conname, connamespace from pg_conversion
    union all select 'text search configuration', cfgname, cfgnamespace from pg_ts_config
    union all select 'text search dictionary', dictname, dictnamespace from pg_ts_dict
    union all select 'text search parser', prsname, prsnamespace from pg_ts_parser
    union all select 'text search template', tmplname, tmplnamespace from pg_ts_template
    union all select 'extended statistics', stxname, stxnamespace from pg_statistic_ext
)
select jsonb_build_object(
    'schema', (
        select jsonb_build_object(
            'name', space.nspname,
            'owner', pg_get_userbyid(space.nspowner),
            'grants', (
                select jsonb_agg(
                    jsonb_build_array(
                        case acl.grantee when 0 then 'PUBLIC' else pg_get_userbyid(acl.grantee) end,
                        acl.privilege_type, acl.is_grantable
                    ) order by acl.grantee, acl.privilege_type
                )
                from aclexplode(space.nspacl) as acl
                where acl.grantee <> space.nspowner
            )
        )
        from space
    ),
    'relations', (
        select jsonb_agg(
            jsonb_build_object(
                'name', relation.relname,
                'kind', relation.relkind,
                'owner', pg_get_userbyid(relation.relowner),
                'persistence', relation.relpersistence,
                'row_security', relation.relrowsecurity,
                'forced', relation.relforcerowsecurity,
                'partition', relation.relispartition,
                'typed', relation.reloftype <> 0,
                'sensitive', relation.relkind = 'r' and coalesce(
                    obj_description(relation.oid, 'pg_class') ~ '(^|\W)@sensitive(\W|$)', false
                ),
                'belongs_to', (
                    select owner.relname
                    from pg_depend as depend
                    join pg_class as owner on owner.oid = depend.refobjid
                    where relation.relkind = 'S'
                      and depend.classid = 'pg_class'::regclass and depend.objid = relation.oid
                      and depend.refclassid = 'pg_class'::regclass
                      and depend.deptype in ('a', 'i')
                ),
                'reads', (
                    select coalesce(jsonb_agg(distinct read.relname), '[]')
                    from pg_rewrite as rule
                    join pg_depend as depend
                        on depend.classid = 'pg_rewrite'::regclass and depend.objid = rule.oid
                        and depend.refclassid = 'pg_class'::regclass
                        and depend.refobjid <> relation.oid
                    join pg_class as read on read.oid = depend.refobjid
                    where rule.ev_class = relation.oid
                ),
                'options', coalesce(to_jsonb(relation.reloptions), '[]'),
                'inherits', exists (
                    select from pg_inherits
                    where relation.oid in (inhrelid, inhparent)
                ),
                'rules', (
                    select coalesce(jsonb_agg(rule.rulename order by rule.rulename), '[]')
                    from pg_rewrite as rule
                    where rule.ev_class = relation.oid and rule.rulename <> '_RETURN'
                ),
                'definition', case
                    when relation.relkind in ('v', 'm') then md5(pg_get_viewdef(relation.oid))
                    when relation.relkind = 'S' then (
                        select concat_ws(
                            ' ', format_type(seqtypid, null), seqstart, seqincrement, seqmin,
                            seqmax, seqcache, seqcycle
                        )
                        from pg_sequence
                        where seqrelid = relation.oid
                    )
                end,
                'columns', (
                    select coalesce(
                        jsonb_agg(
                            jsonb_build_object(
                                'name', attribute.attname,
                                'type', format_type(attribute.atttypid, attribute.atttypmod),
                                'row_of', (
                                    select owner.relname
                                    from pg_type as type
                                    left join pg_type as element on element.oid = type.typelem
                                    join pg_class as owner
                                        on owner.oid in (type.typrelid, element.typrelid)
                                    where type.oid = attribute.atttypid and owner.relkind = 'r'
                                ),
                                'not_null', attribute.attnotnull,
                                'default', pg_get_expr(def.adbin, def.adrelid),
                                'generated', attribute.attgenerated,
                                'identity', attribute.attidentity
                            ) order by attribute.attnum
                        ),
                        '[]'
                    )
                    from pg_attribute as attribute
                    left join pg_attrdef as def
                        on def.adrelid = attribute.attrelid and def.adnum = attribute.attnum
                    where attribute.attrelid = relation.oid
                      and attribute.attnum > 0
                      and not attribute.attisdropped
                      and relation.relkind <> 'S'
                ),
                'grants', (
                    select jsonb_agg(
                        jsonb_build_array(
                            case acl.grantee
                                when 0 then 'PUBLIC' else pg_get_userbyid(acl.grantee)
                            end,
                            acl.privilege_type, acl.is_grantable
                        ) order by acl.grantee, acl.privilege_type
                    )
                    from aclexplode(relation.relacl) as acl
                    where acl.grantee <> relation.relowner
                ),
                'column_grants', (
                    select jsonb_agg(
                        distinct case acl.grantee
                            when 0 then 'PUBLIC' else pg_get_userbyid(acl.grantee)
                        end
                    )
                    from pg_attribute as attribute
                    cross join lateral aclexplode(attribute.attacl) as acl
                    where attribute.attrelid = relation.oid and acl.grantee <> relation.relowner
                )
            ) order by relation.relname
        )
        from relation
    ),
    'constraints', (
        select jsonb_agg(
            jsonb_build_object(
                'table', relation.relname,
                'name', con.conname,
                'type', con.contype,
                'definition', pg_get_constraintdef(con.oid),
                'columns', (
                    select jsonb_agg(attribute.attname order by key.place)
                    from unnest(con.conkey) with ordinality as key (number, place)
                    join pg_attribute as attribute
                        on attribute.attrelid = con.conrelid and attribute.attnum = key.number
                ),
                'target', target.relname,
                'target_columns', (
                    select jsonb_agg(attribute.attname order by key.place)
                    from unnest(con.confkey) with ordinality as key (number, place)
                    join pg_attribute as attribute
                        on attribute.attrelid = con.confrelid and attribute.attnum = key.number
                ),
                'match', con.confmatchtype,
                'on_update', con.confupdtype,
                'on_delete', con.confdeltype,
                'delete_set', (
                    select jsonb_agg(attribute.attname order by key.place)
                    from unnest(con.confdelsetcols) with ordinality as key (number, place)
                    join pg_attribute as attribute
                        on attribute.attrelid = con.conrelid and attribute.attnum = key.number
                ),
                'deferrable', con.condeferrable,
                'deferred', con.condeferred,
                'validated', con.convalidated,
                'enforced', coalesce((con.document ->> 'conenforced')::boolean, true),
                'period', coalesce((con.document ->> 'conperiod')::boolean, false)
            ) order by relation.relname, con.conname
        )
        from constraint_ as con
        join relation on relation.oid = con.conrelid
        left join pg_class as target on target.oid = con.confrelid
        where con.contype <> 't'
    ),
    'indexes', (
        select jsonb_agg(
            jsonb_build_object(
                'table', relation.relname,
                'name', ind.relname,
                'method', method.amname,
                'unique', ind.indisunique,
                'valid', ind.indisvalid and ind.indisready,
                'of_constraint', exists (
                    select from constraint_ as con
                    where con.conindid = ind.indexrelid and con.contype in ('p', 'u', 'x')
                ),
                -- An expression has no name.
                'keys', (
                    select jsonb_agg(attribute.attname order by key.place)
                    from unnest(ind.indkey::smallint[]) with ordinality as key (number, place)
                    left join pg_attribute as attribute
                        on attribute.attrelid = ind.indrelid
                        and attribute.attnum = key.number
                        and key.number <> 0
                    where key.place <= ind.indnkeyatts
                ),
                -- The definition from the first key on, or null when it does not begin as expected.
                'tail', case
                    when starts_with(pg_get_indexdef(ind.indexrelid), head.text)
                    then substr(pg_get_indexdef(ind.indexrelid), length(head.text) + 1)
                end,
                -- The schema's own functions in its expressions and its predicate.
                'functions', (
                    select coalesce(jsonb_agg(distinct routine.proname), '[]')
                    from pg_depend as depend
                    join routine on routine.oid = depend.refobjid
                    where depend.classid = 'pg_class'::regclass
                      and depend.objid = ind.indexrelid
                      and depend.refclassid = 'pg_proc'::regclass
                )
            ) order by ind.relname
        )
        from index_ as ind
        join relation on relation.oid = ind.indrelid
        join pg_am as method on method.oid = ind.relam
        cross join lateral (
            select format(
                'CREATE %sINDEX %I ON %I.%I USING %I (',
                case when ind.indisunique then 'UNIQUE ' else '' end,
                ind.relname, $1, relation.relname, method.amname
            ) as text
        ) as head
    ),
    'policies', (
        select jsonb_agg(
            jsonb_build_object(
                'table', relation.relname,
                'name', policy.polname,
                'command', policy.polcmd,
                'permissive', policy.polpermissive,
                'roles', (
                    select jsonb_agg(
                        case number when 0 then 'PUBLIC' else pg_get_userbyid(number) end
                        order by number
                    )
                    from unnest(policy.polroles) as number
                ),
                'using', pg_get_expr(policy.polqual, policy.polrelid),
                'check', pg_get_expr(policy.polwithcheck, policy.polrelid)
            ) order by relation.relname, policy.polname
        )
        from pg_policy as policy
        join relation on relation.oid = policy.polrelid
    ),
    'triggers', (
        select jsonb_agg(
            jsonb_build_object(
                'table', relation.relname,
                'name', trigger.tgname,
                'definition', pg_get_triggerdef(trigger.oid, true),
                'enabled', trigger.tgenabled
            ) order by relation.relname, trigger.tgname
        )
        from pg_trigger as trigger
        join relation on relation.oid = trigger.tgrelid
        -- Those of a move under way (move_table.py) come and go.
        where not trigger.tgisinternal and trigger.tgname !~ '^tenancy_m_[0-9a-f]{20}_'
    ),
    'routines', (
        select jsonb_agg(
            jsonb_build_object(
                'name', routine.proname,
                'arguments', pg_get_function_identity_arguments(routine.oid),
                'kind', routine.prokind,
                'owner', pg_get_userbyid(routine.proowner),
                'language', language.lanname,
                'security_definer', routine.prosecdef,
                'leakproof', routine.proleakproof,
                'settings', coalesce(to_jsonb(routine.proconfig), '[]'),
                'row_types', (
                    select jsonb_agg(distinct owner.relname)
                    from pg_type as type
                    left join pg_type as element on element.oid = type.typelem
                    join pg_class as owner
                        on owner.oid in (type.typrelid, element.typrelid)
                    where owner.relkind = 'r'
                      and (
                          type.oid = routine.prorettype
                          or type.oid = any (
                              coalesce(routine.proallargtypes, routine.proargtypes::oid[])
                          )
                      )
                ),
                -- What a body in SQL syntax is bound to; a body in quotes is bound to nothing.
                'reads', (
                    select coalesce(jsonb_agg(distinct read.relname), '[]')
                    from pg_depend as depend
                    join pg_class as read on read.oid = depend.refobjid
                    where depend.classid = 'pg_proc'::regclass and depend.objid = routine.oid
                      and depend.refclassid = 'pg_class'::regclass
                ),
                'definition', concat_ws(
                    ' ', pg_get_function_arguments(routine.oid),
                    pg_get_function_result(routine.oid), routine.provolatile,
                    routine.proisstrict, routine.proparallel,
                    md5(coalesce(pg_get_function_sqlbody(routine.oid), routine.prosrc))
                ),
                'grants', (
                    select jsonb_agg(
                        jsonb_build_array(
                            case acl.grantee
                                when 0 then 'PUBLIC' else pg_get_userbyid(acl.grantee)
                            end,
                            acl.privilege_type, acl.is_grantable
                        ) order by acl.grantee, acl.privilege_type
                    )
                    from aclexplode(
                        coalesce(routine.proacl, acldefault('f', routine.proowner))
                    ) as acl
                    where acl.grantee <> routine.proowner
                )
            ) order by routine.proname, pg_get_function_identity_arguments(routine.oid)
        )
        from routine
        join pg_language as language on language.oid = routine.prolang
    ),
    'types', (
        select jsonb_agg(
            jsonb_build_object(
                'name', type.typname,
                'kind', type.typtype,
                'owner', pg_get_userbyid(type.typowner),
                'definition', concat_ws(
                    ' ', format_type(nullif(type.typbasetype, 0), type.typtypmod),
                    type.typnotnull, type.typdefault,
                    (
                        select jsonb_agg(label.enumlabel order by label.enumsortorder)
                        from pg_enum as label where label.enumtypid = type.oid
                    ),
                    (
                        select jsonb_agg(pg_get_constraintdef(con.oid) order by con.conname)
                        from constraint_ as con where con.contypid = type.oid
                    )
                )
            ) order by type.typname
        )
        from type
        where type.typtype <> 'm'
    ),
    'outside', (
        select jsonb_agg(jsonb_build_array(kind, object, target) order by object, target)
        from outside
    ),
    'strangers', (
        select jsonb_agg(jsonb_build_array(kind, name) order by kind, name)
        from stranger join space on space.oid = stranger.space
    )
) as snapshot

-- name: enter_schema
-- Bare names mean this schema and pg_catalog; temporary tables come last (manual, 20.11.1).
set local role tenancy_owner;
set local search_path = {schema}, pg_temp;
set local standard_conforming_strings = on;
set local check_function_bodies = on;
set local default_tablespace = '';
set local default_table_access_method = 'heap';
set local quote_all_identifiers = off;
set local row_security = on;

-- name: set_path
select set_config('search_path', $1, true);

-- name: work_as_keeper
set local role tenancy_keeper;

-- name: work_as_owner
set local role tenancy_owner;
