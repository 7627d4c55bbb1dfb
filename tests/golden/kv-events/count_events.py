"""Counts what the recorded frames hold, with an implementation that is not ours.

    python3 -m venv msgenv && msgenv/bin/pip install msgpack==1.2.4
    msgenv/bin/python count_events.py > counts.json

One object per session file; per sequence number: events by tag, hashes and tokens, a sum over the
hashes (64 bits, wrapping) and one over the tokens.
"""

import json
import pathlib
import struct
import sys

import msgpack

SESSIONS = ["session-chat-small-cache.jsonl", "session-chat-large-cache.jsonl"]


def count(path):
    batches = []
    for line in path.read_text().splitlines():
        record = json.loads(line)
        if "event" not in record:
            continue
        _topic, seq, payload = (bytes.fromhex(frame) for frame in record["event"])
        ts, events, rank = msgpack.unpackb(payload)
        tags, hashes, tokens = {}, [], []
        for event in events:
            tags[event["type"]] = tags.get(event["type"], 0) + 1
            hashes += event.get("block_hashes", [])
            tokens += event.get("token_ids", [])
        batches.append({
            "sequence": int.from_bytes(seq, "big"), "ts_bits": str(struct.unpack(">Q", struct.pack(">d", ts))[0]), "rank": rank, "tags": tags,
            "hashes": len(hashes), "hash_sum": str(sum(hashes) % 2**64),
            "tokens": len(tokens), "token_sum": sum(tokens),
        })
    return batches


here = pathlib.Path(__file__).parent
json.dump({name: count(here / name) for name in SESSIONS}, sys.stdout, indent=None, separators=(",", ":"))
sys.stdout.write("\n")
