"""Item and query to prompt: sections, token budgets, picture evidence."""
