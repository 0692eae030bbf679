"""Sound in video files, found by the marks of its track."""

import pytest
from media_files import write_video

from utils.images.sound import has_sound


def box(kind, content=b"", wide=False):
    size = len(content) + (16 if wide else 8)
    head = (1).to_bytes(4, "big") + kind + size.to_bytes(8, "big") if wide else size.to_bytes(4, "big") + kind
    return head + content


def handler(kind):
    return box(b"moov", box(b"trak", box(b"mdia", box(b"hdlr", bytes(8) + kind + bytes(12)))))


DATA = b"hdlr" + bytes(8) + b"soun"  # as an image may have it by chance


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("a.mp4", b"", False),
        ("a.mp4", box(b"ftyp", b"isom") + box(b"mdat", DATA) + handler(b"vide"), False),
        ("a.MOV", box(b"ftyp", b"qt  ") + box(b"mdat", DATA, wide=True) + handler(b"vide") + handler(b"soun"), False),
        ("a.MOV", box(b"ftyp", b"qt  ") + box(b"mdat", DATA, wide=True) + handler(b"soun"), True),
        ("a.mp4", box(b"mdat", DATA)[:-2], False),  # cut off
        ("a.mp4", bytes(4) + b"mdat" + DATA, False),  # up to the end of the file
        ("a.avi", b"strh" + bytes(4) + b"vids", False),
        ("a.avi", b"strh" + bytes(4) + b"auds", True),
        ("a.mkv", b"V_MPEG4/ISO/ASP A_OPUS", True),
        ("a.ts", b"\x00\x00\x01\xe0 video", False),
        ("a.ts", b"\x00\x00\x01\xe0 video \x00\x00\x01\xc0 sound", True),
        ("a.gif", b"A_OPUS", False),
    ],
)
def test_tracks_of_sound(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    assert has_sound(tmp_path / name) is expected


def test_videos_of_opencv_have_none(tmp_path):
    assert not has_sound(write_video(tmp_path / "a.mp4", frames=2)) and not has_sound(tmp_path / "absent.mp4")
