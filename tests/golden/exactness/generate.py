#!/usr/bin/env python3
"""Truth for `exactness`: which tokens of a cached text an engine finds again in a new prompt.

    generate.py --texts DIR --tokenizer DIR --requests N [--only NAME] [--seed N]

Writes JSON lines to stdout (the bench reads them from a pipe; nothing is kept):
    {"cell": {"tokenizer", "text", "mode", "runs"}}     then N rows of
    {"ids": [..] or null, "prompt": str, "common": int, "tokens": int, "bytes": int}
`ids` are the cached text's (null: those of the row before), `common` the longest common prefix with
the prompt's, of which there are `tokens`; `bytes` is the cached text's size. All ids come from
Python `tokenizers`, with the special tokens its post-processor adds.

Modes: "cuts" keeps a text up to a random character or line end and goes on with another;
"growth" is a conversation after a reply, and its next turn, for texts that have conversations.
Texts: one per entry of DIR that has
enough of it (conversations and long strings of JSON, plain text files), and those made here.
"""
import argparse
import base64
import gzip
import json
import pathlib
import random
import sys

import tokenizers

PINNED = "0.23.3"
REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
MAX_TEXT_CHARS = 4_000_000
MIN_TEXT_CHARS = 20_000
CACHED_CHARS = (400, 3200)
PLAIN = {".md", ".txt", ".py", ".rs", ".jinja", ".yaml", ".rst", ".html", ".c", ".go", ".js", ".toml"}


# ---- texts: a pool of strings, and conversations as lists of (role, content) ----

def read(path):
    try:
        raw = gzip.open(path).read() if path.suffix == ".gz" else path.read_bytes()
        return raw.decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def message(entry):
    """(role, content) of a message in one of the usual shapes, else None."""
    if not isinstance(entry, dict):
        return None
    role = entry.get("role", entry.get("from"))
    content = entry.get("content", entry.get("value", entry.get("text")))
    if isinstance(content, list):
        content = "".join(p.get("text", "") for p in content if isinstance(p, dict) and isinstance(p.get("text"), str))
    if not isinstance(role, str) or not isinstance(content, str) or not content:
        return None
    return ("assistant" if role in ("assistant", "gpt", "ai", "bot") else role, content)


def walk(value, pool, conversations, tree=()):
    if isinstance(value, str):
        if len(value) >= 40 and " " in value:
            pool.append(value)
    elif isinstance(value, list):
        messages = [m for m in map(message, value) if m]
        if len(messages) >= 2 and len(messages) * 2 > len(value):
            conversations.append(messages)
            pool.extend(content for _, content in messages)
            return
        for entry in value:
            walk(entry, pool, conversations, tree)
    elif isinstance(value, dict):
        here = message(value)
        if here and isinstance(value.get("replies"), list):
            path = (*tree, here)
            pool.append(here[1])
            if not value["replies"] and len(path) > 1:
                conversations.append(list(path))
            for reply in value["replies"]:
                walk(reply, pool, conversations, path)
            return
        for entry in value.values():
            walk(entry, pool, conversations, tree)


def from_entry(entry):
    pool, conversations, size = [], [], 0
    files = [entry] if entry.is_file() else sorted(p for p in entry.rglob("*") if p.is_file())
    for path in files:
        suffix = pathlib.Path(path.name.removesuffix(".gz")).suffix
        if size > MAX_TEXT_CHARS or path.name.startswith("tokenizer"):
            continue
        text = read(path)
        size += len(text)
        if suffix == ".json":
            try:
                walk(json.loads(text), pool, conversations)
            except ValueError:
                pass
        elif suffix == ".jsonl":
            for line in text[:MAX_TEXT_CHARS].splitlines():
                try:
                    walk(json.loads(line), pool, conversations)
                except ValueError:
                    pass
        elif suffix in PLAIN:
            pool.extend(text[i:i + 4000] for i in range(0, len(text), 4000))
    return pool, conversations


