"""Decoding of image files in memory to 8 bits per channel, whatever depth they are stored in."""

import cv2
import numpy as np

DEEP = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"PF\n", b"Pf\n")  # TIFF and PFM, which may have more than 8 bits
PNG = b"\x89PNG\r\n\x1a\n"
PNG_DEPTH = 24  # position of the bits per channel
MAX_12_BITS, MAX_8_BITS = 4095, 255


def decode_image(data: bytes | bytearray) -> np.ndarray | None:
    """Return BGR uint8 (H, W, 3), rotated by the EXIF orientation, or None if OpenCV cannot decode it.

    16 bits keep their upper 8. If no value of an image needs more than 12 or 8 bits, these are the range, since cameras
    store them so. Its upper 8 bits alone would be black. Floats are 0…1, or 0…255 if one is above 1.
    """
    # Not cv2.imread: on Windows it fails on names outside the code page.
    buffer = np.frombuffer(data, np.uint8)
    is_deep = data.startswith(DEEP) or (data.startswith(PNG) and data[PNG_DEPTH] == 16)
    image = cv2.imdecode(buffer, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH) if is_deep else None
    if image is None and is_deep:
        image = cv2.imdecode(buffer, cv2.IMREAD_ANYDEPTH)  # gray floats in a TIFF
    if image is None or image.dtype not in (np.uint16, np.float32):
        return cv2.imdecode(buffer, cv2.IMREAD_COLOR)
    if image.dtype == np.uint16:
        top = int(image.max())
        shift = 8 if top > MAX_12_BITS else 4 if top > MAX_8_BITS else 0
        if shift == 8:
            return cv2.imdecode(buffer, cv2.IMREAD_COLOR)  # as all programs see it
        image = np.right_shift(image, shift).astype(np.uint8)
    else:
        image = np.nan_to_num(image)
        image = (image * (255 if image.max() <= 1 else 1)).round().clip(0, 255).astype(np.uint8)
    return image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
