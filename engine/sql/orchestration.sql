-- What the orchestrator counts, remembers and proposes. Times of day are those of the process that asks,
-- but for who decides, which is a matter of the server's own clock.

-- name: tell_loads
-- What one process has counted in the window that began at $1: of tenants ($2 numbers, $3 operations,
-- $4 microseconds at work), and of servers ($5 names, $6, $7). In the order of the keys, so that two
-- who tell at the same time do not wait for each other in a circle.
with windows as (
    insert into catalog.load_window as w (began_at, server, operations, busy_us, reports)
    select $1::timestamptz, server, operations, busy_us, 1
    from unnest($5::text[], $6::bigint[], $7::bigint[]) x (server, operations, busy_us)
    order by server
    on conflict (began_at, server) do update
    set operations = w.operations + excluded.operations, busy_us = w.busy_us + excluded.busy_us,
        reports = w.reports + 1
)
insert into catalog.load as l (began_at, tenant_no, operations, busy_us)
select $1::timestamptz, tenant_no, operations, busy_us
from unnest($2::bigint[], $3::bigint[], $4::bigint[]) x (tenant_no, operations, busy_us)
order by tenant_no
on conflict (began_at, tenant_no) do update
set operations = l.operations + excluded.operations, busy_us = l.busy_us + excluded.busy_us;

-- name: hold
-- Whether the process $1 is the one that decides, for $2 seconds from now: its term, and up to which
-- window has been looked. Nothing when another one is.
update catalog.orchestrator
set term = term + (holder is distinct from $1)::int, holder = $1, mode = $3,
    held_until = clock_timestamp() + make_interval(secs => $2)
where holder = $1 or held_until < clock_timestamp()
returning term, case when isfinite(looked_upto) then looked_upto end as looked_upto;

-- name: let_go
update catalog.orchestrator set held_until = '-infinity' where holder = $1;

-- name: orchestrator
select holder is not null and held_until > clock_timestamp() as deciding, mode,
       case when isfinite(looked_upto) then looked_upto end as looked_upto, told
from catalog.orchestrator;

-- name: windows
-- Windows that have ended: after the one of $1, begun at $2 at the latest.
select began_at, server, operations, busy_us from catalog.load_window
where began_at > coalesce($1::timestamptz, '-infinity') and began_at <= $2
order by began_at desc, server
limit $3;

-- name: loads
select began_at, tenant_no, operations, busy_us from catalog.load
where began_at = any ($1::timestamptz[]);

-- name: loads_of_tenant
-- From $2 on, the newest first.
select operations, busy_us from catalog.load
where tenant_no = $1 and began_at >= $2 order by began_at desc limit $3;

-- name: subjects
-- Tenants to look at: those of $1, those of which something is remembered or proposed, and those that
-- are where the orchestrator has brought them. With the move that was the last, what was answered to
-- the last proposal, and the level that others have chosen: from where the first of the orchestrator's
-- moves came since the last one of anybody else.
with wanted as (
    select unnest($1::bigint[]) as tenant_no
    union select tenant_no from catalog.tendency where streak <> '{}'
    union select tenant_no from catalog.proposal where state in ('proposed', 'accepted')
)
select t.tenant_no, t.tenant_id, t.tenant_type, t.status, t.region, t.compliance,
       p.level, p.server, p.database, p.schema, p.role, p.epoch, p.sensitive_schema,
       d.streak, d.size, d.sized_at,
       m.state as move_state, m.changed_at as moved_at,
       m.cleaned and m.state in ('confirmed', 'failed', 'cancelled', 'rolled_back') as move_settled,
       o.proposal_id, o.action, o.target_level, o.region as target_region,
       (o.evidence ->> 'demanded')::boolean as demanded,
       (select max(a.changed_at) from catalog.proposal a
        where a.tenant_no = t.tenant_no and a.state in ('dismissed', 'refused')) as answered_at,
       (select e.source ->> 'level'
        from catalog.move e join catalog.proposal q on q.move_id = e.move_id
        where e.tenant_no = t.tenant_no and e.state in ('open', 'confirmed')
          and e.created_at > coalesce(
              (select max(f.created_at) from catalog.move f
               where f.tenant_no = t.tenant_no and f.state in ('open', 'confirmed')
                 and not exists (select from catalog.proposal g where g.move_id = f.move_id)),
              '-infinity')
        order by e.created_at limit 1) as chosen
from wanted
join catalog.tenant t using (tenant_no)
join catalog.placement p using (tenant_no)
left join catalog.tendency d using (tenant_no)
left join catalog.proposal o on o.tenant_no = t.tenant_no and o.state = 'proposed'
left join lateral (
    select state, changed_at, cleaned from catalog.move
    where tenant_no = t.tenant_no order by created_at desc limit 1) m on true
order by t.tenant_no
limit $2;

