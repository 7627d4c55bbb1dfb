#!/usr/bin/env python3
"""Writes tiny.tiktoken, tiny-tekken.json and what PyPI's tiktoken and mistral-common make of texts.

    python3 -m venv ENV && ENV/bin/pip install tiktoken==0.14.0 mistral-common==1.13.1
    ENV/bin/python tests/golden/tokens/generate_ranks.py

The vocabulary is trained here, with tiktoken's own educational trainer, on the sentences below: no
model's file is copied. tiny-tiktoken.jsonl and tiny-tekken.jsonl: {"text": .., "ids": ..} a line,
after a line of versions. In the tekken file the ids start with BOS, as the engine's do.
"""
import base64
import importlib.metadata
import json
import pathlib

import tiktoken
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from tiktoken._educational import bpe_train

from generate_texts import texts

HERE = pathlib.Path(__file__).resolve().parent
VERSIONS = {"tiktoken": "0.14.0", "mistral-common": "1.13.1"}
PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CORPUS = (
    "The gateway asks the engine, and the engine answers the gateway. A block of tokens is a block "
    "of text; the text of a block is what its tokens say. 123 456 789\n\n    def f(x):\n        return x\n"
    "naïve café 日本語 日本 中文 😀😀 Привет привет "
) * 8
SPECIAL = {"<|endoftext|>": 340, "<|im_start|>": 341, "<|im_end|>": 342}
CONTROL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
CONTROL_COUNT = 10
VOCAB = 340


def main():
    for name, version in VERSIONS.items():
        if importlib.metadata.version(name) != version:
            raise SystemExit(f"needs {name}=={version}")
    ranks = bpe_train(CORPUS, VOCAB, PATTERN, visualise=None)
    (HERE / "tiny.tiktoken").write_bytes(
        b"".join(base64.b64encode(t) + b" %d\n" % r for t, r in sorted(ranks.items(), key=lambda x: x[1])))
    encoding = tiktoken.Encoding("tiny", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=SPECIAL)
    tekken = {
        "config": {"pattern": PATTERN, "num_vocab_tokens": VOCAB, "default_vocab_size": VOCAB - 20 + CONTROL_COUNT,
                   "default_num_special_tokens": CONTROL_COUNT, "version": "v11"},
        "vocab": [{"rank": r, "token_bytes": base64.b64encode(t).decode(), "token_str": None}
                  for t, r in sorted(ranks.items(), key=lambda x: x[1])],
        "special_tokens": [{"rank": i, "token_str": t, "is_control": True} for i, t in enumerate(CONTROL)],
    }
    path = HERE / "tiny-tekken.json"
    path.write_text(json.dumps(tekken, ensure_ascii=False) + "\n", encoding="utf-8")
    tekkenizer = Tekkenizer.from_file(path)
    source = texts()
    all_texts = ["a [INST] typed <s> is text", *(next(source) for _ in range(120))]
    for name, encode in [("tiny-tiktoken", lambda t: encoding.encode(t, allowed_special="all")),
                         ("tiny-tekken", lambda t: tekkenizer.encode(t, bos=True, eos=False))]:
        with open(HERE / f"{name}.jsonl", "w", encoding="utf-8") as out:
            out.write(json.dumps(VERSIONS) + "\n")
            for text in all_texts:
                out.write(json.dumps({"text": text, "ids": encode(text)}) + "\n")


if __name__ == "__main__":
    main()
