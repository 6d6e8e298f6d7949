-- The state of tenants' result caches in Redis, and the results that processes share (cache_store.py).
--
-- Several questions of one process travel in one call. Each is a letter and its arguments:
--   L state slot n field*n    look: how many writes began and ended, and what is in the slot ('' = none)
--   B state n field*n         a write of these tables begins: 1, or 0 when there is no such state
--   E state n field*n         it has ended
--   K slot lifetime_ms value  keep a result
--   H key lifetime_ms value   remember what a pinned tenant asks for
--   G key                     what it asks for ('' = not known)
--   X key                     forget it
--   O state                   a new state, with nothing counted
--   D state                   no state any more
-- A state is a hash with two counters of each table, `b` and `e` before its name.
--
-- Nothing of it is written to the append-only file or to replicas: what a restart would bring back is
-- never believed, and a sync of the disk for each write would cost as much as the write. What pinned
-- tenants ask for is: it is to be there after a restart, and it changes seldom.
if redis.replicate_commands then redis.replicate_commands() end
redis.set_repl(redis.REPL_NONE)

local LIFETIME_MS = 604800000
local at, answers, lasts = 1, {}, {}

local function take()
    at = at + 1
    return ARGV[at - 1]
end

local function fields(prefix)
    local found = {}
    for index = 1, tonumber(take()) do found[index] = prefix .. take() end
    return found
end

-- Who begins writes or asks uses the state, which then goes on: half of its time is always left.
local function used(state)
    if lasts[state] then return end
    lasts[state] = true
    if redis.call('PTTL', state) < LIFETIME_MS / 2 then redis.call('PEXPIRE', state, LIFETIME_MS) end
end

local function count(prefix)
    local state = take()
    local found = fields(prefix)
    if redis.call('EXISTS', state) == 0 then return 0 end
    used(state)
    for _, field in ipairs(found) do redis.call('HINCRBY', state, field, 1) end
    return 1
end

local function look()
    local state, slot = take(), take()
    local asked = {'opened'}
    for index = 1, tonumber(take()) do
        local field = take()
        asked[2 * index] = 'b' .. field
        asked[2 * index + 1] = 'e' .. field
    end
    local found = redis.call('HMGET', state, unpack(asked))
    if not found[1] then return false end
    used(state)
    local answer = {}
    for index = 2, #asked do answer[index - 1] = tonumber(found[index] or 0) end
    answer[#asked] = slot ~= '' and redis.call('GET', slot) or ''
    if not answer[#asked] then answer[#asked] = '' end
    return answer
end

local function lasting(...)
    redis.set_repl(redis.REPL_ALL)
    redis.call(...)
    redis.set_repl(redis.REPL_NONE)
end

while at <= #ARGV do
    local what, answer = take(), 1
    if what == 'L' then
        answer = look()
    elseif what == 'B' then
        answer = count('b')
    elseif what == 'E' then
        answer = count('e')
    elseif what == 'K' then
        local slot, lifetime_ms, value = take(), take(), take()
        redis.call('SET', slot, value, 'PX', lifetime_ms)
    elseif what == 'H' then
        local key, lifetime_ms, value = take(), take(), take()
        lasting('SET', key, value, 'PX', lifetime_ms)
    elseif what == 'G' then
        answer = redis.call('GET', take()) or ''
    elseif what == 'X' then
        lasting('DEL', take())
    elseif what == 'O' then
        local state = take()
        redis.call('HSET', state, 'opened', '1')
        redis.call('PEXPIRE', state, LIFETIME_MS)
    elseif what == 'D' then
        redis.call('DEL', take())
    end
    answers[#answers + 1] = answer
end
return answers
