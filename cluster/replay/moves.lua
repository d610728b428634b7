-- Every operation on a run's groups: one call is one atomic move. Runs after states.lua, in the same script, and uses
-- its names. Each can be asked twice (the first reply was lost): the second time changes nothing.

local op = {}

-- A run starts: nobody plays yet. The consumer group must be there before memory is short.
function op.prepare()
  pass_memory_gate()
  redis.pcall('XGROUP', 'CREATE', READY, CONSUMERS, '0', 'MKSTREAM')  -- an error where it is there already
  redis.call('HDEL', LEDGER, 'paused')
  for _, owner in ipairs(redis.call('HKEYS', DRAWN)) do undraw(owner) end
end

-- arg: what the driver's clock shows. Asked twice, or late, it never goes back.
function op.tick()
  pass_memory_gate()
  if tonumber(arg[1]) > now_ms() then redis.call('HSET', LEDGER, 'clock_ms', arg[1]) end
end

-- arg: owner. The number this owner drew and did not issue yet, else the lowest one given back, else a new one.
function op.draw()
  pass_memory_gate()
  local drawn = redis.call('HGET', DRAWN, arg[1])
  if drawn then return tonumber(drawn) end
  local number = tonumber(redis.call('ZPOPMIN', FREE)[1] or redis.call('HINCRBY', LEDGER, 'sequence', 1) - 1)
  redis.call('HSET', DRAWN, arg[1], number)
  return number
end

-- arg: owner. Takes back the number that it drew and did not issue.
function op.undraw()
  pass_memory_gate()
  undraw(arg[1])
end

-- arg: task, size, owner, lease_ms
function op.issue()
  local group, size = groups[1], tonumber(arg[2])
  local owner = get(group, 'owner')
  if owner then return (owner == arg[3] and get(group, 'state') == 'issued') and 'ok' or 'taken' end
  if redis.call('HEXISTS', LEDGER, 'groups_per_update') == 0 then return 'unconfigured' end
  if redis.call('HEXISTS', LEDGER, 'paused') == 1 then return 'paused' end
  local in_system, batch = ledger('in_system'), ledger('groups_per_update')
  local unpublished = math.max(0, ledger('version') - ledger('published'))
  if in_system + unpublished * batch >= (ledger('max_staleness') + 1) * batch then return 'staleness' end
  if ledger('bytes') >= ledger('high_water_bytes') then return 'bytes' end
  if redis.call('ZCARD', FINISHED) >= ledger('max_groups') then return 'groups' end
  local now = now_ms()
  redis.call('HSET', group.record, 'task', arg[1], 'size', size, 'owner', arg[3], 'attempt', 1, 'state', 'issued',
    'results', 0, 'survivors', 0, 'bytes', 0)
  redis.call('ZADD', OPEN, now, group.id)
  redis.call('ZADD', LEASE, now + arg[4], group.id)
  redis.call('HINCRBY', COUNTS, 'issued', size)
  redis.call('HINCRBY', LEDGER, 'issued_total', size)
  redis.call('HDEL', DRAWN, arg[3])
  redis.call('HINCRBY', LEDGER, 'in_system', 1)
  return 'ok'
end

