"""The page of the corpus itself: what the model hears, to find bad data."""

from megajukebox.explorer.markup import element
from megajukebox.explorer.page import copyable, heading, page

HOW_TO_SHOW = "megajukebox explore samples runs --corpus shards/songs"


def no_corpus_page() -> str:
    say = element("p", "No shards were given. Listen to what the model is trained on:")
    panel = element("section", say, copyable(HOW_TO_SHOW, "command"), class_="panel")
    return page("Corpus", "Corpus", "", heading("Corpus"), panel)
