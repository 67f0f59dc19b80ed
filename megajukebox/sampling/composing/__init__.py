"""Drawing pieces of written music from a trained composer."""
