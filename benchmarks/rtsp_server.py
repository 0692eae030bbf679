"""Serve a moving test image over RTSP with GStreamer's server, which belongs to the system's Python.

python3 benchmarks/rtsp_server.py PORT WIDTH HEIGHT FPS    serve rtsp://127.0.0.1:PORT/live until it is stopped

On Debian: apt install gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly python3-gi
"""

import sys


def serve(port: int, width: int, height: int, fps: int) -> None:
    """Serve H.264 to all who connect."""
    import gi  # pyrefly: ignore[missing-import] (of the system)

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtspServer  # pyrefly: ignore[missing-import]

    Gst.init(None)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(
        f"( videotestsrc is-live=true pattern=ball ! video/x-raw,width={width},height={height},framerate={fps}/1 "
        "! x264enc tune=zerolatency key-int-max=10 speed-preset=ultrafast ! rtph264pay name=pay0 pt=96 )"
    )
    factory.set_shared(True)
    server = GstRtspServer.RTSPServer()
    server.set_service(str(port))
    server.get_mount_points().add_factory("/live", factory)
    server.attach(None)
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    serve(*map(int, sys.argv[1:]))
