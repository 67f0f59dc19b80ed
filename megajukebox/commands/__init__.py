"""The verbs of the command line that no launcher starts, one module a verb."""
