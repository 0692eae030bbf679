"""Addresses as they may be shown: nothing in them lets anyone in."""

import pytest

from utils.addresses import remove_credentials, remove_credentials_from


@pytest.mark.parametrize(
    "address, shown",
    [
        ("0", "0"),  # a camera
        ("C:\\images\\a@b.jpg", "C:\\images\\a@b.jpg"),
        ("http://host/user@x", "http://host/user@x"),
        ("http://[::1]:80/a@b", "http://[::1]:80/a@b"),
        ("sqlite:////tmp/a.db", "sqlite:////tmp/a.db"),
        ("rtsp://user:secret@host:554/a@b", "rtsp://host:554/a@b"),
        ("rtsp://user:sec/ret@host/a", "rtsp://host/a"),
        ("https://secret@host/a.yaml", "https://host/a.yaml"),
        ("postgresql://me:secret@host:5432/db", "postgresql://host:5432/db"),
        ("postgresql://me:sec/ret@host/db", "postgresql://host/db"),
        ("mysql://me:sec@ret@host/db", "mysql://host/db"),
        ("mysql://me:se@c/ret@host/db", "mysql://host/db"),
        ("postgresql://host/db?user=me&password=secret", "postgresql://host/db"),
        ("postgresql://host/db?sslmode=require&passwd=sec@ret&a=b", "postgresql://host/db?sslmode=require&a=b"),
        ("http://host/cam?pwd=sec&ret&w=3", "http://host/cam?w=3"),
        ("http://host/a.yaml?X-Amz-Signature=secret&v=1", "http://host/a.yaml?v=1"),
        ("me:secret@host/db", "host/db"),  # the scheme is missing
    ],
)
def test_credentials_are_removed(address, shown):
    assert remove_credentials(address) == shown


@pytest.mark.parametrize(
    "text, shown",
    [
        ("could not parse 'mysql://me:open@sesame%21@host/db'", "could not parse 'mysql://host/db'"),
        ("failed to resolve host 'sesame!@host': unknown", "failed to resolve host '***!@host': unknown"),
        ("connection to server at host refused", "connection to server at host refused"),
    ],
)
def test_credentials_are_removed_from_messages_of_drivers(text, shown):
    assert remove_credentials_from(text, "mysql://me:open@sesame%21@host/db") == shown
