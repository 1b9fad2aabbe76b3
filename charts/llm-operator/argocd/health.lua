-- What Argo CD shows for an LLMDeployment and an ApiKey: it has no check of its own for these kinds, and takes a
-- resource without one for healthy. docs/operations.md, "Argo CD and Flux", says how it gets there.
local health = {status = "Progressing", message = "no operator has looked at it yet"}
local status = obj.status

if obj.metadata.deletionTimestamp ~= nil then
  health.message = "is being deleted"
  return health
end
if status == nil or status.conditions == nil or status.observedGeneration == nil then
  return health
end
if status.observedGeneration ~= obj.metadata.generation then
  health.message = "the operator has not seen the latest change yet"
  return health
end

local conditions = {}
for _, condition in ipairs(status.conditions) do
  conditions[condition.type] = condition
end
local function is(kind, value)
  return conditions[kind] ~= nil and conditions[kind].status == value
end

-- By wish: not Degraded, and not Progressing for ever either.
local wished = {Suspended = true, ScaledToZero = true, Expired = true}
local ready = conditions.Ready
if ready ~= nil then
  health.message = ready.reason .. ": " .. (ready.message or "")
end
if is("Stalled", "True") then
  health.status = "Degraded"
  health.message = conditions.Stalled.reason .. ": " .. (conditions.Stalled.message or "")
elseif is("Ready", "False") and wished[ready.reason] then
  health.status = "Suspended"
elseif is("Ready", "True") and not is("Reconciling", "True") then
  health.status = "Healthy"
end
return health
