"""Text from data, as it may be printed: names, reasons and ids may come from anybody."""

from megajukebox.common.redaction import redact


def plain(text: str) -> str:
    """`text` on one line, without secrets and without what a terminal would obey (ESC writes the clipboard)."""
    clean = "".join(sign if sign.isprintable() else "?" for sign in redact(text))
    return clean.encode("utf-8", "replace").decode()
