"""Image and video files, and a web server for them: shared by the tests of sources."""

import contextlib
import functools
import http.server
import threading

import cv2
import numpy as np


def write_image(file, value=100, size=(30, 40)):
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(file), np.full((*size, 3), value, dtype=np.uint8))
    return file


def write_video(file, frames=10, fps=20, size=(64, 48), noise=0, images=None):
    """Write a video whose frame i has the grey value 20 i modulo 256, plus noise of 0 to `noise`, or `images`."""
    rng = np.random.default_rng(0)
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
    assert writer.isOpened()
    for i in range(frames):
        spread = rng.integers(0, noise + 1, (size[1], size[0], 3))
        writer.write((20 * i + spread).astype(np.uint8) if images is None else images[i])
    writer.release()
    return file


@contextlib.contextmanager
def served(folder, handler=http.server.SimpleHTTPRequestHandler):
    """Serve `folder` by a local web server, and yield its address."""

    class Quiet(handler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