def made(rng):
    """Texts no corpus has enough of."""
    words = "the cache of a gateway keeps blocks while requests wait for their turn".split()
    def blanks():
        return "".join(rng.choice([" " * rng.randint(1, 60), "\n" * rng.randint(1, 6), "\t" * rng.randint(1, 8),
                                   "\n" + " " * rng.randint(1, 24), "\r\n", "\u3000\u00a0 ", rng.choice(words)]) for _ in range(80))
    def runs():
        return "".join(rng.choice(["=", "-", "a", "0", ".", "\\", "#", "ab", "é", "的", "_", "7", "<"]) * rng.randint(2, 90) for _ in range(30))
    def encoded():
        return base64.b64encode(rng.randbytes(rng.randint(300, 1500))).decode()
    def cjk():
        marks = "，。！？「」 \n"
        return "".join(rng.choice(marks) if rng.random() < 0.1 else chr(rng.choice([rng.randint(0x4e00, 0x6fff), rng.randint(0x3041, 0x3096),
                       rng.randint(0xac00, 0xb500)])) for _ in range(900))
    def emoji():
        parts = ["😀", "👩‍👩‍👧", "🇩🇪", "👍🏽", "✨", " so ", "!", "\n", "❤️", "é", "e\u0301", "ü", "n\u0303"]
        return "".join(rng.choice(parts) if rng.random() < 0.6 else chr(rng.randint(0x1f300, 0x1f6ff)) for _ in range(500))
    def numbers():
        return "\n".join(f"2026-11-{rng.randint(1, 30):02} {rng.randint(0, 23)}:{rng.randint(0, 59):02},{rng.choice(words)},"
                         + ",".join(str(rng.randint(0, 10 ** rng.randint(1, 9))) for _ in range(5)) for _ in range(40))
    code = [p.read_text(encoding="utf-8") for folder in ("filters", "host", "tests") for p in sorted((REPOSITORY / folder).rglob("*.rs"))]
    prose = [p for f in sorted(REPOSITORY.glob("*.md")) for p in f.read_text(encoding="utf-8").split("\n\n") if len(p) > 80]
    chats = [[("assistant" if i % 2 else "user", rng.choice(prose)) for i in range(8)] for _ in range(60)]
    yield "prose", prose, chats
    yield "white-space", [blanks() for _ in range(150)], []
    yield "long-runs", [runs() for _ in range(150)], []
    yield "base64", [encoded() for _ in range(150)], []
    yield "code", [c[i:i + 3000] for c in code for i in range(0, len(c), 3000)], []
    yield "cjk", [cjk() for _ in range(150)], []
    yield "emoji", [emoji() for _ in range(150)], []
    yield "numbers", [numbers() for _ in range(150)], []


def texts(folder, rng):
    for entry in sorted(folder.iterdir()):
        pool, conversations = from_entry(entry)
        if sum(map(len, pool)) >= MIN_TEXT_CHARS:
            yield entry.name.split(".")[0], pool, conversations
    yield from made(rng)


def is_runs(pool):
    """Mostly white space, or mostly runs of one character."""
    text = "".join(pool)[:200_000]
    blank = sum(c.isspace() for c in text)
    repeated = sum(a == b for a, b in zip(text, text[1:]))
    return blank * 2 > len(text) or repeated * 2 > len(text)


# ---- prompts, in the format of the tokenizer's family ----

def render(tokenizer, messages):
    """The text up to where the assistant speaks; the last message is not the assistant's."""
    if tokenizer.token_to_id("<|im_start|>") is not None:
        return "".join(f"<|im_start|>{r}\n{c}<|im_end|>\n" for r, c in messages) + "<|im_start|>assistant\n"
    return "".join(f" {c} </s><s>" if r == "assistant" else f"[INST] {c} [/INST]" for r, c in messages)


def piece(rng, pool, low, high):
    """Some text of the pool, from anywhere in it."""
    wanted, text = rng.randint(low, high), ""
    while len(text) < wanted:
        source = rng.choice(pool)
        start = rng.randrange(len(source))
        text += source[start:start + wanted]
    return text[:wanted]


