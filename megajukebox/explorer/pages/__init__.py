"""One module a page, and the pieces that pages share."""
