"""Evaluators: is a checkpoint better, and do its songs hold up? They yield scores and know nothing of reports."""
