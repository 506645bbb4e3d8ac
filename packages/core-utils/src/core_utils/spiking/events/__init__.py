"""Recordings of event cameras, in NumPy alone: files, event arrays, count frames, and a simulated camera that moves."""

from core_utils.spiking.events.cache import CachedFrames, cache_frames, cache_key
from core_utils.spiking.events.camera import EventCamera, posed_event_frames, simulate_events, simulate_frames
from core_utils.spiking.events.frames import EVENT, events_to_frames, resize_frames
from core_utils.spiking.events.miniature import posed_miniature
from core_utils.spiking.events.pose import random_pose
from core_utils.spiking.events.readers import EventFolder, event_folder, read_events

__all__ = [
    "EVENT",
    "CachedFrames",
    "EventCamera",
    "EventFolder",
    "cache_frames",
    "cache_key",
    "event_folder",
    "events_to_frames",
    "posed_event_frames",
    "posed_miniature",
    "random_pose",
    "read_events",
    "resize_frames",
    "simulate_events",
    "simulate_frames",
]
