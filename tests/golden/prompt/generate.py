#!/usr/bin/env python3
"""Writes what vLLM 0.33.0 renders for templates and request bodies. README.md says how to run it.

    generate.py                           expected/ and digests.json, the committed files
    generate.py --templates DIR --conversations DIR --out DIR
                                          bodies/ and expected/ for others than the committed ones

Templates are *.jinja. Conversations are *.json, *.jsonl or *.jsonl.gz, found in sub-folders too;
what `bodies_of` knows becomes a request body, the rest is skipped and counted. A body below a
folder called `messages` or `responses` is of that API, else of the one its fields fit.
"""
import argparse
import gzip
import hashlib
import json
import logging
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import jinja2  # noqa: E402
import pydantic  # noqa: E402
import tokenizers  # noqa: E402
import transformers  # noqa: E402

VERSIONS = {"jinja2": "3.1.6", "pydantic": "2.14.4", "tokenizers": "0.23.3",
            "transformers": "5.24.0"}
# Longer prompts are committed as digests.
LONGEST_TEXT = 6000
HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[3] / "shared/data/chat-templates"


# ---- conversations ----

def oasst_messages(node):
    """A message tree down to its first answers."""
    messages = []
    while node:
        role = "user" if node["role"] == "prompter" else "assistant"
        messages.append({"role": role, "content": node["text"]})
        node = next(iter(node.get("replies") or []), None)
    return messages


def plain(messages):
    """Without what the data sets add to a message, of which some is no field of the API."""
    known = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")
    return [{key: message[key] for key in known if message.get(key) is not None}
            for message in messages]


def bodies_of(record):
    """The request bodies of one record of the data sets we know, or of a file of bodies."""
    if isinstance(record, list):
        if record and all(isinstance(m, dict) and "role" in m for m in record):
            return [{"messages": record}]
        return []
    if not isinstance(record, dict):
        return []
    if "trial" in record and "messages" in record:  # tau-bench
        return [{"messages": plain(record["messages"])}]
    if "message_tree_id" in record:  # oasst
        return [{"messages": oasst_messages(record["prompt"])}]
    if "question" in record and "function" in record:  # bfcl
        tools = [{"type": "function", "function": function} for function in record["function"]]
        return [{"messages": turn, "tools": tools} for turn in record["question"]]
    if "history" in record and "trajectory" in record:  # SWE-agent
        return [{"messages": plain(record["history"])}]
    if "session_id" in record and "output" in record:  # lmcache-agent
        return [{"messages": [{"role": "user", "content": record["input"]}]}]
    if any(isinstance(record.get(key), (list, str)) for key in ("messages", "input")):
        return [record]
    return []


def api_of(path, body):
    folders = {part for part in path.parts[:-1]}
    for api in ("messages", "responses", "chat"):
        if api in folders:
            return api
    if "messages" not in body:
        return "responses"
    return "messages" if "system" in body or "max_tokens" in body and any(
        "input_schema" in tool for tool in body.get("tools") or []) else "chat"


def records(path):
    if path.name.endswith(".json"):
        yield json.loads(path.read_bytes())
        return
    opened = gzip.open(path, "rt") if path.name.endswith(".gz") else path.open()
    with opened as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)


def conversations(folder, per_file):
    """(name, API, body) of each body below the folder, and how many files hold none."""
    found, skipped = [], 0
    for path in sorted(folder.rglob("*")):
        if not path.name.endswith((".json", ".jsonl", ".jsonl.gz")):
            continue
        inside = path.relative_to(folder)
        name = inside.as_posix().split(".json")[0].replace("/", ".")
        bodies = []
        try:
            for record in records(path):
                bodies += bodies_of(record)
                if len(bodies) >= per_file:
                    break
        except (ValueError, KeyError, TypeError, AttributeError):
            bodies = []
        skipped += not bodies
        for index, body in enumerate(bodies[:per_file]):
            number = f"-{index}" if path.suffix != ".json" or len(bodies) > 1 else ""
            found.append((name + number, api_of(inside, body), body))
    return found, skipped


# ---- output ----

def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n",
                    newline="\n")


def cells(template, found):
    import reference
    for name, api, body in found:
        text, error = reference.render(api, body, template)
        yield name, text, error


def full(template, found):
    """Text of each conversation (its digest where it is long), or `{"error": ...}`."""
    return {name: {"error": ": ".join(error)[:300]} if error else
            text if len(text) <= LONGEST_TEXT else digest(text)
            for name, text, error in cells(template, found)}


def digests(template, found):
    """Digest of each conversation's text, or the class of the error."""
    return {name: {"error": error[0]} if error else digest(text)
            for name, text, error in cells(template, found)}


def digest(text):
    text = text.encode()
    return {"sha256": hashlib.sha256(text).hexdigest(), "bytes": len(text)}


def own_templates():
    import reference
    templates = {path.stem: path.read_bytes().decode()
                 for path in sorted((HERE / "templates").glob("*.jinja"))}
    return templates | {"tiny-model": reference.TOKENIZER.chat_template}


def write_committed():
    found, _ = conversations(HERE / "conversations", 1)
    for path in (HERE / "expected").glob("*"):
        path.unlink()
    for name, template in own_templates().items():
        write(HERE / f"expected/{name}.json", full(template, found))
    others = {}
    for path in sorted(SHARED.glob("*.jinja")):
        source = path.read_bytes()
        others[path.name] = {"sha256": hashlib.sha256(source).hexdigest(),
                             "cells": digests(source.decode(), found)}
    if not others:
        sys.exit(f"no templates in {SHARED}: digests.json is kept")
    write(HERE / "digests.json", others)
    print(f"{len(found)} conversations, {len(own_templates())} own templates, {len(others)} others")


def write_others(args):
    if args.conversations:
        found, skipped = conversations(args.conversations, args.per_file)
    else:
        found, skipped = conversations(HERE / "conversations", 1)
    if args.templates:
        templates = {path.name.removesuffix(".jinja"): path.read_bytes().decode()
                     for path in sorted(args.templates.rglob("*.jinja"))}
    else:
        templates = own_templates()
    for name, api, body in found:
        path = args.out / f"bodies/{api}/{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        # In the order of the keys, which the prompt keeps.
        path.write_text(json.dumps(body, ensure_ascii=False))
    for name, template in templates.items():
        (args.out / "templates").mkdir(parents=True, exist_ok=True)
        (args.out / f"templates/{name}.jinja").write_bytes(template.encode())
        write(args.out / f"expected/{name}.json", full(template, found))
    print(f"{len(templates)} templates, {len(found)} conversations, {skipped} files without one",
          file=sys.stderr)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--templates", type=Path)
    parser.add_argument("--conversations", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--per-file", type=int, default=10)
    parser.add_argument("--vllm", type=Path, required=True, help="folder that holds vllm/")
    args = parser.parse_args()
    modules = (jinja2, pydantic, tokenizers, transformers)
    got = {module.__name__: module.__version__ for module in modules}
    if got != VERSIONS:
        sys.exit(f"expected {VERSIONS}, got {got}")
    sys.path.insert(0, str(args.vllm))
    if args.templates or args.conversations:
        if not args.out:
            sys.exit("--out is needed")
        write_others(args)
    else:
        write_committed()


if __name__ == "__main__":
    main()
