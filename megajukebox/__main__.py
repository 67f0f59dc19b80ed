"""The command line as a module, for where the script `megajukebox` is not on the path.

python -m megajukebox VERB --help
"""

from megajukebox.cli import main

if __name__ == "__main__":
    main()
