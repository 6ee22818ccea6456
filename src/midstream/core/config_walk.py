"""From cattrs' nested exception groups to a flat list of misfits with their paths.

Pure, and the only module that knows how cattrs reports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError

from midstream.core.config_mistakes import Misfit, Misfits


def problems_of(
    error: Exception,
    names: Mapping[str, str],
    expectations: Mapping[str, str],
    unknown: Callable[[str], str],
) -> Iterator[Misfit]:
    """All that went wrong in structuring one table.

    names: field -> key. expectations: key -> what it takes, for keys that are missing. unknown: key -> the message
    for a key that the table has not. An exception that is none of ours is raised again: it is a bug, not a mistake.
    """
    if not isinstance(error, ClassValidationError):
        raise error
    noted, others = error.group_exceptions()
    for problem, note in noted:
        yield from _at(names[note.name], problem, expectations)
    for other in others:
        if not isinstance(other, ForbiddenExtraKeysError):
            raise other
        for key in sorted(other.extra_fields):
            yield Misfit(unknown(key), (key,))


def _at(key: str, problem: Exception, expectations: Mapping[str, str]) -> Iterator[Misfit]:
    if isinstance(problem, Misfits):
        for one in problem.problems:
            yield one.below((key,))
    elif isinstance(problem, Misfit):
        yield problem.below((key,))
    elif isinstance(problem, KeyError) and problem.args == (key,):
        yield Misfit(f"missing; expected {expectations[key]}", (key,), missing=True)
    else:
        raise problem
