"""How the temperature of a day goes in two cities, month by month: a table and a picture.

    python3 analyse.py INPUT OUTPUT

A plain script: it reads a directory and writes a directory, and knows nothing of who brings the one and keeps the other.
"""

import sys
from pathlib import Path

import matplotlib as mpl
import pandas as pd

mpl.use("Agg")
import matplotlib.pyplot as plt

CITIES = {"Seattle": "seattle-temps.csv", "San Francisco": "sf-temps.csv"}


def read(folder: Path) -> pd.DataFrame:
    """Return one row an hour of 2010: city, time, temperature in degrees Celsius."""
    parts = []
    for city, name in CITIES.items():
        hours = pd.read_csv(folder / name, parse_dates=["date"])
        parts.append(pd.DataFrame({"city": city, "time": hours["date"], "celsius": (hours["temp"] - 32) / 1.8}))
    return pd.concat(parts, ignore_index=True)


def table(hours: pd.DataFrame) -> pd.DataFrame:
    """Return one row a city and month: mean, lowest and highest hour, and how far a day goes up and down on average."""
    hours = hours.assign(month=hours["time"].dt.month, day=hours["time"].dt.date)
    days = hours.groupby(["city", "month", "day"])["celsius"].agg(["min", "max"])
    swing = (days["max"] - days["min"]).groupby(["city", "month"]).mean().rename("daily swing")
    months = hours.groupby(["city", "month"])["celsius"].agg(mean="mean", lowest="min", highest="max")
    return months.join(swing).round(1).reset_index()


def picture(hours: pd.DataFrame, path: Path) -> None:
    """Draw hour of the day against month, a panel a city."""
    hours = hours.assign(month=hours["time"].dt.month, hour=hours["time"].dt.hour)
    figure, panels = plt.subplots(1, len(CITIES), figsize=(10, 4), sharey=True, layout="constrained")
    low, high = hours["celsius"].quantile([0.01, 0.99])
    for panel, city in zip(panels, CITIES, strict=True):
        grid = hours[hours["city"] == city].pivot_table(index="hour", columns="month", values="celsius")
        drawn = panel.pcolormesh(grid.columns, grid.index, grid, cmap="inferno", vmin=low, vmax=high)
        panel.set(title=city, xlabel="month of 2010", xticks=range(1, 13))
    panels[0].set(ylabel="hour of the day", yticks=range(0, 24, 6))
    figure.colorbar(drawn, ax=panels, label="°C")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Read INPUT, write OUTPUT/months.csv and OUTPUT/days.png."""
    source, destination = Path(sys.argv[1]), Path(sys.argv[2])
    hours = read(source)
    months = table(hours)
    months.to_csv(destination / "months.csv", index=False)
    picture(hours, destination / "days.png")
    print(months[months["month"].isin([1, 7])].to_string(index=False))


if __name__ == "__main__":
    main()
