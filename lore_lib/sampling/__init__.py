"""Drawing completions from a model and judging how many of them are right."""
