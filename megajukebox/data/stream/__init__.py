"""From shards to batches: every clip exactly once an epoch, on any number of processes, through
any crash.
"""
