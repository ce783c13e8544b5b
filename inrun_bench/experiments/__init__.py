"""Experiments: which units of work there are, and what one unit measures. One file a question.

An experiment is a module with

``SUMMARY``
    one line for listings;
``EXCLUSIVE``
    whether its units measure time, and so must run alone;
``DEFAULT``
    whether it runs when no experiment is named;
``TASKS``
    where it has its own: the tasks that it runs on when none is named, in place of the profile's, and that are named
    where it has nothing to do on others;
``METHODS``
    where it has its own: the methods that it runs when none is named, in place of the profile's;
``NEEDS``
    where it does not run on every task, or not with every method: what these must have;
``KNOBS``
    where it has any: how much work it does, by profile, each a frozen dataclass `Knobs`;
``units(plan) -> list[Unit]``
    its units of work, by the knobs that ``plan.of_profile(KNOBS)`` chooses;
``measure(unit, needs) -> list[Row]``
    the rows of one unit; `needs` holds the rows of the units that it needs;
``measure_reference(unit, needs) -> list[Row]``
    where there is one: in place of `measure` for units of the reference, which thereby follow from no method's code;
``draw(rows) -> matplotlib.figure.Figure``
    where there is a figure: it, from the experiment's rows alone; without axes where they hold nothing to draw;
``table(rows) -> str``
    where there are tables: them, in Markdown; empty where the rows hold nothing to tell.

Rows are out of date when what `measure` reaches has changed, or `measure_reference` where they are its; how they are
drawn and told is no part of it.
"""

from tasks.lazy_names import lazy_names

__all__ = ["EXPERIMENTS", "Experiment", "units_of"]

# Their types stand in __init__.pyi: what is imported here is part of the code behind every experiment's rows.
__getattr__ = lazy_names(__name__, dict.fromkeys(__all__, "registry"))