-- name: record
-- All that one look has come to, if nobody else has looked meanwhile: $1 = the process, $2 = its term,
-- $3 = up to which window was looked before, $4 = and now, $5 = tendencies, $6 = new proposals, $7 =
-- proposals that are withdrawn, with the act, $8 = what is told of it, $9 = the time.
with mine as (
    update catalog.orchestrator set looked_upto = $4, told = $8::jsonb
    where holder = $1 and term = $2 and looked_upto = coalesce($3::timestamptz, '-infinity')
    returning term
), remembered as (
    insert into catalog.tendency as d (tenant_no, streak, size, sized_at)
    select x.tenant_no, x.streak, x.size, x.sized_at
    from mine, jsonb_to_recordset($5::jsonb)
        x (tenant_no bigint, streak jsonb, size jsonb, sized_at timestamptz)
    where exists (select from catalog.tenant t where t.tenant_no = x.tenant_no)
    on conflict (tenant_no) do update
    set streak = excluded.streak, size = excluded.size, sized_at = excluded.sized_at
), withdrawn as (
    update catalog.proposal q
    set state = 'withdrawn', changed_at = $9, acts = q.acts || x.act
    from mine, jsonb_to_recordset($7::jsonb) x (proposal_id text, act jsonb)
    where q.proposal_id = x.proposal_id and q.state = 'proposed'
    returning q.proposal_id
), proposed as (
    insert into catalog.proposal
        (proposal_id, tenant_no, state, action, source_level, target_level, region, movable, reasons,
         evidence, acts, created_at, changed_at)
    select x.proposal_id, x.tenant_no, 'proposed', x.action, x.source_level, x.target_level, x.region,
           x.movable, x.reasons, x.evidence, x.acts, $9, $9
    from mine, jsonb_to_recordset($6::jsonb)
        x (proposal_id text, tenant_no bigint, action text, source_level text, target_level text,
           region text, movable boolean, reasons jsonb, evidence jsonb, acts jsonb)
    where exists (select from catalog.tenant t where t.tenant_no = x.tenant_no)
      and not exists (select from catalog.proposal q
                      where q.tenant_no = x.tenant_no and q.state = 'proposed')
    on conflict do nothing
    returning proposal_id
), forgotten as (
    delete from catalog.load using mine where began_at < $4::timestamptz - make_interval(secs => $10)
), forgotten_windows as (
    delete from catalog.load_window using mine
    where began_at < $4::timestamptz - make_interval(secs => $10)
)
select array(select proposal_id from proposed union all select proposal_id from withdrawn)
from mine;

-- name: one
select q.*, t.tenant_id from catalog.proposal q join catalog.tenant t using (tenant_no)
where q.proposal_id = $1;

-- name: many
-- The newest first, before the one of id $1; of tenant $2; in state $3.
select q.*, t.tenant_id from catalog.proposal q join catalog.tenant t using (tenant_no)
where ($1::text is null or (q.created_at, q.proposal_id) < (
        select b.created_at, b.proposal_id from catalog.proposal b where b.proposal_id = $1))
  and ($2::bigint is null or q.tenant_no = $2)
  and ($3::text is null or q.state = $3)
order by q.created_at desc, q.proposal_id desc
limit $4;

-- name: waiting
-- Proposals that the orchestrator may carry out, what compliance and residency ask for first.
select q.*, t.tenant_id from catalog.proposal q join catalog.tenant t using (tenant_no)
where q.state = 'proposed' and q.movable
order by coalesce((q.evidence ->> 'demanded')::boolean, false) desc, q.created_at, q.proposal_id
limit $1;

-- name: followed
-- Proposals whose moves somebody has still to look after.
select q.*, t.tenant_id from catalog.proposal q join catalog.tenant t using (tenant_no)
where q.state = 'accepted' and not q.done
order by q.created_at, q.proposal_id
limit $1;

-- name: answer
-- $2 = the next state, $3 = the time, $4 = the act.
update catalog.proposal set state = $2, changed_at = $3, acts = acts || $4::jsonb
where proposal_id = $1 and state = 'proposed' returning proposal_id;

-- name: add_act
-- What was done about the proposal's move, there and in the move's own report; $4 = nothing is left.
with told as (
    update catalog.proposal set acts = acts || $3::jsonb, changed_at = $2, done = done or $4
    where proposal_id = $1 and state = 'accepted' and not done
    returning move_id, acts
)
update catalog.move m
set report = jsonb_set(m.report, '{why,acts}', told.acts)
from told where m.move_id = told.move_id and m.report ? 'why'
returning m.move_id;

-- name: keep_turn
-- In the transaction that records a move: the process $1 is the one that decides, to its end.
select term from catalog.orchestrator
where holder = $1 and term = $2 and held_until > clock_timestamp() for update;

-- name: started_lately
-- Moves that the orchestrator has started since $1, and those of them that are not open yet.
select count(*) filter (where q.accepted_at > $1) as lately,
       count(*) filter (where m.state in ('planned', 'preparing', 'copying', 'catching_up', 'verified',
                                          'cutting_over')) as under_way
from catalog.proposal q join catalog.move m using (move_id)
where q.accepted_by = 'orchestrator' and (q.accepted_at > $1 or not q.done);

-- name: claim
-- The proposal has the move $2 from now on, and the move's report says why.
with claimed as (
    update catalog.proposal
    set state = 'accepted', move_id = $2, accepted_by = $3, accepted_at = $4, changed_at = $4,
        acts = acts || $5::jsonb
    where proposal_id = $1 and state = 'proposed'
    returning proposal_id, reasons, accepted_by, acts
)
update catalog.move m
set report = m.report || jsonb_build_object('why', jsonb_build_object(
    'proposal_id', c.proposal_id, 'by', c.accepted_by, 'reasons', c.reasons, 'acts', c.acts))
from claimed c where m.move_id = $2
returning m.move_id;
