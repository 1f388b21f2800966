"""The stages and their model libraries, which every worker imports first. None of them may query CUDA on import.

open_clip uses transformers and timm only for towers that `models.clip` refuses. Their import takes a second.
torchvision imports the compiler of PyTorch for one check of an operation that no model here uses. That takes a second.

Collections skip these objects until the process ends, so that they do not copy the memory that forked workers share.
Libraries in C++ report objects that the last collection leaves as leaks.
"""

from __future__ import annotations

import atexit
import contextlib
import gc

from ovseg_batch.engine.imports import deferred, without_collection, without_modules

with without_collection():
    import torch

    # another version of torchvision may import more of the compiler; the import of open_clip then imports all
    with deferred("torch._dynamo.utils", "is_compile_supported"), contextlib.suppress(ImportError):
        import torchvision  # noqa: F401
    with without_modules("transformers", "timm"):
        import open_clip
    from ovseg_batch.stages import implementations

    gc.freeze()
atexit.register(gc.unfreeze)

__all__ = ["implementations", "open_clip", "torch"]
