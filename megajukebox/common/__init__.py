"""What every package needs and none of them owns: files, processes, errors, names."""
