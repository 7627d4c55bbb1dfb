"""Lets vLLM's front end be imported where there is neither torch nor a GPU.

Its request models, conversions and message parsing are plain Python, but their modules import the
whole engine. Those parts, and packages that only they need, become modules whose every name is an
empty class. Nothing that decides a prompt is stubbed: what is, is listed here.
"""
import importlib.abc
import importlib.machinery
import sys
import types

import transformers  # noqa: F401  before the stubs, so that it sees that there is no torch
import transformers.utils.chat_template_utils  # noqa: F401

PACKAGES = {
    "torch", "torchvision", "torchaudio", "triton", "xgrammar", "llguidance", "outlines",
    "outlines_core", "lark", "ray", "compressed_tensors", "depyf", "numba", "cv2", "setproctitle",
    "lmformatenforcer", "model_hosting_container_standards", "prometheus_fastapi_instrumentator",
    "anthropic", "mcp", "ijson", "opentelemetry", "cbor2", "pybase64", "soundfile", "scipy",
    "librosa", "watchfiles", "tilelang", "flashinfer", "uvloop", "tiktoken", "sentencepiece",
    "diskcache", "pydantic_extra_types", "pycountry", "av", "mistral_common", "cutlass", "PIL",
}
ENGINE = (
    "vllm._C", "vllm._custom_ops", "vllm._version", "vllm.compilation", "vllm.config",
    "vllm.distributed", "vllm.engine", "vllm.ir", "vllm.kernels", "vllm.lora",
    "vllm.model_executor", "vllm.multimodal", "vllm.platforms", "vllm.tracing",
    "vllm.transformers_utils", "vllm.v1", "vllm.vllm_flash_attn",
)


def any_schema(*_):
    from pydantic_core import core_schema
    return core_schema.any_schema()


class Open(type):
    """The class of empty classes: any attribute of one is itself."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __call__(cls, *args, **kwargs):
        # As a decorator it changes nothing.
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else super().__call__()

    def __getitem__(cls, _):
        return cls

    def __or__(cls, _):
        return object

    __ror__ = __or__

    def __iter__(cls):
        return iter(())

    def __contains__(cls, _):
        return False

    def __int__(cls):
        return 0

    __index__ = __int__

    def __lt__(cls, _):
        return False

    __gt__ = __le__ = __ge__ = __lt__


class Empty(metaclass=Open):
    __get_pydantic_core_schema__ = classmethod(any_schema)

    def __init__(self, *args, **kwargs):
        pass

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Empty

    def __call__(self, *args, **kwargs):
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


class StubModule(types.ModuleType):
    __version__ = "2.11.0"
    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if name.endswith("Mixin"):
            # A base beside classes with metaclasses of their own.
            value = type(name, (), {"__get_pydantic_core_schema__": classmethod(any_schema)})
        else:
            value = Open(name, (Empty,), {})
        setattr(self, name, value)
        return value


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in PACKAGES or name.startswith(ENGINE):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return StubModule(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, Finder())
