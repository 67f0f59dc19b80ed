"""Text from data, as it may be printed: names, reasons and ids may come from anybody."""

from megajukebox.common.redaction import redact


def plain(text: str) -> str:
    """`text` on one line, without secrets and without what a terminal would obey (ESC writes the clipboard)."""
    return without_controls(redact(text), kept="")


def without_controls(text: str, kept: str = "\n\t") -> str:
    """`text` with a question mark for every sign that a terminal would obey, or that is no text."""
    if not text.isprintable():
        text = "".join(sign if sign.isprintable() or sign in kept else "?" for sign in text)
    return text.encode("utf-8", "replace").decode()
