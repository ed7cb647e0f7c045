-- wrk's script: POST one chat completion again and again, and tell the figures in one line of JSON.
-- Environment: BENCH_BODY, the file with the body; BENCH_HEADERS, "Name: value" lines; BENCH_KEYS, a file of API keys,
-- of which each request carries a random one instead of the Authorization in BENCH_HEADERS.
local file = assert(io.open(assert(os.getenv("BENCH_BODY")), "rb"))
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
wrk.headers["Content-Type"] = "application/json"
for name, value in (os.getenv("BENCH_HEADERS") or ""):gmatch("([^:\n]+): ([^\n]+)") do
    wrk.headers[name] = value
end

local keys_file = os.getenv("BENCH_KEYS")
if keys_file then
    local keys, before, after = {}, nil, nil
    for key in io.lines(keys_file) do
        keys[#keys + 1] = key
    end
    -- wrk formats one request, and the key's place in it is filled anew each time.
    function request()
        if not before then
            wrk.headers["Authorization"] = "Bearer @key@"
            local whole = wrk.format()
            local from, to = whole:find("@key@", 1, true)
            before, after = whole:sub(1, from - 1), whole:sub(to + 1)
        end
        return before .. keys[math.random(#keys)] .. after
    end
end

-- Every answer other than 2xx and 3xx is in errors.status; wrk counts it in requests too.
function done(summary, latency)
    local errors = summary.errors
    io.write(string.format(
        '{"requests":%d,"seconds":%.6f,"refused":%d,"broken":%d,"p50_us":%.1f,"p99_us":%.1f}\n',
        summary.requests, summary.duration / 1e6, errors.status,
        errors.connect + errors.read + errors.write + errors.timeout,
        latency:percentile(50), latency:percentile(99)))
end