def cuts(rng, tokenizer, pool, conversations, requests):
    per_text = 20
    for first in range(0, requests, per_text):
        if conversations and rng.random() < 0.5:
            messages = rng.choice(conversations)
            cached = render(tokenizer, [*messages[:-1], ("user", messages[-1][1])])[:CACHED_CHARS[1]]
        else:
            cached = piece(rng, pool, *CACHED_CHARS)
        lines = [i + 1 for i, c in enumerate(cached) if c == "\n"]
        for _ in range(min(per_text, requests - first)):
            cut = rng.choice(lines) if lines and rng.random() < 0.5 else rng.randint(0, len(cached))
            tail = "" if rng.random() < 0.05 else piece(rng, pool, 1, 300)
            yield cached, cached[:cut] + tail


def growth(rng, tokenizer, pool, conversations, requests):
    for _ in range(requests):
        messages = rng.choice(conversations)
        replies = [i for i, (r, _) in enumerate(messages) if r == "assistant" and 0 < i < len(messages) - 1]
        at = rng.choice(replies[:6])
        messages = [(r, c[:rng.choice([300, 900])]) for r, c in messages[:at + 2]]
        # A system prompt of any length, so that turns end anywhere in a block.
        system = ("system", piece(rng, pool, 20, 700))
        reply, after = messages[at][1], messages[at + 1][1]
        before = render(tokenizer, [system, *messages[:at]])
        closed = render(tokenizer, [system, *messages[:at], ("assistant", reply), ("user", after)])
        cached = before + reply if closed.startswith(before + reply) else before + " " + reply
        yield cached, closed


def encode(tokenizer, batch):
    return [e.ids for e in tokenizer.encode_batch_fast(batch)]


def common(left, right):
    n = min(len(left), len(right))
    if left[:n] == right[:n]:
        return n
    return next(i for i in range(n) if left[i] != right[i])


def write_cell(tokenizer, pairs):
    pairs = list(pairs)
    distinct = {cached: None for cached, _ in pairs}
    ids_of = dict(zip(distinct, encode(tokenizer, list(distinct))))
    prompts = encode(tokenizer, [prompt for _, prompt in pairs])
    last = None
    for (cached, prompt), ids in zip(pairs, prompts):
        row = {"ids": None if cached is last else ids_of[cached], "prompt": prompt,
               "common": common(ids_of[cached], ids), "tokens": len(ids), "bytes": len(cached.encode())}
        last = cached
        print(json.dumps(row, ensure_ascii=False))


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--texts", type=pathlib.Path)
    args.add_argument("--tokenizer", type=pathlib.Path, required=True)
    args.add_argument("--requests", type=int, default=2000)
    args.add_argument("--only", help="one text, by name")
    args.add_argument("--seed", type=int, default=20261125)
    args = args.parse_args()
    if tokenizers.__version__ != PINNED:
        raise SystemExit(f"needs tokenizers=={PINNED}, this is {tokenizers.__version__}")
    sys.stdout.reconfigure(encoding="utf-8", errors="strict")
    packed = args.tokenizer / "tokenizer.json.gz"
    text = read(packed if packed.exists() else args.tokenizer / "tokenizer.json")
    tokenizer = tokenizers.Tokenizer.from_str(text)
    found = texts(args.texts, random.Random(args.seed)) if args.texts else made(random.Random(args.seed))
    for name, pool, conversations in found:
        if args.only and name != args.only:
            continue
        # No lone surrogates: no request body can carry one.
        pool = [t.encode("utf-8", "replace").decode() for t in pool if t]
        conversations = [[(r, c.encode("utf-8", "replace").decode()) for r, c in m] for m in conversations]
        growing = [c for c in conversations if any(r == "assistant" for r, _ in c[1:-1])]
        for mode, pairs, conversations in (("cuts", cuts, conversations), ("growth", growth, growing)):
            if mode == "growth" and not growing:
                continue
            rng = random.Random(f"{args.seed} {args.tokenizer.name} {name} {mode}")
            print(json.dumps({"cell": {"tokenizer": args.tokenizer.name, "text": name, "mode": mode, "runs": is_runs(pool)}}))
            write_cell(tokenizer, pairs(rng, tokenizer, pool, conversations, args.requests))


if __name__ == "__main__":
    main()
