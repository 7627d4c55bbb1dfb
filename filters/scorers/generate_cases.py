#!/usr/bin/env python3
"""Writes each plugin's cases.json: inputs, and what the formulas make of them.

The formulas are written down here from the plugins' documentation (llm-d router v0.10.0,
pkg/epp/framework/plugins/scheduling, and the papers named in each plugin), and share nothing with
the Rust code. Only the standard library is needed; the numbers do not depend on its version.

    generate_cases.py            writes the tables
    generate_cases.py --check    fails if they are others
"""

import json
import math
import os
import sys

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "src")
M64 = (1 << 64) - 1


def splitmix(seed, index):
    """Output number `index` of splitmix64 seeded with `seed` (Vigna)."""
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) & M64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M64
    return z ^ (z >> 31)


def uniform(seed, index):
    return (splitmix(seed, index) >> 11) / 2.0**53


class Rng:
    """A generator that is the same in every Python."""

    def __init__(self, seed):
        self.seed, self.at = seed, 0

    def real(self):
        self.at += 1
        return uniform(self.seed, self.at)

    def int(self, low, high):
        return low + int(self.real() * (high - low + 1))

    def pick(self, items):
        return items[self.int(0, len(items) - 1)]

    def chance(self, share):
        return self.real() < share

    def ratio(self):
        return self.int(0, 100) / 100


# --- Inputs ---------------------------------------------------------------------------------


def load(rng, known=0.8):
    endpoint = {}
    for key, value in [
        ("waiting", rng.pick([0, 0, 1, 3, 10, 64, 128, 200])),
        ("running", rng.int(0, 32)),
        ("kv", rng.ratio()),
    ]:
        if rng.chance(known):
            endpoint[key] = value
    return endpoint


def prefix(rng, endpoint, strides, tokens):
    held = rng.pick([0, 0, strides, rng.int(0, strides)])
    endpoint["gpu_strides"] = held
    endpoint["gpu_tokens"] = tokens * held // max(strides, 1)
    if rng.chance(0.3):
        endpoint["source"] = rng.pick(["degraded", "none"])
    if rng.chance(0.3):
        endpoint["reliability"] = rng.pick([0.5, 0.25])
    if rng.chance(0.2):
        endpoint["sent_strides"] = rng.int(0, strides)
    return endpoint


def in_flight(rng, endpoint):
    if rng.chance(0.7):
        endpoint["in_flight"] = rng.int(0, 12)
        endpoint["tokens"] = endpoint["in_flight"] * rng.int(0, 5000)
    return endpoint


def pool(rng, of, most=6):
    return [of(rng) for _ in range(rng.pick([1, 2, 3, 3, 4, most]))]


# --- What several plugins read ---------------------------------------------------------------

TRUST = {None: 1.0, "live": 1.0, "degraded": 0.5, "none": 0.0}


def weight_of_match(c):
    return TRUST[c.get("source")] * c.get("reliability", 1.0)


def share(request, c):
    if request.get("strides", 0) == 0:
        return 0.0
    held = c.get("gpu_strides", 0) * weight_of_match(c)
    return max(held, c.get("sent_strides", 0)) / request["strides"]


def uncached(request, c):
    """Whole tokens: the estimate of what was just sent is cut to one."""
    tokens = request.get("prompt_tokens", 0)
    sent = tokens * c.get("sent_strides", 0) // max(request.get("strides", 0), 1)
    return max(0, tokens - max(sent, c.get("gpu_tokens", 0)))


def waiting_of(candidates):
    """The queue, and what is in flight and cannot be in the engine's report."""
    idle = [c["running"] for c in candidates if c.get("waiting") == 0 and "running" in c]
    batch = 2 * max(idle, default=0)
    result = []
    for c in candidates:
        waiting, running = c.get("waiting"), c.get("running")
        if waiting is None or running is None:
            result.append(waiting)
            continue
        beyond = batch if waiting == 0 else waiting + running
        result.append(waiting + max(0, c.get("in_flight", 0) - beyond))
    return result


def lowest_best(values):
    known = [v for v in values if v is not None]
    if not known:
        return [None] * len(values)
    low, high = min(known), max(known)
    if low == high:
        return [None if v is None else 1.0 for v in values]
    return [None if v is None else (high - v) / (high - low) for v in values]


