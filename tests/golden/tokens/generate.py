#!/usr/bin/env python3
"""Writes tiny-model.jsonl: texts and the ids Python `tokenizers` gives them.

    python3 -m venv /tmp/tokenv && /tmp/tokenv/bin/pip install tokenizers==0.23.3
    /tmp/tokenv/bin/python tests/golden/tokens/generate.py

First line: version of tokenizers and sha256 of the tokenizer.json used. Then one text a line.
"""
import hashlib
import json
import pathlib

import tokenizers

from generate_texts import texts

PINNED = "0.23.3"
HERE = pathlib.Path(__file__).resolve().parent
MODEL = HERE.parent / "tiny-model" / "tokenizer.json"

def main():
    if tokenizers.__version__ != PINNED:
        raise SystemExit(f"needs tokenizers=={PINNED}, this is {tokenizers.__version__}")
    tokenizer = tokenizers.Tokenizer.from_file(str(MODEL))
    head = {"tokenizers": PINNED, "tokenizer_json_sha256": hashlib.sha256(MODEL.read_bytes()).hexdigest()}
    source = texts()
    with open(HERE / "tiny-model.jsonl", "w", encoding="utf-8") as out:
        out.write(json.dumps(head) + "\n")
        for _ in range(200):
            text = next(source)
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            out.write(json.dumps({"text": text, "ids": ids}) + "\n")


if __name__ == "__main__":
    main()
