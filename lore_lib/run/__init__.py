"""Running: stage folders, the strict notebook runner, the environment check, the report of a run."""
