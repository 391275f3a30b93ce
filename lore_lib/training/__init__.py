"""Training: the nano base, supervised tuning, rewards, curriculum and GRPO."""
