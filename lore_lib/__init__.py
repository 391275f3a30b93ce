"""lore: a notebook-driven reproduction kit of the paper LORE (arXiv 2512.03025)."""

import os

# read where the hub and vLLM are imported: TRL pings home per trainer, vLLM per engine
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

__version__ = "0.1.0"
