"""Feed format 1 in bytes, written from its specification (filters/feed/README.md), not by its code.

    python3 generate.py > feed.txt

A line: name and bytes in hexadecimal. `filters/feed/tests/golden.rs` has the same values in Rust.
"""
import struct

u8 = lambda n: struct.pack("<B", n)
u16 = lambda n: struct.pack("<H", n)
u32 = lambda n: struct.pack("<I", n)
u64 = lambda n: struct.pack("<Q", n)
f32 = lambda x: struct.pack("<f", x)
text = lambda s: u16(len(s.encode())) + s.encode()
texts = lambda list: u16(len(list)) + b"".join(map(text, list))


def varint(n):
    out = b""
    while n >= 0x80:
        out += u8(n & 0x7F | 0x80)
        n >>= 7
    return out + u8(n)


def record(kind, *fields):
    return kind.encode() + u8(1) + b"".join(fields)


EPOCH = 0x0102030405060708
head = record("H", u64(7), u64(EPOCH), u64(9), u8(1), u64(6), u32(3), u64(1_000_000_007))
row_fields = u64(11) + u64(12) + u64(13) + u64(14) + u64(15) + u64(16)
row_fields += u16(2) + u64(17) + u32(18) + u32(19) + u64(20) + u32(0) + u32(2)
row = record("R", row_fields)
directory = record(
    "D", u64(EPOCH), u16(2),
    u16(0), text("pool"), text("m"), texts(["alias", "ü"]), texts(["sql"]), u16(1),
    u16(2), text("pool-b"), text("n"), texts([]), texts([]), u16(0xFFFF),
)
table = record(
    "T", u64(EPOCH), u16(2), u16(0), text("10.0.0.1:8000"), u16(3), text("[fd00::1]:8000"),
    # Texts in the order of their bytes.
    texts(["a", "cost", "llm-d.ai/role", "prefill", "zone"]),
    u8(2), u16(2), u16(3), u16(4), u16(0), u8(1), u16(1), f32(2.5),
    u8(0), u8(0),
)
load_known = u8(1 | 2 | 4 | 8) + u8(1) + u32(5) + u32(6) + f32(0.25) + u32(16)
load_unknown = u8(0) + u8(4) + u32(0) + u32(0) + f32(0.0) + u32(0)
adapters = u8(1 | 2) + u8(1) + u16(0) + u8(2) + u16(0) + u16(258)
loads = record(
    "L", u64(EPOCH), u16(2), u16(0), load_known, u32(6400), u32(1_700_000_000), adapters,
    u16(3), load_unknown, u32(0), u32(0), u8(0),
)
spec = b'{"chat_template":null}'
model = record("M", u64(EPOCH), bytes(range(64)), u32(1024), f32(4.0), u32(len(spec)), spec)
picks = record("P", u64(EPOCH), u64(300), u16(2), u16(0), u64(299), u64(0), u16(3), u64(300), u64(7))

speed = lambda answers, tokens, ms: u8(answers) + f32(tokens) + f32(ms)
slot_accuracy = lambda slot, answers, reported, silent, judged, over, under: (
    u16(slot) + u32(answers) + u32(reported) + u32(silent) + u8(judged) + u32(over) + u32(under)
)
accuracy = record(
    "C", u64(EPOCH), u16(2),
    slot_accuracy(0, 70, 69, 1, 32, 0x80000001, 2), speed(7, 1000.5, 250.0), speed(255, 64.0, 1e6),
    slot_accuracy(3, 5, 0, 5, 0, 0, 0), speed(0, 0.0, 0.0), speed(0, 0.0, 0.0),
)
sessions = record("E", u16(2), u64(1), u64(2), u64(3), u64(2**64 - 1), u64(5), u64(6))
no_accuracy = record("C", u64(1), u16(0))
accuracy_report = record(
    "U", u16(2), u16(2), u32(len(accuracy)), accuracy, u16(7), u32(len(no_accuracy)), no_accuracy,
)
prediction = record(
    "Q", u64(EPOCH), u16(2), u8(1), u32(1000), u32(96), u16(2),
    u16(3), text("10.0.0.1:8000"), u8(1), u32(64), u32(16),
    u16(0), text("[fd00::1]:8000"), u8(0), u32(0), u32(0),
)


def cells(*list):
    return u16(len(list)) + b"".join(u64(endpoint) + u32(n) + u64(tokens) for endpoint, n, tokens in list)


def fnv1a(s):
    h = 0xCBF29CE484222325
    for byte in s.encode():
        h = (h ^ byte) * 0x100000001B3 % 2**64
    return h


# Sorted by hash.
held = cells(*sorted([(fnv1a("10.0.0.1:8000"), 3, 4096), (fnv1a("[fd00::1]:8000"), 1, 2**33)]))
matrix = record("I", u64(11), u64(14), held)
others = record("O", u64(EPOCH), held)
keys = lambda list: u8(len(list)) + b"".join(map(u32, list))
trails = record(
    "W", u16(2),
    u64(fnv1a("10.0.0.1:8000")), u64(20), u64(21), keys([0xDEADBEEF, 1, 2]),
    u64(fnv1a("[fd00::1]:8000")), u64(22), u64(23), keys([]),
)


