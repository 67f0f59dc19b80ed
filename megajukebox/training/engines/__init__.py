"""How processes share the work: the only folder that knows DeepSpeed."""
