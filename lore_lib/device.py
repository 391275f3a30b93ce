"""Where a model runs: one answer for what is shown and for what trains and samples."""

import functools


@functools.cache
def resolve_device(device: str) -> str:
    """ "auto" is the accelerator if there is one, CUDA before MPS; other names stay as they are."""
    if device != "auto":
        return device
    import torch  # seconds to import, and only "auto" needs it

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch says that memory ran out: of a GPU, or of the machine."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