clock = lambda endpoint, *fields: u64(endpoint) + u64(fields[0]) + u32(fields[1]) + u32(fields[2])
sent_clocks = record(
    "Y", u16(2), clock(fnv1a("10.0.0.1:8000"), 2**40, 125_000, 1_700_000_000), clock(7, 0, 0, 0),
)
sent_holder = lambda number, stamp: u16(number) + struct.pack("<Q", stamp)[:6]
sent_bucket = record(
    "X", u32(0xDEADBEEF), u16(2), sent_holder(0, 2**40 - 1), sent_holder(799, 0), u32(1), u16(1), sent_holder(3, 4),
)
sent_plan = record("Z", u8(2), u64(0xDEADBEEF_00000001), u64(2), u16(1), u16(3) + u32(125_000) + u32(1_700_000_000))


def stride(fingerprint, tokens, gpu, offloaded, resumes):
    body = varint(tokens) + varint(len(gpu)) + varint(len(offloaded))
    body += b"".join(map(varint, gpu + offloaded))
    body += b"".join(varint(slot) + varint(at) for slot, at in resumes)
    return u32(fingerprint) + varint(len(body)) + body


bucket = record("B", u64(EPOCH), stride(0xDEADBEEF, 15, [0, 3], [200], []), stride(1, 70000, [1], [], [(1, 512)]))
features = record(
    "F", u64(EPOCH), u16(2), u8(6), text("m"), text("sql"), u32(1000), u32(15), u32(250), text(""),
    keys([0xDEADBEEF, 7]), u16(1),
    u16(3), text("10.0.0.1:8000"), load_known, u32(4), u32(64), u32(6), u32(96), u32(4),
    u32(8), u32(3), u64(4096),
)
candidate = lambda slot, address: (
    u16(slot) + text(address) + load_unknown + u32(0) * 6 + u32(0) + u64(0)
)
# All of the request's, and of one candidate: adapter full, session, rates, labels, attributes.
features_all = record(
    "F", u64(EPOCH), u16(2), u8(8 | 16), text("m"), text(""), u32(0), u32(0), u32(0), text("why"), keys([]),
    u8(1 | 2 | 4 | 8 | 16), struct.pack("<i", -2), text("tenant"), f32(250.0), f32(20.5),
    u8(1), text("x-zone"), text("a"),
    u8(3), text("cost"), text("rack"), text("zone"),
    u16(2),
    candidate(3, "10.0.0.1:8000"), u8(4 | 8 | 16 | 32 | 64 | 128), f32(4000.0), f32(12.5),
    u8(2), u8(2), text("b"), u8(1), text("r1"), u8(1), u8(0), f32(-1.5),
    candidate(0, "[fd00::1]:8000"), u8(1),
)
# Only a candidate has more.
features_session = record(
    "F", u64(EPOCH), u16(2), u8(16), text("m"), text(""), u32(0), u32(0), u32(0), text("why"), keys([]),
    u8(0), u16(1), candidate(3, "10.0.0.1:8000"), u8(8),
)
scores = record("S", u64(EPOCH), u32(5), u16(3), u16(3), f32(0.25), u16(0), f32(1.0), u16(7), f32(float("inf")))


def entry(key, value):
    return u8(len(key)) + u32(len(value)) + key + value


odd = EPOCH & 1
entries = [
    entry(b"D" + u8(odd), directory),
    entry(b"O" + u8(odd), others),
    entry(b"T" + u8(odd) + u16(2), table),
    entry(b"L" + u8(odd) + u16(2), loads),
    entry(b"M" + u8(odd) + u16(2), model),
    entry(b"B" + u16(2) + u32(77), bucket),
]
batch = b"EPPB" + u8(1) + u8(1) + u64(7) + u64(EPOCH) + u64(10) + u32(len(entries)) + b"".join(entries)
ack = record(
    "A", u16(409), u16(len(head)), head, u64(2_000_000_009), u64(1), u64(2), u64(3), u64(4), u64(5),
    u16(1), row_fields, text("why"), held,
)

for name, value in [
    ("head", head), ("row", row), ("directory", directory), ("table", table), ("loads", loads),
    ("model", model), ("picks", picks), ("bucket", bucket), ("features", features), ("matrix", matrix),
    ("others", others), ("trails", trails), ("batch", batch), ("ack", ack), ("scores", scores),
    ("sent_clocks", sent_clocks), ("sent_bucket", sent_bucket), ("sent_plan", sent_plan),
    ("features_all", features_all), ("features_session", features_session), ("sessions", sessions),
    ("prediction", prediction), ("accuracy", accuracy), ("accuracy_report", accuracy_report),
]:
    print(name, value.hex())
