"""Environment variables that hold serialized dictionaries, as sections.

`dm_<battery>_opts` is of the pod, `dm_<battery>_<thing>_<name>` of the bundle or database called name. A variable that is empty
is as one that is not set. Other variables that begin with `dm_<battery>_` are faults: a misspelt one would silently do nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from sidecar.errors import Fault, ParametersError
from sidecar.parameters.dictionary import decode
from sidecar.parameters.settings import Field, Layer, Section, Setting, check_name, unknown


def read_dictionary(text: str, variable: str, fields: Sequence[Field], faults: list[Fault]) -> Section:
    """Return the section that a variable's serialized dictionary is."""
    section = Section(variable, "code")
    codes = {each.code: each for each in fields if each.code}
    try:
        options = decode(text, variable) if text else {}
    except ParametersError as error:
        faults.extend(error.faults)
        section.torn = True
        return section
    for code, value in options.items():
        if code not in codes:
            faults.append(Fault(variable, code, _unknown_code(code, fields)))
        elif value is True and not codes[code].switch:
            faults.append(Fault(variable, code, "expected a value behind the key-value separator"))
        else:
            section.put(Setting(codes[code].key, "true" if value is True else value, variable, code), faults)
    return section


def read_environment(
    environment: Mapping[str, str],
    prefix: str,
    thing: str,
    pod: Sequence[Field],
    named: Sequence[Field],
    others: Collection[str],
    faults: list[Fault],
) -> Layer:
    """Return what the variables that begin with `prefix` say, the named ones being `prefix` + `thing` + name.

    Variables among `others` are read elsewhere.
    """
    layer = Layer(Section(f"{prefix}opts", "code"))
    for variable, text in sorted(environment.items()):
        if not variable.startswith(prefix) or variable in others or not text:
            continue
        name = variable.removeprefix(prefix + thing)
        if variable == f"{prefix}opts":
            layer.pod = read_dictionary(text, variable, pod, faults)
        elif name != variable:
            layer.named[name] = read_dictionary(text, variable, named, faults)
            check_name(name, variable, faults)
        else:
            problem = unknown("variable", variable, [f"{prefix}opts", *others, f"{prefix}{thing}<name>"])
            faults.append(Fault(variable, "", problem))
    return layer


def _unknown_code(code: str, fields: Sequence[Field]) -> str:
    for each in fields:
        if each.code and code.lower() in (each.key.lower(), each.flag.strip("-").lower() or None):
            return f"unknown option; here it is written {each.code!r}"
    return unknown("option", code, [each.code for each in fields if each.code])
