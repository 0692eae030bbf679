"""Tracks of all that one run reads: each video, stream and sequence of images has a tracker of its own."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from utils.datasets.sequences import group_by_sequence
from utils.detections import Detections
from utils.errors import UserError
from utils.images.frames import Frame, Source
from utils.tracking.tracker import Tracker, TrackSettings

MAX_PAUSE = 60.0  # seconds without a frame of a stream, after which nothing is taken to be the same object


class FollowedSource:
    """Function from a frame and its detections to the detections with ids.

    Images whose names differ in their frame number only are one sequence, in the order of the numbers: `source.images`
    is sorted so. Other images have no ids. Raises UserError if the source has nothing but those.
    """

    def __init__(self, source: Source, settings: TrackSettings):
        self._settings = settings
        self._trackers: dict[str, Tracker] = {}
        self._last_time: dict[str, float] = {}
        self._sequence_of: dict[str, str] = {}
        for sequence, files in find_sequences(source.images).items():
            self._sequence_of.update(dict.fromkeys(files, sequence))
        if source.images and not source.videos and not self._sequence_of:
            raise UserError(
                "--track: these images are no sequence. Give a video, a stream, or images whose names differ in their "
                "frame number only, such as walk_0001.jpg, walk_0002.jpg and walk_0003.jpg"
            )
        alone = [file for file in source.images if file not in self._sequence_of]
        source.images = [*self._sequence_of, *alone]

    def __call__(self, frame: Frame, found: Detections) -> Detections:
        """Return what remains of the detections of a frame, with ids, as `Tracker.follow` does."""
        key = self._sequence_of.get(frame.path) if frame.kind == "image" else frame.path
        if key is not None:
            return self._tracker(key, frame).follow(found)
        high = self._settings.is_high(found.confidence, found.classes)
        return replace(found, rows=found.rows[high], track_ids=np.zeros(int(high.sum()), np.int64))

    def _tracker(self, key: str, frame: Frame) -> Tracker:
        """Return the tracker of a source. Files are read one after the other, so only one of them is kept."""
        live = frame.kind in ("stream", "screen")
        if key not in self._trackers:
            if not live:
                self._trackers.clear()
            self._trackers[key] = Tracker(self._settings)
        if live and frame.time - self._last_time.get(key, frame.time) > MAX_PAUSE:
            self._trackers[key].forget()
        self._last_time[key] = frame.time
        return self._trackers[key]


def find_sequences(images: Sequence[str]) -> dict[str, list[str]]:
    """Return the files of each sequence of images, in the order of their numbers. Its key is its folder and name."""
    folders: dict[Path, list[str]] = defaultdict(list)
    for file in images:
        folders[Path(file).parent].append(file)
    found: dict[str, list[str]] = {}
    for folder, files in folders.items():
        sequences = group_by_sequence([Path(file).name for file in files])
        members: dict[int, list[int]] = defaultdict(list)
        for i, group in enumerate(sequences.groups.tolist()):
            members[group].append(i)
        for group, indices in members.items():
            if len(set(sequences.numbers[indices])) > 1:  # else a single image, or copies of one
                indices.sort(key=lambda i: sequences.numbers[i])
                found[str(folder / Path(sequences.names[group]).name)] = [files[i] for i in indices]
    return found
