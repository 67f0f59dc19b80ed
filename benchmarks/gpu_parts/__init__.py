"""The parts of gpu_day.py: each module measures one subject, in a process of its own."""
