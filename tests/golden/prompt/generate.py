#!/usr/bin/env python3
"""Writes expected/ from templates/ and conversations/, with transformers as the reference.

Versions that wrote the committed files (checked below):
    Python 3.11.7, transformers 5.24.0, jinja2 3.1.6, tokenizers 0.23.3
    python3 -m venv ENV && ENV/bin/pip install transformers==5.24.0 jinja2==3.1.6 tokenizers==0.23.3
    ENV/bin/python generate.py

A cell is one template with one request body. The body is normalised as vLLM 0.33 does before it
calls apply_chat_template (shared/reference/engine-wire.md d.2; written from there, not from our Rust
code), then rendered with tokenize=False. A cell that vLLM or the template refuses is a file
with the extension .error, whose text is for people.

    generate.py [--templates DIR] [--out DIR]     (to look at other templates without committing)
"""
import argparse
import copy
import json
import platform
import sys
from pathlib import Path

import jinja2
import jinja2.nodes
import tokenizers
import transformers
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

HERE = Path(__file__).resolve().parent
VERSIONS = {"transformers": "5.24.0", "jinja2": "3.1.6", "tokenizers": "0.23.3"}


class BadRequest(Exception):
    """The engine would answer 400."""


# ---- content format: vLLM looks for a loop over message.content in the syntax tree ----

def strip_elements(node):
    """Filters, tests and slices of a variable are still (elements of) that variable."""
    while True:
        if isinstance(node, (jinja2.nodes.Filter, jinja2.nodes.Test)) and node.node is not None:
            node = node.node
        elif isinstance(node, jinja2.nodes.Getitem) and isinstance(node.arg, jinja2.nodes.Slice):
            node = node.node
        else:
            return node


def is_name(node, names):
    return isinstance(node, jinja2.nodes.Name) and node.name in names


def is_key(node, names, key):
    if isinstance(node, jinja2.nodes.Getattr):
        return node.attr == key and is_name(node.node, names)
    return (isinstance(node, jinja2.nodes.Getitem) and isinstance(node.arg, jinja2.nodes.Const)
            and node.arg.value == key and is_name(node.node, names))


def content_format(template):
    ast = chat_template_utils._compile_jinja_template(template).environment.parse(template)
    lists = {"messages"}
    grown = True
    while grown:
        grown = False
        for assign in ast.find_all(jinja2.nodes.Assign):
            if is_name(strip_elements(assign.node), lists):
                if not isinstance(assign.target, jinja2.nodes.Name):
                    return "string"
                if assign.target.name not in lists:
                    lists.add(assign.target.name)
                    grown = True
    loops = list(ast.find_all(jinja2.nodes.For))
    items = {loop.target.name for loop in loops if is_name(strip_elements(loop.iter), lists)}
    parts = any(is_key(strip_elements(loop.iter), items, "content") for loop in loops)
    return "openai" if parts else "string"


# ---- message normalisation ----

TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text",
              "refusal": "refusal", "thinking": "thinking"}


def part_text(part):
    if isinstance(part, str):
        return part
    if part.get("type") not in TEXT_PARTS:
        raise BadRequest(f"not a text part: {part.get('type')}")
    return part.get(TEXT_PARTS[part["type"]])


def normalise_message(msg, fmt):
    role, content = msg["role"], msg.get("content")
    content = [] if content is None else [content] if isinstance(content, str) else content
    texts = [text for text in map(part_text, content) if text is not None]
    if role == "system":
        header = "x-anthropic-billing-header"
        texts = [t.partition("\n")[2] if t.startswith(header) else t for t in texts
                 if not (t.startswith(header) and not t.partition("\n")[2])]
    if fmt == "openai" and role != "tool":
        out = {"role": role, "content": [{"type": "text", "text": text} for text in texts]}
    elif fmt == "openai":
        out = {"role": role, "content": "\n".join(texts)}
    else:
        out = {"role": role, "content": "\n".join(text for text in texts if text)}
    if role == "assistant":
        calls = copy.deepcopy(msg.get("tool_calls"))
        if calls:
            for call in calls:
                arguments = call["function"].get("arguments")
                if isinstance(arguments, str):
                    try:
                        arguments = json.loads(arguments)
                    except json.JSONDecodeError:
                        arguments = {}
                call["function"]["arguments"] = arguments if isinstance(arguments, dict) else {}
            out["tool_calls"] = calls
        reasoning = msg.get("reasoning")
        if reasoning is None:
            reasoning = msg.get("reasoning_content")
        if reasoning is not None:
            out["reasoning"] = reasoning
            out["reasoning_content"] = reasoning
    elif role == "tool" and "tool_call_id" in msg:
        out["tool_call_id"] = msg["tool_call_id"]
    if isinstance(msg.get("name"), str):
        out["name"] = msg["name"]
    return out


