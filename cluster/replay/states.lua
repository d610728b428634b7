-- The states of a run's groups and episodes, and the steps their moves are made of. moves.lua follows in one script.
--
-- episode: issued -> running -> finished -> applied -> trained | filtered | stale | dead_letter
--          issued | running -> env_failed | infra_failed | stale;   finished -> filtered | stale | dead_letter
-- Every move takes n episodes from one field of COUNTS to another, so the sum of COUNTS is always what was issued.
-- A group that is over (no episode of it can move any more) leaves nothing but its counts.
--
-- KEYS  1-11 as named below, then the record and the payload of every group of the call
-- ARGV  operation, number of groups, their ids, then what the operation takes
-- Written for Redis 6.2: no functions, no flags line.

local LEDGER, COUNTS, READY, DEAD = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local OPEN, LEASE, REISSUE = KEYS[5], KEYS[6], KEYS[7]  -- by time of issue; by lease end; waiting for a new owner
local FINISHED, APPLIED = KEYS[8], KEYS[9]              -- by time of closing; by the version that consumed it
local DRAWN, FREE = KEYS[10], KEYS[11]                 -- sequence number by owner; numbers given back
local CONSUMERS, DEAD_LETTERS_KEPT = 'learner', 1000

local groups, arg = {}, {}
local group_count = tonumber(ARGV[2])
for i = 1, group_count do
  groups[i] = {id = ARGV[2 + i], record = KEYS[10 + 2 * i], payload = KEYS[11 + 2 * i]}
end
for i = 3 + group_count, #ARGV do arg[#arg + 1] = ARGV[i] end

-- The clock of a run: the time that its driver has driven it. The server's own jumps where somebody sets it, and goes on
-- where nobody drives; this one does neither.
local function now_ms() return tonumber(redis.call('HGET', LEDGER, 'clock_ms') or 0) end

-- In a Redis that others use too, a run that nobody drives must not stay for ever. The driver renews what is there; a
-- key made by this call gets its time at once, for the driver may be killed before it looks again.
local function expire_what_is_new()
  local expiry_ms = tonumber(redis.call('HGET', LEDGER, 'expiry_ms') or 0)
  if expiry_ms == 0 then return end
  for _, key in ipairs(KEYS) do
    if redis.call('PTTL', key) == -1 then redis.call('PEXPIRE', key, expiry_ms) end
  end
end

local function get(group, field) return redis.call('HGET', group.record, field) end
local function number(group, field) return tonumber(get(group, field) or 0) end
local function ledger(field) return tonumber(redis.call('HGET', LEDGER, field) or 0) end

-- At maxmemory Redis refuses a script whose first write may need memory. A consumer must be able to drain a full
-- server, so what frees memory or moves counts opens with a write that cannot need any.
local function pass_memory_gate() redis.call('HDEL', LEDGER, '') end

local function move(from, to, n)
  if n == 0 then return end
  redis.call('HINCRBY', COUNTS, from, -n)
  redis.call('HINCRBY', COUNTS, to, n)
end

local function missing(group)
  local indices = {}
  for i = 0, number(group, 'size') - 1 do
    if redis.call('HEXISTS', group.record, 'episode:' .. i) == 0 then indices[#indices + 1] = i end
  end
  return indices
end

local function survivors_needed(group) return number(group, 'size') == 1 and 1 or 2 end

local function forget(group)
  redis.call('HINCRBY', LEDGER, 'bytes', 0 - number(group, 'bytes'))  -- minus zero is written '-0', no integer
  for _, key in ipairs({OPEN, LEASE, FINISHED, APPLIED}) do redis.call('ZREM', key, group.id) end
  redis.call('LREM', REISSUE, 0, group.id)
  redis.call('DEL', group.record, group.payload)
end

local function acknowledge(group)
  local entry = get(group, 'entry')
  redis.call('XACK', READY, CONSUMERS, entry)
  redis.call('XDEL', READY, entry)
end

-- Every episode has its result: hand the group to the learner, or drop it where too few survived to compare.
local function close(group)
  local survivors = number(group, 'survivors')
  if survivors < survivors_needed(group) then
    move('finished', 'filtered', survivors)
    redis.call('HINCRBY', LEDGER, 'in_system', -1)
    return forget(group)
  end
  local entry = redis.call('XADD', READY, '*', 'group_id', group.id, 'survivors', survivors,
    'oldest', get(group, 'oldest'), 'newest', get(group, 'newest'), 'bytes', get(group, 'bytes'))
  redis.call('HSET', group.record, 'state', 'finished', 'entry', entry)
  redis.call('ZREM', OPEN, group.id)
  redis.call('ZREM', LEASE, group.id)
  redis.call('LREM', REISSUE, 0, group.id)
  redis.call('ZADD', FINISHED, now_ms(), group.id)
end

local function give_up_missing(group)
  local indices = missing(group)
  for _, i in ipairs(indices) do redis.call('HSET', group.record, 'episode:' .. i, 'infra_failed') end
  redis.call('HINCRBY', group.record, 'results', #indices)
  move(get(group, 'state'), 'infra_failed', #indices)
  close(group)
end

-- A finished group leaves without having been consumed.
local function discard(group, final)
  move('finished', final, number(group, 'survivors'))
  redis.call('HINCRBY', LEDGER, 'in_system', -1)
  acknowledge(group)
  forget(group)
end

local function undraw(owner)
  local number = redis.call('HGET', DRAWN, owner)
  if number then redis.call('ZADD', FREE, number, number) end
  redis.call('HDEL', DRAWN, owner)
end
