"""One loop for every stage; DeepSpeed lives in `engines`, and only there."""
