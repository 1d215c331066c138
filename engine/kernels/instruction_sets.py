"""The instruction sets for which the kernels are built, and those that this processor has.

All of them compute the same numbers. Knows nothing about compilers but the options that they share.
"""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

from textmill.core.errors import SettingsError

AUTO = "auto"
_SYSCTL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """A set of instructions that the compiler may use.

    Attributes:
        name: the value of ``TEXTMILL_KERNELS_ISA``.
        machine: the architecture, as ``platform.machine`` names it on Linux; empty for all others.
        features: what a processor must have, in the words of /proc/cpuinfo.
        options: for g++ and clang++.
        zig_cpu: the same for zig, which has its own names.
    """

    name: str
    machine: str
    features: frozenset[str]
    options: tuple[str, ...]
    zig_cpu: str


_V3 = frozenset(("avx2", "fma", "bmi1", "bmi2", "f16c", "abm", "movbe"))
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
# clang prefers registers of 32 bytes for x86-64-v4, and would split each vector of 64 bytes.
_WHOLE = "-mprefer-vector-width=512"
_DOTPROD = frozenset(("asimd", "asimddp"))

# The best one first, for each architecture. The compilers' names x86-64-v3 and -v4 are those of the
# x86-64 psABI, section 3.1.1.
INSTRUCTION_SETS = (
    InstructionSet(
        "avx512vnni",
        "x86_64",
        _V4 | {"avx512_vnni"},
        ("-march=x86-64-v4", "-mavx512vnni", _WHOLE),
        "x86_64_v4+avx512vnni",
    ),
    InstructionSet("avx512", "x86_64", _V4, ("-march=x86-64-v4", _WHOLE), "x86_64_v4"),
    InstructionSet(
        "avxvnni",
        "x86_64",
        _V3 | {"avx_vnni"},
        ("-march=x86-64-v3", "-mavxvnni"),
        "x86_64_v3+avxvnni",
    ),
    InstructionSet("avx2", "x86_64", _V3, ("-march=x86-64-v3",), "x86_64_v3"),
    InstructionSet("generic", "x86_64", frozenset(), ("-march=x86-64",), "x86_64"),
    InstructionSet(
        "i8mm",
        "aarch64",
        _DOTPROD | {"i8mm"},
        ("-march=armv8.2-a+dotprod+i8mm",),
        "generic+v8_2a+dotprod+i8mm",
    ),
    InstructionSet(
        "dotprod", "aarch64", _DOTPROD, ("-march=armv8.2-a+dotprod",), "generic+v8_2a+dotprod"
    ),
    InstructionSet("neon", "aarch64", frozenset(), ("-march=armv8-a",), "generic"),
    InstructionSet("generic", "", frozenset(), (), "baseline"),
)


def choose(name: str) -> InstructionSet:
    """The set of that name, or for ``auto`` the best one that the processor has.

    Raises:
        SettingsError: the processor does not have it.
    """
    found = available_sets()
    if name == AUTO:
        return found[0]
    for instruction_set in found:
        if instruction_set.name == name:
            return instruction_set
    names = ", ".join(item.name for item in found)
    raise SettingsError(
        f"TEXTMILL_KERNELS_ISA is {name!r}, which this processor does not have; it has {names}."
        " Set it to one of these, or to auto."
    )


def available_sets() -> tuple[InstructionSet, ...]:
    """The sets that this processor can execute, the best one first; at least one."""
    machine, features = machine_name(), processor_features()
    known = {item.machine for item in INSTRUCTION_SETS}
    wanted = machine if machine in known else ""
    return tuple(
        item for item in INSTRUCTION_SETS if item.machine == wanted and item.features <= features
    )


def machine_name() -> str:
    """The architecture, as Linux names it."""
    machine = platform.machine()
    return {"AMD64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def processor_features() -> frozenset[str]:
    """The features that all cores have, in the words of Linux's /proc/cpuinfo.

    Linux leaves out what it, or the machine that it is a guest of, does not let programs use. In a
    container the file is the host's. Where it cannot be read, nothing is assumed.
    """
    if platform.system() == "Darwin":
        return _features_of_macos()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    fields = (line.partition(":") for line in lines)
    # "flags" on x86-64, "Features" on ARM; one line for each core, and cores may differ.
    cores = [set(text.split()) for key, _, text in fields if key.strip() in ("flags", "Features")]
    return frozenset(set.intersection(*cores)) if cores else frozenset()


# The names that macOS has for the features above, in the output of sysctl.
_MACOS = {
    "hw.optional.AdvSIMD": {"asimd"},
    "hw.optional.arm.FEAT_DotProd": {"asimddp"},
    "hw.optional.arm.FEAT_I8MM": {"i8mm"},
    "hw.optional.avx2_0": {"avx2", "f16c", "abm", "movbe"},  # Haswell and later
    "hw.optional.fma": {"fma"},
    "hw.optional.bmi1": {"bmi1"},
    "hw.optional.bmi2": {"bmi2"},
    "hw.optional.avx512f": {"avx512f"},
    "hw.optional.avx512bw": {"avx512bw"},
    "hw.optional.avx512cd": {"avx512cd"},
    "hw.optional.avx512dq": {"avx512dq"},
    "hw.optional.avx512vl": {"avx512vl"},
    "hw.optional.avx512vnni": {"avx512_vnni"},
}


def _features_of_macos() -> frozenset[str]:
    try:
        output = subprocess.run(
            ["/usr/sbin/sysctl", "hw.optional"],
            capture_output=True,
            text=True,
            check=True,
            timeout=_SYSCTL_SECONDS,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return frozenset()
    present = {
        key for key, _, value in (x.partition(": ") for x in output.splitlines()) if value == "1"
    }
    return frozenset().union(*(_MACOS[key] for key in present & _MACOS.keys()))
