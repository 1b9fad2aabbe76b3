"""Torch and Transformers without what serving does not use, for the engine's process.

A Llama needs a fifth of the modules that Transformers imports for it. The rest is torch's compiler,
distributed tensors, optimisers of scipy and accelerate, which take longer to import than the
model's weights take to read, and a hundred MiB. Transformers runs without each of them: it asks
whether they are there. The compiler alone is asked for by name, for decorators that say what it
must not compile; nothing is compiled here, so a stand-in answers them, and gives way to the real
compiler as soon as anything else is wanted of it. torch's operations for tensors without numbers
that are written in Python wait for a model that is built with one of them.

This holds for the whole process, so the process's entry point decides on it, and nobody else.
"""

import gc
import importlib
import importlib.abc
import importlib.machinery
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
TRACED_INDEX = "torch._dynamo._trace_wrapped_higher_order_op"
META_OPERATIONS = "torch._meta_registrations"
STRUCTURE = "transformers.utils.import_utils"
ABSENT = (
    "is_accelerate_available",
    "is_scipy_available",
    "is_torch_distributed_available",
    "is_torch_flex_attn_available",
)
"""What Transformers is told that is not installed."""


def import_lean() -> None:
    """Import torch, and Transformers as far as every model needs it. Before anything else does."""
    gc.disable()  # All of it stays: looking for garbage would take a tenth of the time.
    try:
        sys.modules[META_OPERATIONS] = ModuleType(META_OPERATIONS)
        import torch

        stand_in = _Compiler(COMPILER)
        sys.modules[COMPILER] = stand_in
        sys.meta_path[:0] = [_GiveWay(), _ReadOnce()]
        import transformers.utils
        from transformers.utils import import_utils

        for name in ABSENT:
            for module in (import_utils, transformers.utils):
                if hasattr(module, name):
                    setattr(module, name, _absent)
        _import_masks(torch)
        _build_lightly(torch)
        vars(importlib.import_module("transformers.core_model_loading"))["re"] = _LateExpressions()
    finally:
        gc.enable()
        gc.freeze()


def _absent(*_: object, **__: object) -> bool:
    return False


def _import_masks(torch: Any) -> None:
    """Transformers' masks import one class of the compiler, which few models' masks use."""
    stand_in = ModuleType(TRACED_INDEX)

    class TransformGetItemToIndex:
        def __new__(cls) -> Any:
            return importlib.import_module(TRACED_INDEX).TransformGetItemToIndex()

    stand_in.TransformGetItemToIndex = TransformGetItemToIndex  # type: ignore[attr-defined]
    sys.modules[TRACED_INDEX] = stand_in
    try:
        importlib.import_module("transformers.masking_utils")
    finally:
        if sys.modules.get(TRACED_INDEX) is stand_in:
            del sys.modules[TRACED_INDEX]


def _build_lightly(torch: Any) -> None:
    """Keep sympy out of building a model without weights, on the device `meta`.

    There torch draws numbers and divides ranges by way of its compiler's shapes, which are sympy's.
    Nothing need be drawn, and ranges (of positions, for the frequencies of RoPE) are short enough
    to be made for real.
    """
    draw = torch.nn.init._no_grad_normal_

    def normal(tensor: Any, *arguments: Any, **options: Any) -> Any:
        return tensor if tensor.is_meta else draw(tensor, *arguments, **options)

    torch.nn.init._no_grad_normal_ = normal
    _follow_device().discard(torch.arange)


def whole_meta() -> bool:
    """Make ranges without numbers again, for a model that mixes them with other tensors, and have
    all of torch's operations on such tensors. Returns whether that changes anything."""
    import torch

    constructors = _follow_device()
    changed = torch.arange not in constructors
    constructors.add(torch.arange)
    return _real_meta_operations() or changed


def _real_meta_operations() -> bool:
    """Import torch's operations on tensors without numbers. Returns whether they were missing."""
    missing = not hasattr(sys.modules.get(META_OPERATIONS), "__file__")
    if missing:
        sys.modules.pop(META_OPERATIONS, None)
        importlib.import_module(META_OPERATIONS)
    return missing


def _follow_device() -> set[Any]:
    """The functions whose tensors go to the device of a `with torch.device(...)`."""
    device = importlib.import_module("torch.utils._device")
    constructors: set[Any] = device._device_constructors()
    return constructors


class _Compiler(ModuleType):
    """Stands in for torch's compiler: what is not to be compiled is as it is."""

    @staticmethod
    def disable(fn: Any = None, *_: object, **__: object) -> Any:
        return _uncompiled if fn is None else fn

    @staticmethod
    def allow_in_graph(fn: Any) -> Any:
        return fn

    @staticmethod
    def assume_constant_result(fn: Any) -> Any:
        return fn

    def __getattr__(self, name: str) -> Any:
        # `inspect` and the like ask every module for such names; they want nothing of the compiler.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        return getattr(real_compiler(), name)


def _uncompiled(fn: Callable[..., Any]) -> Callable[..., Any]:
    return fn


def real_compiler() -> ModuleType:
    """Import torch's compiler in its stand-in's place."""
    _real_meta_operations()
    if isinstance(sys.modules.get(COMPILER), _Compiler):
        del sys.modules[COMPILER]
        vars(sys.modules["torch"]).pop("_dynamo", None)
    return importlib.import_module(COMPILER)


class _GiveWay(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Hands out modules of the compiler that came with it while one of them was looked for.

    The import system asks for a module's parent, here the stand-in, before it looks for the module.
    The real parent brings most of its modules along; they must not be made a second time.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith(f"{COMPILER}.") or name not in sys.modules:
            return None
        there = sys.modules[name]
        spec = importlib.machinery.ModuleSpec(
            name,
            self,
            origin=getattr(there, "__file__", None),
            is_package=hasattr(there, "__path__"),
        )
        spec.loader_state = there
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        there: ModuleType = spec.loader_state
        return there

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to do: the module has run."""


class _LateExpressions(ModuleType):
    """The module `re` for Transformers' loading of weights, where expressions are compiled when they
    are first used. It makes one of every weight's name, and one of every old name of any
    architecture's weights: some 1,300 for a small Llama, which uses none."""

    def __init__(self) -> None:
        super().__init__(re.__name__)

    def __getattr__(self, name: str) -> Any:
        return getattr(re, name)

    @staticmethod
    def compile(pattern: str) -> Any:
        return _Expression(pattern)


class _Expression:
    def __init__(self, pattern: str) -> None:
        self._pattern = pattern

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(re.compile(self._pattern), name)


class _ReadOnce(importlib.abc.MetaPathFinder):
    """Widens a cache of Transformers.

    It reads the beginnings of its 1,600 modules to know what they offer, and what it has found in a folder
    it keeps; but of the last 128 of some 550 folders, so it reads all of them a second time.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != STRUCTURE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                module.create_import_structure_from_path = cache(  # type: ignore[attr-defined]
                    module.create_import_structure_from_path.__wrapped__
                )

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
