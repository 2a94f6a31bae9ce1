"""Segments -> text, SubRip, WebVTT or a table: the formats in which transcripts are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from zoo.models.transcript import Segment

Cue = tuple[float, float, str]


def plain(segments: Iterable[Segment]) -> str:
    """One segment a line."""
    return "".join(f"{_line(segment.text)}\n" for segment in segments if segment.text.strip())


def srt(segments: Iterable[Segment]) -> str:
    """SubRip: numbered cues, times as 00:00:01,250."""
    return "".join(
        f"{number}\n{clock(start_s, ',')} --> {clock(end_s, ',')}\n{_line(text).replace('-->', '->')}\n\n"
        for number, (start_s, end_s, text) in enumerate(_cues(segments), 1)
    )


def vtt(segments: Iterable[Segment]) -> str:
    """WebVTT (https://www.w3.org/TR/webvtt1/): times as 00:00:01.250; what would be a tag is escaped."""
    cues = [
        f"{clock(start_s, '.')} --> {clock(end_s, '.')}\n{_escaped(_line(text))}\n\n"
        for start_s, end_s, text in _cues(segments)
    ]
    return "WEBVTT\n\n" + "".join(cues)


def tsv(segments: Iterable[Segment]) -> str:
    """Start and end in milliseconds and the text, between tabs, under a heading."""
    rows = [f"{round(1000 * start_s)}\t{round(1000 * end_s)}\t{_line(text)}\n" for start_s, end_s, text in _cues(segments)]
    return "start\tend\ttext\n" + "".join(rows)


FORMATS: dict[str, Callable[[Sequence[Segment]], str]] = {"txt": plain, "srt": srt, "vtt": vtt, "tsv": tsv}


def clock(time_s: float, point: str = ".") -> str:
    """3723.25 -> `01:02:03.250`."""
    milliseconds = max(0, round(1000 * time_s))
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


def _cues(segments: Iterable[Segment]) -> list[Cue]:
    return [(segment.start_s, segment.end_s, segment.text) for segment in segments if segment.text.strip()]


def _line(text: str) -> str:
    """On one line: an empty one would end a cue."""
    return " ".join(text.split())


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