def demote_developer(conversation, template, fmt):
    if "'developer'" in template or '"developer"' in template:
        return conversation
    if not any(msg["role"] == "developer" for msg in conversation):
        return conversation
    conversation = [{**msg, "role": "system"} if msg["role"] == "developer" else msg
                    for msg in conversation]
    if not any(msg["role"] == "system" for msg in conversation[1:]):
        return conversation
    texts = []
    for msg in conversation:
        if msg["role"] == "system":
            content = msg["content"]
            if isinstance(content, list):
                content = "\n".join(part["text"] for part in content)
            texts.append(content)
    merged = "\n\n".join(text for text in texts if text)
    content = [{"type": "text", "text": merged}] if fmt == "openai" else merged
    rest = [msg for msg in conversation if msg["role"] != "system"]
    return [{"role": "system", "content": content}] + rest


def dump_tool(tool):
    """model_dump() of vLLM's ChatCompletionToolsParam."""
    function = tool["function"]
    out = {name: function.get(name) for name in ("name", "description", "parameters")}
    if function.get("strict") is not None:
        out["strict"] = function["strict"]
    return {"type": tool.get("type", "function"), "function": out}


def render(tokenizer, template, body):
    fmt = content_format(template)
    conversation = [normalise_message(msg, fmt) for msg in body["messages"]]
    conversation = demote_developer(conversation, template, fmt)
    kwargs = dict(body.get("chat_template_kwargs") or {})
    fixed = {
        "add_generation_prompt": body.get("add_generation_prompt", True),
        "continue_final_message": body.get("continue_final_message", False),
        "documents": body.get("documents"),
        "reasoning_effort": body.get("reasoning_effort"),
    }
    if fixed["reasoning_effort"] is not None and "enable_thinking" not in kwargs:
        fixed["enable_thinking"] = fixed["reasoning_effort"] != "none"
    kwargs |= {name: value for name, value in fixed.items() if value is not None}
    tools = body.get("tools")
    return tokenizer.apply_chat_template(
        conversation=conversation,
        tools=None if tools is None else [dump_tool(tool) for tool in tools],
        chat_template=template,
        tokenize=False,
        **kwargs,
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--templates", type=Path, default=HERE / "templates")
    parser.add_argument("--out", type=Path, default=HERE / "expected")
    args = parser.parse_args()
    got = {m.__name__: m.__version__ for m in (transformers, jinja2, tokenizers)}
    if got != VERSIONS:
        sys.exit(f"expected {VERSIONS}, got {got} (Python {platform.python_version()})")

    model = HERE.parent / "tiny-model"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    templates = {path.stem: path.read_bytes().decode() for path in args.templates.glob("*.jinja")}
    if args.templates == HERE / "templates":
        templates["tiny-model"] = tokenizer.chat_template
    args.out.mkdir(parents=True, exist_ok=True)
    for path in args.out.iterdir():
        path.unlink()
    counts = {"txt": 0, "error": 0}
    for name, template in sorted(templates.items()):
        for path in sorted((HERE / "conversations").glob("*.json")):
            body = json.loads(path.read_bytes())
            try:
                text, kind = render(tokenizer, template, body), "txt"
            except Exception as err:  # whatever it is, the engine answers 400
                text, kind = f"{type(err).__name__}: {err}\n", "error"
            counts[kind] += 1
            (args.out / f"{name}__{path.stem}.{kind}").write_bytes(text.encode())
    print(counts)


if __name__ == "__main__":
    main()
