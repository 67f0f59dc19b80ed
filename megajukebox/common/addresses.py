"""What an address that a server is to listen at means, and the names by which clients may call it."""

import ipaddress
from collections.abc import Collection


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def names_this_machine(host_header: str, also: Collection[str] = ()) -> bool:
    """Whether a Host header names loopback, or one of the names `also`, at any port.

    A page of another site reaches a server on loopback under a name of its own, which it lets point to 127.0.0.1 (DNS
    rebinding): its requests look like any other but for this header.
    """
    name = host_header.lower()
    if name.startswith("["):
        name, _, port = name[1:].partition("]")
    else:
        name, _, port = name.partition(":")
    is_port = not port or port.removeprefix(":").isdecimal()
    return is_port and (is_loopback(name) or name in also)
