"""Addresses (URLs) as they may be shown: without user names, passwords and keys."""

import re
from urllib.parse import unquote

# Addresses that begin with these follow RFC 3986: a slash ends the user info. Elsewhere, as in addresses of databases,
# a password may hold a slash.
RFC_SCHEMES = frozenset("http https ftp ftps rtsp rtsps rtmp rtmps rtp udp tcp srt mms".split())
SECRET_PARAMETER = re.compile(
    r"[?&;][^=?&;]*(?:pass|pwd|secret|token|key|sig|auth|cred|user|usr|login)[^=?&;]*=[^&;]*(?:[&;][^=&;]*(?=[&;]|$))*",
    re.IGNORECASE,
)


def remove_credentials(address: str) -> str:
    """Return an address as it may be shown and used in file names: without user, password and secret parameters."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        return re.sub(r"^[^/\\@]*:[^/\\]*@", "", address)  # as if the scheme was forgotten
    rest, removed = SECRET_PARAMETER.subn("", rest)
    if removed and "?" not in rest:  # the first parameter was a secret, the next one is the first now
        rest = re.sub("[&;]", "?", rest, count=1)
    authority = rest.split("/")[0]
    has_port_only = re.fullmatch(r"(\[.*\]|[^:]*)(:\d*)?", authority)
    if scheme.lower() in RFC_SCHEMES and ("@" in authority or has_port_only):
        rest = rest[authority.rfind("@") + 1 :]
    else:  # of a web address too, if what precedes the slash is no host: the password has a slash
        rest = rest[rest.rfind("@") + 1 :]
    return scheme + separator + rest


def remove_credentials_from(text: str, address: str) -> str:
    """Return a message about an address, such as a driver's, with *** for every word that may not be shown."""
    shown = remove_credentials(address)
    words = _words(address) | _words(unquote(address))
    secrets = sorted(map(re.escape, words - _words(shown)), key=len, reverse=True)
    text = text.replace(address, shown)
    return re.sub(rf"\b(?:{'|'.join(secrets)})\b", "***", text) if secrets else text


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))
