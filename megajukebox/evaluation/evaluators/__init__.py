"""One question about songs or a model a module; they yield scores and know nothing of reports."""
