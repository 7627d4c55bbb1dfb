"""Prompts as vLLM 0.33.0 renders them: its own request models, conversions, message parsing and
call of the chat template, around the tokenizer of the tiny model.

Only the glue is ours: what `OnlineRenderer.render_chat`, `render_responses` and
`AnthropicServingMessages.create_messages` call in this order, without engine and server flags.
"""
import asyncio
import copy
import json
import types
from pathlib import Path

import stubs  # noqa: F401  first
from transformers import PreTrainedTokenizerFast

from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.anthropic.serving import (
    AnthropicServingMessages,
    DisabledThinkingEffortResolver,
)
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.openai.responses.utils import (
    construct_input_messages,
    construct_tool_dicts,
)
from vllm.renderers import hf
from vllm.renderers.chat_utils import parse_chat_messages

# What stands for the text of the tokenizer's own prefix, where the API adds it.
SPECIAL_PREFIX = "<|bos|>"

MODEL = Path(__file__).resolve().parent.parent / "tiny-model"
TOKENIZER = PreTrainedTokenizerFast.from_pretrained(MODEL)
CONFIG = types.SimpleNamespace(
    multimodal_config=None, enable_prompt_embeds=False, max_model_len=1 << 30,
    hf_config=types.SimpleNamespace(model_type="llama"), tokenizer=None, model=None,
    trust_remote_code=False, tokenizer_revision=None, code_revision=None, revision=None)


class BadRequest(Exception):
    """The engine answers 400 before it renders."""


def render_messages(request, template, messages, tools, defaults=None):
    """`OnlineRenderer.preprocess_chat` and `HfRenderer.render_messages`."""
    params = request.build_chat_params(template, "auto", {}).with_defaults(
        {**(defaults or {}), "tools": tools, "tokenize": False})
    content_format = hf._detect_content_format(template, default="string")
    conversation, media, _ = parse_chat_messages(
        messages, CONFIG, content_format=content_format)
    if media:
        raise BadRequest("media")
    text = hf.safe_apply_chat_template(
        CONFIG, TOKENIZER, conversation, **params.get_apply_chat_template_kwargs())
    tokenize = request.build_tok_params(CONFIG)
    if tokenize.truncate_prompt_tokens is not None:
        raise BadRequest("truncates")
    return (SPECIAL_PREFIX if tokenize.add_special_tokens else "") + text


def render_chat(request, template):
    """`render_chat`, common case."""
    if request.chat_template is not None:
        raise BadRequest("chat template of the request")
    tools = None if request.tools is None else [tool.model_dump() for tool in request.tools]
    return render_messages(request, template, request.messages, tools)


def chat(body, template):
    return render_chat(ChatCompletionRequest.model_validate(arguments_as_text(body)), template)


def arguments_as_text(body):
    """vLLM's message parser takes arguments that are objects, some versions of the openai
    package's types refuse them; an object and its JSON come to the same prompt."""
    body = copy.deepcopy(body)
    for message in body.get("messages") or []:
        for call in message.get("tool_calls") or []:
            function = call.get("function")
            if isinstance(function, dict) and isinstance(function.get("arguments"), dict):
                function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return body


class Resolver(DisabledThinkingEffortResolver):
    def __init__(self, template):
        super().__init__(renderer=None)
        self.template = template

    async def _render_probe_prompt(self, effort):
        request = ChatCompletionRequest(
            messages=[{"role": "user", "content": "Hi"}], reasoning_effort=effort)
        try:
            return None, render_chat(request, self.template)
        except Exception:
            return None


def messages(body, template):
    request = AnthropicMessagesRequest.model_validate(copy.deepcopy(body))
    chat_request = AnthropicServingMessages.to_chat_completion_request(
        request,
        merge_inline_system=AnthropicServingMessages._detect_merge_inline_system(template),
        disabled_thinking_effort=asyncio.run(Resolver(template).resolve_for(request)))
    return render_chat(chat_request, template)


def responses(body, template):
    request = ResponsesRequest.model_validate(copy.deepcopy(body))
    if request.previous_response_id is not None or request.previous_input_messages is not None:
        raise BadRequest("history is the engine's")
    tools = construct_tool_dicts(request.tools, request.tool_choice)
    conversation = construct_input_messages(
        request_instructions=request.instructions, request_input=request.input)
    kwargs = request.build_chat_params(template, "auto", {}).chat_template_kwargs
    return render_messages(request, template, conversation, tools, kwargs)


APIS = {"chat": chat, "messages": messages, "responses": responses}


def render(api, body, template):
    """The prompt, or (class of the error, its message)."""
    try:
        return APIS[api](body, template), None
    except Exception as error:  # whatever it is, the engine answers 400
        return None, (type(error).__name__, str(error))
