"""Staged chain-of-thought synthesis: knowledge, vision, rules; teachers and the accept/reject funnel."""