-- arg: owner, lease_ms (0 ends the lease now). Returns the ids that are not this owner's any more.
function op.renew()
  pass_memory_gate()
  local lost, now, lease_ms = {}, now_ms(), tonumber(arg[2])
  for _, group in ipairs(groups) do
    if get(group, 'owner') ~= arg[1] or not redis.call('ZSCORE', LEASE, group.id) then
      lost[#lost + 1] = group.id
    elseif lease_ms == 0 then
      redis.call('ZADD', LEASE, 0, group.id)
    else
      if get(group, 'state') == 'issued' then
        move('issued', 'running', #missing(group))
        redis.call('HSET', group.record, 'state', 'running')
      end
      redis.call('ZADD', LEASE, now + lease_ms, group.id)
    end
  end
  return lost
end

-- Groups whose lease is over wait for a new owner, or end where they had their attempts. Returns those that wait.
function op.expire()
  pass_memory_gate()
  local waiting, now = {}, now_ms()
  for _, group in ipairs(groups) do
    local lease_end = redis.call('ZSCORE', LEASE, group.id)
    if lease_end and tonumber(lease_end) <= now then
      redis.call('ZREM', LEASE, group.id)
      if number(group, 'attempt') >= ledger('max_attempts') then
        give_up_missing(group)
      else
        move(get(group, 'state'), 'issued', #missing(group))
        redis.call('HSET', group.record, 'state', 'issued', 'owner', '')
        redis.call('RPUSH', REISSUE, group.id)
        waiting[#waiting + 1] = {group.id, get(group, 'task'), missing(group)}
      end
    end
  end
  return waiting
end

-- arg: owner, lease_ms, the attempt this is. Asked twice (a reply was lost), it answers the same twice.
function op.adopt()
  pass_memory_gate()
  local group, now = groups[1], now_ms()
  local waits = redis.call('LREM', REISSUE, 1, group.id) > 0
  local mine = get(group, 'owner') == arg[1] and get(group, 'attempt') == arg[3]
  if not waits and not mine then return false end
  redis.call('HSET', group.record, 'owner', arg[1], 'attempt', arg[3])
  redis.call('ZADD', LEASE, now + arg[2], group.id)
  redis.call('ZADD', OPEN, now, group.id)
  return {group.id, get(group, 'task'), missing(group)}
end

-- arg: index, result (finished | env_failed | infra_failed), payload, oldest, newest, max_bytes, max_groups
function op.put()
  local group, episode, result = groups[1], 'episode:' .. arg[1], arg[2]
  local state = get(group, 'state')
  if not state then return 'late' end
  local size, closing = number(group, 'size'), number(group, 'results') + 1 == number(group, 'size')
  if tonumber(arg[1]) >= size then return 'index' end
  local known = get(group, episode)
  if known then return (known == result or state == 'issued' or state == 'running') and 'duplicate' or 'late' end
  if result == 'finished' then
    local newest = tonumber(arg[5])
    if newest > ledger('version') or newest > tonumber(get(group, 'ceiling') or newest) then result = 'stale' end
  end
  if result == 'finished' then
    if ledger('bytes') + #arg[3] > tonumber(arg[6]) then return 'full' end
    if closing and redis.call('ZCARD', FINISHED) >= tonumber(arg[7]) then return 'full' end
    redis.call('HSET', group.payload, arg[1], arg[3])
    redis.call('HSET', group.record,
      'oldest', math.min(arg[4], tonumber(get(group, 'oldest') or arg[4])),
      'newest', math.max(arg[5], tonumber(get(group, 'newest') or arg[5])))
    redis.call('HINCRBY', group.record, 'survivors', 1)
    redis.call('HINCRBY', group.record, 'bytes', #arg[3])
    redis.call('HINCRBY', LEDGER, 'bytes', #arg[3])
  else
    pass_memory_gate()
  end
  redis.call('HSET', group.record, episode, result)
  redis.call('HINCRBY', group.record, 'results', 1)
  move(state, result, 1)
  if closing then close(group) end
  return result == 'stale' and 'late' or 'ok'
end

-- arg: deadline_ms. Closes groups that are older and have survivors enough; the others lose their lease.
function op.overdue()
  pass_memory_gate()
  local closed, now = 0, now_ms()
  for _, group in ipairs(groups) do
    local since = redis.call('ZSCORE', OPEN, group.id)
    if since and now - since > tonumber(arg[1]) then
      if number(group, 'survivors') >= survivors_needed(group) then
        give_up_missing(group)
        closed = closed + 1
      elseif redis.call('ZSCORE', LEASE, group.id) then
        redis.call('ZADD', LEASE, 0, group.id)
      end
    end
  end
  return closed
end

-- arg: final state (stale | dead_letter), reason. Returns how many groups were there to discard.
function op.discard()
  pass_memory_gate()
  local discarded = 0
  for _, group in ipairs(groups) do
    if get(group, 'state') == 'finished' then
      if arg[1] == 'dead_letter' then
        redis.call('XADD', DEAD, 'MAXLEN', DEAD_LETTERS_KEPT, '*', 'group_id', group.id, 'reason', arg[2],
          'survivors', get(group, 'survivors'), 'bytes', get(group, 'bytes'))
      end
      discard(group, arg[1])
      discarded = discarded + 1
    end
  end
  return discarded
end

-- arg: version, then the final state of every group. All of them or none.
function op.commit()
  pass_memory_gate()
  local version, refused = tonumber(arg[1]), {}
  if version ~= ledger('version') and version ~= ledger('version') + 1 then return {'version', ledger('version')} end
  for i, group in ipairs(groups) do
    local state = get(group, 'state')
    local again = state == 'applied' and number(group, 'version') == version and get(group, 'final') == arg[1 + i]
    if state ~= 'finished' and not again then refused[#refused + 1] = group.id end
  end
  if #refused > 0 then return {'groups', unpack(refused)} end
  for i, group in ipairs(groups) do
    if get(group, 'state') == 'finished' then
      move('finished', 'applied', number(group, 'survivors'))
      redis.call('HSET', group.record, 'state', 'applied', 'version', version, 'final', arg[1 + i])
      redis.call('ZREM', FINISHED, group.id)
      redis.call('ZADD', APPLIED, version, group.id)
      redis.call('HINCRBY', LEDGER, 'in_system', -1)
    end
  end
  redis.call('HSET', LEDGER, 'version', version)
  return {'ok'}
end

-- arg: version a checkpoint holds
function op.settle()
  pass_memory_gate()
  local settled = 0
  for _, group in ipairs(groups) do
    if get(group, 'state') == 'applied' and number(group, 'version') <= tonumber(arg[1]) then
      move('applied', get(group, 'final'), number(group, 'survivors'))
      acknowledge(group)
      forget(group)
      settled = settled + 1
    end
  end
  return settled
end

-- arg: version of the checkpoint that was loaded. What newer weights sampled belongs to a history that is gone.
function op.rollback()
  pass_memory_gate()
  local version, returned = tonumber(arg[1]), 0
  redis.call('HSET', LEDGER, 'version', version)
  for _, group in ipairs(groups) do
    local state = get(group, 'state')
    if state == 'applied' and number(group, 'version') > version then
      move('applied', 'finished', number(group, 'survivors'))
      redis.call('ZREM', APPLIED, group.id)
      redis.call('ZADD', FINISHED, now_ms(), group.id)
      redis.call('HSET', group.record, 'state', 'finished')
      redis.call('HINCRBY', LEDGER, 'in_system', 1)
      returned = returned + 1
      state = 'finished'
    end
    if state == 'finished' and number(group, 'newest') > version then
      discard(group, 'stale')
    elseif state == 'issued' or state == 'running' then
      redis.call('HSET', group.record, 'ceiling', version)
    end
  end
  return returned
end

-- arg: version of the checkpoint that was loaded, which is ahead: this Redis forgot updates that the checkpoint holds.
-- Which groups those consumed is forgotten too, so nothing that is left here may be trained on. Returns how many groups.
function op.advance()
  pass_memory_gate()
  local dropped = 0
  redis.call('HSET', LEDGER, 'version', tonumber(arg[1]))
  for _, group in ipairs(groups) do
    local state = get(group, 'state')
    if state == 'applied' then
      move('applied', get(group, 'final'), number(group, 'survivors'))
      acknowledge(group)
      forget(group)
    elseif state == 'finished' then
      discard(group, 'stale')
      dropped = dropped + 1
    elseif state then
      move(state, 'stale', #missing(group))
      move('finished', 'stale', number(group, 'survivors'))
      redis.call('HINCRBY', LEDGER, 'in_system', -1)
      forget(group)
      dropped = dropped + 1
    end
  end
  return dropped
end

function op.balance() return {ledger('issued_total'), redis.call('HGETALL', COUNTS)} end

local answer = op[ARGV[1]]()
expire_what_is_new()
return answer
