-- Types of one database, read by tenants' own sessions. Every name is qualified: the search path
-- holds a tenant's schema.

-- name: types
-- $1 = the types asked for. `sort`: a = array, c = composite, d = domain, s = any other.
-- A type of PostgreSQL's own that has elements but another text form (int2vector, point) is no array.
select t.oid::pg_catalog.int8 as oid,
       pg_catalog.format_type(t.oid, null) as name,
       case when t.typinput operator(pg_catalog.=) 'pg_catalog.array_in'::pg_catalog.regproc then 'a'
            when t.typtype operator(pg_catalog.=) 'c' then 'c'
            when t.typtype operator(pg_catalog.=) 'd' then 'd'
            else 's' end as sort,
       case when t.typtype operator(pg_catalog.=) 'd' then t.typbasetype else t.typelem
       end::pg_catalog.int8 as part,
       case when t.typinput operator(pg_catalog.=) 'pg_catalog.array_in'::pg_catalog.regproc
            then e.typdelim else ',' end::pg_catalog.text as delimiter,
       array(select a.attname::pg_catalog.text from pg_catalog.pg_attribute a
             where a.attrelid operator(pg_catalog.=) t.typrelid
             and a.attnum operator(pg_catalog.>) 0 and not a.attisdropped
             order by a.attnum) as names,
       array(select a.atttypid::pg_catalog.int8 from pg_catalog.pg_attribute a
             where a.attrelid operator(pg_catalog.=) t.typrelid
             and a.attnum operator(pg_catalog.>) 0 and not a.attisdropped
             order by a.attnum) as parts
from pg_catalog.pg_type t
left join pg_catalog.pg_type e on e.oid operator(pg_catalog.=) t.typelem
where t.oid operator(pg_catalog.=) any ($1::pg_catalog.oid[]);

-- name: modified_types
-- $1 and $2 = types and type modifiers; what they are called together, such as numeric(10,2).
select m.oid::pg_catalog.int8, m.modifier, pg_catalog.format_type(m.oid, m.modifier)
from rows from (
    pg_catalog.unnest($1::pg_catalog.oid[]), pg_catalog.unnest($2::pg_catalog.int4[])
) as m (oid, modifier);