def median_for_unknown(scores):
    known = sorted(s for s in scores if s is not None)
    if not known:
        return [0.5] * len(scores)
    n = len(known)
    median = (known[(n - 1) // 2] + known[n // 2]) / 2
    return [median if s is None else s for s in scores]


# --- Scorers -----------------------------------------------------------------------------------


def queue(_, __, candidates, ___):
    return median_for_unknown(lowest_best(waiting_of(candidates)))


def running_requests(_, __, candidates, ___):
    return lowest_best([c.get("running") for c in candidates])


def kv_cache_utilization(_, __, candidates, ___):
    scores = [None if "kv" not in c else 1.0 - c["kv"] for c in candidates]
    return median_for_unknown(scores)


def prefix_cache(p, request, candidates, _):
    w = p.get("matchLengthWeight", 0)
    scale = p.get("matchLengthScaleTokens", 8192)
    scores = []
    for c in candidates:
        sent = c.get("sent_strides", 0) / max(request["strides"], 1)
        tokens = max(c["gpu_tokens"] * weight_of_match(c), sent * request["prompt_tokens"])
        scores.append(w * min(1, tokens / scale) ** 2 + (1 - w) * share(request, c))
    return scores


def load_aware(p, _, candidates, __):
    threshold = p.get("threshold", 128)
    scores = []
    for q in waiting_of(candidates):
        if q is None:
            scores.append(None)
        elif q == 0:
            scores.append(0.5)
        else:
            scores.append(0.5 * (1 - min(q, threshold) / threshold))
    return scores


def active_request(p, _, candidates, __):
    idle, busy = p.get("idleThreshold", 0), p.get("maxBusyScore", 1.0)
    counts = [c.get("in_flight", 0) for c in candidates]
    most = max(counts)
    return [1.0 if n <= idle else (most - n) / most * busy for n in counts]


def token_load(p, request, candidates, _):
    threshold = p.get("queueThresholdTokens", 4194304)
    tokens = [c.get("tokens", 0) + uncached(request, c) for c in candidates]
    return [1 - min(1, t / threshold) for t in tokens]


def no_hit_lru(_, __, candidates, case):
    if any(c.get("gpu_strides", 0) or c.get("sent_strides", 0) for c in candidates):
        return [0.5] * len(candidates)
    last = (case.get("cold", []) + [0] * len(candidates))[: len(candidates)]
    steps = max(1, len(candidates) - 1)
    return [1.0 if mine == 0 else 1 - sum(o < mine for o in last) / steps for mine in last]


def lora_affinity(_, __, candidates, ___):
    table = {"active": 1.0, "room": 0.8, "waiting": 0.6, "full": 0.0}
    return [table.get(c.get("adapter")) for c in candidates]


def session_affinity(_, __, candidates, ___):
    return [1.0 if c.get("session") else 0.0 for c in candidates]


def context_range(text):
    parts = text.split("-")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        return None
    low, high = int(parts[0]), int(parts[1])
    return (low, high) if low <= high else None


def context_length_aware(p, request, candidates, _):
    label = p.get("label", "llm-d.ai/context-length-range")
    n = request.get("prompt_tokens", 0)
    scores = []
    for c in candidates:
        text = c.get("labels", {}).get(label)
        if n == 0:
            scores.append(None)
        elif text is None:
            scores.append(0.5)
        elif context_range(text) is None:
            scores.append(0.0)
        else:
            low, high = context_range(text)
            if low <= n <= high:
                width = high - low
                if width == 0:
                    scores.append(1.0)
                else:
                    raw = 0.7 * (1 / (1 + width / 10000)) + 0.3 * ((high - n) / width)
                    scores.append(0.3 + raw * 0.7)
            else:
                distance = n - high if n > high else low - n
                scores.append(0.3 / (1 + distance / 1000))
    return scores


def endpoint_attribute(p, _, candidates, __):
    values = [c.get("attributes", {}).get(p["attributeKey"]) for c in candidates]
    lower = p["algorithm"]["type"] == "linear_lower_is_better"
    fixed = p["algorithm"].get("normalization", {}).get("fixedRange")
    known = [v for v in values if v is not None]
    scores = []
    for v in values:
        if v is None:
            scores.append(0.0)
            continue
        if fixed:
            n = max(0, min(1, (v - fixed["min"]) / (fixed["max"] - fixed["min"])))
        elif max(known) == min(known):
            scores.append(1.0)
            continue
        else:
            n = (v - min(known)) / (max(known) - min(known))
        scores.append(1 - n if lower else n)
    return scores


def header_label_affinity(p, request, candidates, _):
    wanted = request.get("headers", {}).get(p["headerName"].lower(), "")
    label = p["labelKey"]
    return [
        1.0 if wanted and c.get("labels", {}).get(label) == wanted else 0.0 for c in candidates
    ]


TOPOLOGY = [
    ("host", "kubernetes.io/hostname", 1.0),
    ("rack", "topology.kubernetes.io/rack", 0.2),
    ("zone", "topology.kubernetes.io/zone", 0.05),
    ("region", "topology.kubernetes.io/region", 0.02),
]


def shared_level(p, request, c):
    """Index of the tightest level that candidate and peer share; 4 for none."""
    names = p.get("labels", {})
    if request.get("peer_labels"):
        peer = {
            level: request["peer_labels"].get(names.get(level, label))
            for level, label, _ in TOPOLOGY
        }
    else:
        header = p.get("peerTopologyHeader", "").lower()
        said = request.get("headers", {}).get(header, "") if header else ""
        peer = dict(pair.split("=", 1) for pair in said.split(",") if "=" in pair)
    for i, (level, label, _) in enumerate(TOPOLOGY):
        own = c.get("labels", {}).get(names.get(level, label))
        if own and peer.get(level) == own:
            return i
    return 4


def topology_affinity(p, request, candidates, _):
    scores = [score for _, _, score in TOPOLOGY] + [0.0]
    return [scores[shared_level(p, request, c)] for c in candidates]


def lmetric(_, request, candidates, __):
    if request.get("prompt_tokens", 0) == 0:
        return [None] * len(candidates)
    return lowest_best([uncached(request, c) * (c.get("in_flight", 0) + 1) for c in candidates])


class OnAStep(Exception):
    """A value so near to a rounding step that f32 inputs may fall on its other side."""


def steps(value, how):
    scaled = value * 100 + (0.5 if how == "round" else 0)
    distance = abs(scaled - round(scaled))
    # Headrooms are of whole numbers, which are the same in f32: there an edge is one for everybody.
    if distance < 1e-3 and not (how == "floor" and distance < 1e-9):
        raise OnAStep
    return math.floor(scaled)


def latency(p, request, candidates, _):
    def weights(keys, defaults, instead):
        given = [p.get(k, d) for k, d in zip(keys, defaults)]
        total = sum(given)
        return [g / total for g in given] if total > 0 else instead

    has_ttft = any(c.get("prefill_rate", 0) > 0 for c in candidates)
    has_tpot = any("tpot_ms" in c for c in candidates)
    if not has_ttft and not has_tpot:
        kv, wq, wp = weights(
            ["compositeKVWeight", "compositeQueueWeight", "compositePrefixWeight"],
            [1, 1, 1],
            [1, 0, 0],
        )
        most = max([c["waiting"] for c in candidates if "waiting" in c], default=0)
        scores = []
        for c in candidates:
            if "waiting" not in c or "kv" not in c:
                scores.append(None)
                continue
            short = 1.0 if most == 0 else (most - c["waiting"]) / most
            total = kv * (1 - c["kv"]) + wq * short + wp * share(request, c)
            scores.append(steps(total, "round") / 100)
        return scores

    rooms = []
    for c in candidates:
        ttft = tpot = 0.0
        if has_ttft:
            if c.get("prefill_rate", 0) <= 0:
                rooms.append(None)
                continue
            tokens = c.get("tokens", 0) + uncached(request, c)
            ttft = request.get("slo_ttft_ms", 0) - tokens / c["prefill_rate"] * 1000
        if has_tpot:
            if "tpot_ms" not in c:
                rooms.append(None)
                continue
            tpot = request.get("slo_tpot_ms", 0) - c["tpot_ms"]
        rooms.append((ttft, tpot, c.get("in_flight", 0) == 0))

    def group(room):
        ttft, tpot, idle = room
        if ttft >= 0 and tpot >= 0:
            return 0
        if idle:
            return 1
        return 4 if ttft < 0 and tpot < 0 else 3 if ttft < 0 else 2

    known = [r for r in rooms if r is not None]
    if not known:
        return [None] * len(candidates)
    best = min(group(r) for r in known)
    member = [r for r in known if group(r) == best]
    alpha, beta = weights(["ttftWeight", "tpotWeight"], [0.8, 0.2], [1, 0])
    spans = []
    for dimension in (0, 1):
        sizes = [abs(r[dimension]) for r in member]
        spans.append((min(sizes), max(sizes) - min(sizes)))
    if spans[0][1] <= 1e-9 < spans[1][1]:
        alpha, beta = 0.0, 1.0
    elif spans[1][1] <= 1e-9 < spans[0][1]:
        alpha, beta = 1.0, 0.0
    least = best != 0 or p.get("headroomSelectionStrategy", "least") == "least"
    scores = []
    for r in rooms:
        if r is None:
            scores.append(None)
        elif group(r) != best:
            scores.append(0.0)
        else:
            n = [
                (abs(r[d]) - spans[d][0]) / spans[d][1] if spans[d][1] > 1e-9 else 0.5
                for d in (0, 1)
            ]
            combined = alpha * n[0] + beta * n[1]
            value = 1 - combined if least else combined
            scores.append(min(1.0, (steps(value, "floor") + 1) / 100))
    return scores


# --- Filters -----------------------------------------------------------------------------------


def or_all(keep):
    return keep if any(keep) else [True] * len(keep)


def label_selector(p, _, candidates, __):
    def selects(c):
        labels = c.get("labels", {})
        if any(labels.get(k) != v for k, v in p.get("matchLabels", {}).items()):
            return False
        for e in p.get("matchExpressions", []):
            there, value = e["key"] in labels, labels.get(e["key"])
            true = {
                "In": there and value in e.get("values", []),
                "NotIn": not there or value not in e.get("values", []),
                "Exists": there,
                "DoesNotExist": not there,
            }[e["operator"]]
            if not true:
                return False
        return True

    return [selects(c) for c in candidates]


ROLES = {
    "decode": {"decode", "prefill-decode", "encode-prefill-decode", "both", None},
    "prefill": {"prefill", "encode-prefill", "prefill-decode", "encode-prefill-decode", "both"},
    "encode": {"encode", "encode-prefill", "encode-prefill-decode"},
}


def role(p, _, candidates, __):
    return [c.get("labels", {}).get("llm-d.ai/role") in ROLES[p["role"]] for c in candidates]


def prefix_cache_affinity(p, request, candidates, case):
    threshold = p.get("affinityThreshold", 0.8)
    everyone = [True] * len(candidates)
    if len(candidates) <= 1 or threshold <= 0:
        return everyone
    if uniform(case.get("draw", 0), 0) < p.get("explorationProbability", 0):
        return everyone
    sticky = [share(request, c) >= threshold for c in candidates]
    if not any(sticky):
        return everyone
    penalty = p.get("maxTTFTPenaltyMs", 18000)
    if penalty > 0 and not all(sticky):

        def ttft(c):
            if p.get("ttftSource", "prefillThroughput") == "latencyPredictor":
                if c.get("prefill_rate", 0) <= 0:
                    return None
                return (c.get("tokens", 0) + uncached(request, c)) / c["prefill_rate"] * 1000
            return c.get("tokens", 0) / p.get("peakPrefillThroughput", 15928) * 1000

        def best(which):
            known = [ttft(c) for c, s in zip(candidates, sticky) if s == which]
            return min([t for t in known if t is not None], default=None)

        if best(True) is None or best(False) is None or best(True) - best(False) > penalty:
            return everyone
    return sticky


def session_filter(_, __, candidates, ___):
    return or_all([bool(c.get("session")) for c in candidates])


def utilization(p, _, candidates, __):
    waiting = waiting_of(candidates)
    keep = []
    for c, q in zip(candidates, waiting):
        reading = {
            "active-requests": c.get("in_flight", 0),
            "running-requests": c.get("running"),
            "waiting-queue": q,
            "kv-cache-utilization": c.get("kv"),
        }
        over = [
            reading[e["metric"]] is not None and reading[e["metric"]] > e["maxValue"]
            for e in p["conditions"]
        ]
        keep.append(not any(over))
    return or_all(keep) if p.get("fallbackOnEmpty") else keep


def attribute_filter(p, _, candidates, __):
    threshold = p["algorithm"]["threshold"]
    compare = {
        "LessThan": lambda a, b: a < b,
        "LessThanOrEqual": lambda a, b: a <= b,
        "GreaterThan": lambda a, b: a > b,
        "GreaterThanOrEqual": lambda a, b: a >= b,
        "Equal": lambda a, b: a == b,
        "NotEqual": lambda a, b: a != b,
    }[threshold["operator"]]
    keep = []
    for c in candidates:
        value = c.get("attributes", {}).get(p["attribute"])
        if value is None:
            keep.append(p.get("onMissing", "Pass") == "Pass")
        else:
            keep.append(compare(value, threshold["value"]))
    return or_all(keep) if p.get("fallbackOnEmpty") else keep


def topology_filter(p, request, candidates, _):
    levels = [level for level, _, _ in TOPOLOGY]
    least = levels.index(p.get("minAffinity", "host"))
    return or_all([shared_level(p, request, c) <= least for c in candidates])


def context_filter(p, request, candidates, _):
    n = request.get("prompt_tokens", 0)
    if n == 0 or not p.get("enableFiltering", True):
        return [True] * len(candidates)
    keep = []
    for c in candidates:
        text = c.get("labels", {}).get(p.get("label", "llm-d.ai/context-length-range"))
        if text is None:
            keep.append(True)
        else:
            span = context_range(text)
            keep.append(span is not None and span[0] <= n <= span[1])
    return keep


# --- Pickers -----------------------------------------------------------------------------------


def max_score(case):
    totals, candidates = case["totals"], case["candidates"]
    picked = (case.get("picked", []) + [0] * len(candidates))[: len(candidates)]

    def tie_break(i):
        c = candidates[i]
        waiting, flight = c.get("waiting", 0), c.get("in_flight", 0)
        busy = max(c.get("running", 0), flight - waiting)
        load = (waiting, busy, flight, c.get("tokens", 0))
        return (load, picked[i], splitmix(case["tie"], i))

    rest = sorted(range(len(totals)), key=lambda i: -totals[i])
    order = []
    while rest:
        tied = [i for i in rest if totals[rest[0]] - totals[i] <= 1e-5]
        order += sorted(tied, key=tie_break)
        rest = rest[len(tied) :]
    was_tie = len(order) > 1 and abs(totals[order[0]] - totals[order[1]]) <= 1e-5
    return order, was_tie


def random_order(case):
    n = len(case["candidates"])
    return sorted(range(n), key=lambda i: -uniform(case["draw"], i)), False


def weighted_random(case):
    def key(i):
        u, w = uniform(case["draw"], i), case["totals"][i]
        return (1, math.log(u) / w) if w > 0 else (0, u)

    n = len(case["candidates"])
    return sorted(range(n), key=key, reverse=True), False


# --- Tables ------------------------------------------------------------------------------------


def labels_of(rng, choices):
    return {key: rng.pick(values) for key, values in choices.items() if rng.chance(0.75)}


def request_of(rng):
    strides = rng.pick([0, 1, 16, 100, 1000])
    return {"strides": strides, "prompt_tokens": strides * rng.pick([13, 16])}


def with_prefix(rng, request):
    def of(r):
        endpoint = in_flight(r, load(r))
        return prefix(r, endpoint, request["strides"], request["prompt_tokens"])

    return pool(rng, of)


ATTRIBUTES = [0, 0.1, 0.3, 1, 5, 40, -3]
RANGES = ["0-2048", "2048-8192", "0-131072", "100-100", "1600-1600", "8192 - 65536", "x-9", "9-1", "7"]
PLACES = {
    "kubernetes.io/hostname": ["h1", "h2", "h3"],
    "topology.kubernetes.io/rack": ["r1", "r2"],
    "topology.kubernetes.io/zone": ["z1", "z2"],
    "topology.kubernetes.io/region": ["eu", "us"],
}
ROLE_LABELS = sorted(r for r in ROLES["decode"] | ROLES["prefill"] | ROLES["encode"] if r)


def loads(rng):
    return {"candidates": pool(rng, lambda r: in_flight(r, load(r)))}


def prefixes(rng):
    request = request_of(rng)
    return {"request": request, "candidates": with_prefix(rng, request)}


def prefix_cache_input(rng):
    case = prefixes(rng)
    if rng.chance(0.7):
        case["parameters"] = {"matchLengthWeight": rng.pick([0, 0.25, 0.5, 1])}
        if rng.chance(0.5):
            case["parameters"]["matchLengthScaleTokens"] = rng.pick([100, 1600, 8192])
    return case


def load_aware_input(rng):
    case = loads(rng)
    if rng.chance(0.6):
        case["parameters"] = {"threshold": rng.pick([1, 5, 64, 128])}
    return case


def active_request_input(rng):
    case = loads(rng)
    if rng.chance(0.7):
        case["parameters"] = {
            "idleThreshold": rng.pick([0, 2, 100]),
            "maxBusyScore": rng.pick([0, 0.5, 1]),
        }
    return case


def token_load_input(rng):
    case = prefixes(rng)
    if rng.chance(0.7):
        case["parameters"] = {"queueThresholdTokens": rng.pick([1, 1000, 20000, 65536])}
    return case


def no_hit_lru_input(rng):
    candidates = pool(rng, load)
    if rng.chance(0.2):
        rng.pick(candidates)[rng.pick(["gpu_strides", "sent_strides"])] = 1
    return {"candidates": candidates, "cold": [rng.int(0, 5) for _ in candidates]}


def lora_input(rng):
    def of(r):
        state = r.pick(["active", "room", "waiting", "full", None])
        return {"adapter": state} if state else {}

    return {"candidates": pool(rng, of)}


def session_input(rng):
    candidates = pool(rng, load)
    if rng.chance(0.7):
        rng.pick(candidates)["session"] = True
    case = {"candidates": candidates}
    if rng.chance(0.3):
        case["parameters"] = {
            "strategy": "session_id",
            "sessionIdConfig": {"sources": [{"header": "x-user"}], "evictionTtlSeconds": 60},
        }
    return case


def context_input(rng):
    label = rng.pick(["llm-d.ai/context-length-range", "len"])
    case = {
        "request": {"prompt_tokens": rng.pick([0, 100, 1600, 2048, 5000, 50000, 200000])},
        "candidates": pool(rng, lambda r: {"labels": labels_of(r, {label: RANGES})}),
    }
    if label == "len":
        case["parameters"] = {"label": label}
    return case


def attribute_pool(rng):
    return pool(
        rng, lambda r: {"attributes": {"a": r.pick(ATTRIBUTES)} if r.chance(0.75) else {"b": 1}}
    )


def attribute_input(rng):
    algorithm = {"type": rng.pick(["linear_lower_is_better", "linear_higher_is_better"])}
    if rng.chance(0.5):
        fixed = {"min": rng.pick([-5, 0]), "max": rng.pick([1, 10])}
        algorithm["normalization"] = {"fixedRange": fixed}
    elif rng.chance(0.5):
        algorithm["normalization"] = {"adaptiveRange": {}}
    parameters = {"attributeKey": "a", "algorithm": algorithm}
    return {"parameters": parameters, "candidates": attribute_pool(rng)}


def header_label_input(rng):
    tiers = ["gold", "lead", ""]
    header = rng.pick(tiers + [None])
    return {
        "parameters": {"headerName": "X-Tier", "labelKey": "tier"},
        "request": {"headers": {} if header is None else {"x-tier": header}},
        "candidates": pool(rng, lambda r: {"labels": labels_of(r, {"tier": tiers})}),
    }


def topology_input(rng):
    request, parameters = {}, {}
    kind = rng.pick(["peer", "peer", "header", "both", "none"])
    if kind in ("peer", "both"):
        request["peer_labels"] = labels_of(rng, PLACES)
    if kind in ("header", "both"):
        parameters["peerTopologyHeader"] = "X-Peer"
        places = labels_of(rng, PLACES)
        pairs = [f"{level}={places[label]}" for level, label, _ in TOPOLOGY if label in places]
        request["headers"] = {"x-peer": ",".join(pairs + ["odd"])}
    if rng.chance(0.2):
        parameters["labels"] = {"rack": "topology.kubernetes.io/zone"}
    candidates = pool(rng, lambda r: {"labels": labels_of(r, PLACES)})
    return {"parameters": parameters, "request": request, "candidates": candidates}


def latency_input(rng):
    request = request_of(rng)
    candidates = with_prefix(rng, request)
    parameters = {}
    rates = rng.pick(["none", "both", "both", "both", "ttft", "tpot", "some"])
    for c in candidates:
        if rates in ("both", "ttft") or rates == "some" and rng.chance(0.7):
            c["prefill_rate"] = rng.pick([4000, 9000, 15928])
        if rates in ("both", "tpot") or rates == "some" and rng.chance(0.7):
            c["tpot_ms"] = rng.pick([8, 20, 33, 60])
    if rng.chance(0.6):
        request["slo_ttft_ms"] = rng.pick([200, 2000, 20000])
    if rng.chance(0.6):
        request["slo_tpot_ms"] = rng.pick([10, 50, 100])
    if rng.chance(0.4):
        parameters["headroomSelectionStrategy"] = rng.pick(["least", "most"])
    if rng.chance(0.3):
        parameters.update({"ttftWeight": rng.pick([0, 1]), "tpotWeight": rng.pick([0, 3])})
    if rng.chance(0.3):
        for key in ["compositeKVWeight", "compositeQueueWeight", "compositePrefixWeight"]:
            parameters[key] = rng.pick([0, 0, 1, 2])
    return {"parameters": parameters, "request": request, "candidates": candidates}


def selector_input(rng):
    values = {"app": ["a", "b"], "tier": ["x", "y", "z"]}
    parameters = {}
    if rng.chance(0.5):
        parameters["matchLabels"] = {"app": rng.pick(["a", "b"])}
    expressions = []
    for _ in range(rng.int(0, 2)):
        operator = rng.pick(["In", "NotIn", "Exists", "DoesNotExist"])
        e = {"key": rng.pick(["app", "tier"]), "operator": operator}
        if operator in ("In", "NotIn"):
            e["values"] = rng.pick([["x"], ["x", "y"], ["a"]])
        expressions.append(e)
    if expressions:
        parameters["matchExpressions"] = expressions
    candidates = pool(rng, lambda r: {"labels": labels_of(r, values)})
    return {"parameters": parameters, "candidates": candidates}


def role_input(rng):
    roles = {"llm-d.ai/role": ROLE_LABELS + ["other"]}
    return {
        "parameters": {"role": rng.pick(["decode", "prefill", "encode"])},
        "candidates": pool(rng, lambda r: {"labels": labels_of(r, roles)}, 8),
    }


def affinity_input(rng):
    case = prefixes(rng)
    parameters = {}
    if rng.chance(0.5):
        parameters["affinityThreshold"] = rng.pick([0, 0.25, 0.5, 1])
    if rng.chance(0.4):
        parameters["explorationProbability"] = rng.pick([0.3, 0.5, 1])
    if rng.chance(0.6):
        parameters["maxTTFTPenaltyMs"] = rng.pick([0, 100, 1000])
    if rng.chance(0.3):
        parameters["peakPrefillThroughput"] = rng.pick([1000, 30000])
    if rng.chance(0.4):
        parameters["ttftSource"] = "latencyPredictor"
        for c in case["candidates"]:
            if rng.chance(0.8):
                c["prefill_rate"] = rng.pick([4000, 15928])
    case.update({"parameters": parameters, "draw": rng.int(0, 1 << 40)})
    return case


def utilization_input(rng):
    case = loads(rng)
    metrics = ["active-requests", "running-requests", "waiting-queue", "kv-cache-utilization"]
    conditions = []
    for _ in range(rng.int(1, 3)):
        metric = rng.pick(metrics)
        exact = {"kv-cache-utilization": "kv", "running-requests": "running"}.get(metric)
        same = [c[exact] for c in case["candidates"] if exact in c]
        most = [0.1, 0.3, 0.9, 1] if metric == "kv-cache-utilization" else [0, 1, 5, 20]
        # Also exactly what somebody has: at most is not below.
        conditions.append({"metric": metric, "maxValue": rng.pick(most + same)})
    case["parameters"] = {"conditions": conditions}
    if rng.chance(0.5):
        case["parameters"]["fallbackOnEmpty"] = True
    return case


def attribute_filter_input(rng):
    operators = "LessThan LessThanOrEqual GreaterThan GreaterThanOrEqual Equal NotEqual".split()
    threshold = {"operator": rng.pick(operators), "value": rng.pick(ATTRIBUTES)}
    parameters = {"attribute": "a", "algorithm": {"type": "threshold", "threshold": threshold}}
    if rng.chance(0.5):
        parameters["onMissing"] = rng.pick(["Pass", "Fail"])
    if rng.chance(0.5):
        parameters["fallbackOnEmpty"] = rng.chance(0.7)
    return {"parameters": parameters, "candidates": attribute_pool(rng)}


def topology_filter_input(rng):
    case = topology_input(rng)
    if rng.chance(0.7):
        case["parameters"]["minAffinity"] = rng.pick(["host", "rack", "zone", "region"])
    return case


def context_filter_input(rng):
    case = context_input(rng)
    if rng.chance(0.4):
        case.setdefault("parameters", {})["enableFiltering"] = rng.chance(0.5)
    return case


def picker_input(rng):
    candidates = pool(rng, lambda r: in_flight(r, load(r)), 8)
    totals = [rng.pick([0, 0.5, 0.5, 1.25, 1.250004, 3, 7]) for _ in candidates]
    picked = [rng.int(0, 3) for _ in candidates]
    seeds = {"tie": rng.int(0, 1 << 40), "draw": rng.int(0, 1 << 40)}
    return {"candidates": candidates, "totals": totals, "picked": picked, **seeds}


# Written down rather than drawn: the ends, and what a draw would seldom meet.
def everyone(**fields):
    return [dict(fields) for _ in range(3)]


EXTREMES = {
    "scorer/queue": [
        ("nobody's queue is known", {"candidates": [{}, {}]}),
        ("all equal", {"candidates": everyone(waiting=7, running=1)}),
        ("the longest queue there is", {"candidates": [{"waiting": 4294967295}, {"waiting": 0}]}),
        (
            "in flight, and not reported yet",
            {"candidates": [{"waiting": 0, "running": 0, "in_flight": 9}, {"waiting": 3, "running": 2}]},
        ),
    ],
    "scorer/running-requests": [
        ("nobody's is known", {"candidates": [{}, {}]}),
        ("one is known", {"candidates": [{"running": 3}, {}]}),
        ("all equal", {"candidates": everyone(running=5)}),
    ],
    "scorer/lmetric": [
        ("the prompt is not known", {"candidates": [{"in_flight": 1}, {}]}),
        (
            "a hit outweighs a batch",
            {
                "request": {"strides": 10, "prompt_tokens": 1000},
                "candidates": [{"gpu_strides": 9, "gpu_tokens": 900, "in_flight": 5}, {}],
            },
        ),
        (
            "a batch outweighs a hit",
            {
                "request": {"strides": 10, "prompt_tokens": 1000},
                "candidates": [{"gpu_strides": 5, "gpu_tokens": 500, "in_flight": 5}, {}],
            },
        ),
    ],
    "scorer/prefix-cache": [
        (
            "no full stride",
            {"request": {"strides": 0, "prompt_tokens": 3}, "candidates": [{"gpu_tokens": 0}]},
        ),
    ],
    "filter/utilization": [
        (
            "exactly the most",
            {
                "parameters": {"conditions": [{"metric": "kv-cache-utilization", "maxValue": 0.3}]},
                "candidates": [{"kv": 0.3}, {"kv": 0.31}, {}],
            },
        ),
        (
            "nobody, and no fallback",
            {
                "parameters": {"conditions": [{"metric": "running-requests", "maxValue": 0}]},
                "candidates": [{"running": 1}],
            },
        ),
    ],
    "filter/endpoint-attribute": [
        (
            "exactly equal",
            {
                "parameters": {
                    "attribute": "a",
                    "algorithm": {
                        "type": "threshold",
                        "threshold": {"operator": "Equal", "value": 0.1},
                    },
                },
                "candidates": [{"attributes": {"a": 0.1}}, {"attributes": {"a": 0.2}}, {}],
            },
        ),
    ],
    "picker/weighted-random": [
        ("all are 0", {"candidates": [{}] * 4, "totals": [0] * 4, "draw": 5}),
        ("one is not 0", {"candidates": [{}] * 4, "totals": [0, 0, 1e-9, 0], "draw": 6}),
    ],
}

SCORERS = {
    "prefix-cache": (prefix_cache, prefix_cache_input),
    "queue": (queue, loads),
    "running-requests": (running_requests, loads),
    "kv-cache-utilization": (kv_cache_utilization, loads),
    "load-aware": (load_aware, load_aware_input),
    "active-request": (active_request, active_request_input),
    "token-load": (token_load, token_load_input),
    "no-hit-lru": (no_hit_lru, no_hit_lru_input),
    "lora-affinity": (lora_affinity, lora_input),
    "session-affinity": (session_affinity, session_input),
    "context-length-aware": (context_length_aware, context_input),
    "endpoint-attribute": (endpoint_attribute, attribute_input),
    "header-label-affinity": (header_label_affinity, header_label_input),
    "topology-affinity": (topology_affinity, topology_input),
    "latency": (latency, latency_input),
    "lmetric": (lmetric, prefixes),
}
FILTERS = {
    "label-selector": (label_selector, selector_input),
    "role": (role, role_input),
    "prefix-cache-affinity": (prefix_cache_affinity, affinity_input),
    "session-affinity": (session_filter, session_input),
    "utilization": (utilization, utilization_input),
    "endpoint-attribute": (attribute_filter, attribute_filter_input),
    "topology-affinity": (topology_filter, topology_filter_input),
    "context-length-aware": (context_filter, context_filter_input),
}
PICKERS = {
    "max-score": (max_score, picker_input),
    "random": (random_order, picker_input),
    "weighted-random": (weighted_random, picker_input),
}
DRAWN = 32


def rounded(score):
    return None if score is None else round(min(1.0, max(0.0, score)), 9)


def complete(kind, compute, case):
    if kind == "picker":
        case.setdefault("tie", 0)
        order, was_tie = compute(case)
        return {**case, "order": order, "was_tie": was_tie}
    result = compute(case.get("parameters", {}), case.get("request", {}), case["candidates"], case)
    if kind == "filter":
        return {**case, "keep": result}
    return {**case, "scores": [rounded(score) for score in result]}


def table(kind, name, compute, draw):
    seed = int.from_bytes(f"{kind}/{name}".encode()[-8:], "big")
    rng = Rng(seed)
    cases = [
        complete(kind, compute, {"about": about, **case})
        for about, case in EXTREMES.get(f"{kind}/{name}", [])
    ]
    while len(cases) < DRAWN + len(EXTREMES.get(f"{kind}/{name}", [])):
        try:
            cases.append(complete(kind, compute, {"about": "drawn", **draw(rng)}))
        except OnAStep:
            continue
    lines = [json.dumps({k: v for k, v in case.items() if v != {}}) for case in cases]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def main():
    is_check = sys.argv[1:] == ["--check"]
    stale = []
    for kind, plugins in [("scorer", SCORERS), ("filter", FILTERS), ("picker", PICKERS)]:
        for name, (compute, draw) in plugins.items():
            path = os.path.join(HERE, kind, name.replace("-", "_"), "cases.json")
            text = table(kind, name, compute, draw)
            if is_check:
                with open(path, encoding="utf-8") as file:
                    if file.read() != text:
                        stale.append(path)
                continue
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
    if stale:
        sys.exit("not what generate_cases.py writes: " + ", ".join(stale))


if __name__ == "__main__":
    main()
