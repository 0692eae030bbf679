"""File name suffixes of images and videos that are read."""

IMAGE_SUFFIXES = frozenset(".bmp .dng .jpeg .jpg .mpo .pfm .png .tif .tiff .webp".split())
UNREAD_SUFFIXES = frozenset(".arw .avif .cr2 .gif .heic .heif .jp2 .jxl .nef .psd .svg".split())  # of other images

VIDEO_SUFFIXES = frozenset(".asf .avi .gif .m4v .mkv .mov .mp4 .mpeg .mpg .ts .wmv".split())
