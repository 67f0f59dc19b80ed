"""The page for whoever comes without the token of the pages' server: it says where the token is."""

from megajukebox.explorer.pages.html import render


def no_token_page(nonce: str, is_wrong: bool) -> str:
    """The page; it loads nothing, since nothing is served without the token.

    Args:
        nonce: of its style.
        is_wrong: a token was sent, but it is not this server's.
    """
    return render("no_token.html", nonce=nonce, is_wrong=is_wrong)
