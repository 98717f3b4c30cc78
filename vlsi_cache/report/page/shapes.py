"""Geometry of the plots of a page, in pixels from the left and from the top."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "Bar",
    "Box",
    "Cell",
    "HeatMap",
    "Histogram",
    "Line",
    "LinePlot",
    "Matrix",
    "Plot",
    "Table",
]


@dataclass(frozen=True, slots=True)
class Table:
    """The figures of a plot."""

    headings: tuple[str, ...]
    """Names of the columns."""
    rows: tuple[tuple[str, ...], ...]
    """Values. The first of a row names it."""


@dataclass(frozen=True, slots=True)
class Box:
    """One tap of a plot. All are distances in pixels from the left or from the top."""

    x: float
    """Middle of the tap."""
    half: float
    """Half the width of the box."""
    edges: tuple[float, ...]
    """Heights of the five quantiles, the least first."""
    mean: float
    """Height of the mean."""
    error: float
    """Pixels of two standard errors. 0 if there are none."""
    label: str
    """Name of the tap. Empty where names would overlap."""
    title: str
    """What the box says."""


@dataclass(frozen=True, slots=True)
class Plot:
    """Quantiles of a figure, tap by tap."""

    title: str
    """What is shown, with its unit."""
    note: str
    """Over what the quantiles are taken."""
    ticks: tuple[tuple[float, str], ...]
    """Height and label of each line."""
    boxes: tuple[Box, ...]
    """The taps in order."""
    table: Table
    """The same figures."""

    @property
    def means(self) -> str:
        """Points of the line through the means."""
        return " ".join(f"{box.x:.1f},{box.mean:.1f}" for box in self.boxes)


@dataclass(frozen=True, slots=True)
class Cell:
    """One pair of taps."""

    x: float
    """Left edge."""
    y: float
    """Upper edge."""
    percent: int
    """The pair's share."""
    title: str
    """What the cell says."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A share for each tap with each."""

    title: str
    """What is shown."""
    note: str
    """What it is a share of."""
    side: float
    """Width and height of a cell."""
    cells: tuple[Cell, ...]
    """All pairs."""
    names: tuple[tuple[float, str], ...]
    """Middle and name of each tap that has room for its name."""
    has_values: bool
    """Whether there is room for numbers."""
    table: Table
    """The same figures."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bin of a histogram."""

    x: float
    """Left edge."""
    width: float
    """Width."""
    y: float
    """Upper edge."""
    height: float
    """Height."""
    label: str
    """The bin's range. Empty where names would overlap."""
    title: str
    """What the bar says."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Samples by their length."""

    bars: tuple[Bar, ...]
    """The bins in order."""
    ticks: tuple[tuple[float, str], ...]
    """Height and label of each line."""
    table: Table
    """The same figures."""


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a plot."""

    name: str
    """What it is called."""
    color: str
    """Style of its stroke."""
    is_dashed: bool
    """Whether the stroke is dashed."""
    points: str
    """Points of the means."""
    band: str
    """Points around the least and the greatest values. Empty where they are the means."""
    dots: tuple[tuple[float, float, str], ...]
    """Place and words of each point, if there are few."""
    in_legend: bool
    """Whether the legend has room for it."""


@dataclass(frozen=True, slots=True)
class LinePlot:
    """Series over the steps."""

    title: str
    """What is shown."""
    note: str
    """What its lines are."""
    ticks: tuple[tuple[float, str], ...]
    """Height and label of each line across."""
    steps: tuple[tuple[float, str], ...]
    """Place and label of steps."""
    lines: tuple[Line, ...]
    """The series."""
    table: Table
    """The same figures, at some steps."""


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Shares of the teacher taps over the steps, for one student tap."""

    title: str
    """Whose shares they are."""
    width: float
    """Width of a cell."""
    height: float
    """Height of a cell."""
    cells: tuple[tuple[float, float, int], ...]
    """Left edge, upper edge and percent of each share that is not 0."""
    names: tuple[tuple[float, str], ...]
    """Middle and name of the teacher taps that have room for their names."""
    steps: tuple[tuple[float, str], ...]
    """Place and label of steps."""
    table: Table
    """The likeliest teacher tap of each period."""
