"""One loop for every stage; DeepSpeed lives in `parallel`, and only there."""
