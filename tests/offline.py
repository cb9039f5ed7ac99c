"""A Python program that reaches this machine alone: `python offline.py RECORD PROGRAM ARGUMENTS`.

Whatever else it looks up or connects to is refused, and written to the file RECORD, with the calls that led there.
"""

import ipaddress
import runpy
import sys
import traceback

LOOKED_UP = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyname_ex")
CONNECTED = ("socket.connect", "socket.sendto", "socket.sendmsg")


def is_outside(host: object) -> bool:
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host not in (None, "", b"", "localhost", b"localhost")


def refuse(event: str, arguments: tuple) -> None:
    if event in LOOKED_UP:
        host = arguments[0]
    elif event in CONNECTED and isinstance(arguments[1], tuple):  # not the path of a Unix socket
        host = arguments[1][0]
    else:
        return
    if is_outside(host):
        with open(record, "a") as file:
            print(event, host, file=file)
            traceback.print_stack(file=file)
        raise OSError(f"{host} is outside this machine")


if __name__ == "__main__":
    record, sys.argv = sys.argv[1], sys.argv[2:]
    sys.addaudithook(refuse)
    runpy.run_path(sys.argv[0], run_name="__main__")
