"""lore: a notebook-driven reproduction kit of the paper LORE (arXiv 2512.03025)."""

import os

os.environ.setdefault(
    "HF_HUB_DISABLE_TELEMETRY", "1"
)  # TRL pings per trainer; read where the hub is imported

__version__ = "0.1.0"
