"""The relevance task itself: demands, items, rules, the synthetic world and adapters to real data."""
