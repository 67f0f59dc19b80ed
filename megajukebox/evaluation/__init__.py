"""Is a checkpoint better, and do its songs hold up? Sources, evaluators, and reports."""
