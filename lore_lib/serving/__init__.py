"""Serving by query frequency: cached scores for the head, a student for the torso, the LLM for the tail."""
