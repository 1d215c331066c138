"""The set of a processor, from what systems report about it."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest

from textmill.core.errors import SettingsError
from textmill.core.settings import Settings
from textmill.engine.kernels.instruction_sets import (
    AUTO,
    INSTRUCTION_SETS,
    available_sets,
    choose,
    processor_features,
)

SSE = "fpu sse sse2 ssse3 sse4_1 sse4_2 avx"
V3 = f"{SSE} abm avx2 bmi1 bmi2 f16c fma movbe"
V4 = f"{V3} avx512f avx512dq avx512cd avx512bw avx512vl"
ARM = "fp asimd evtstrm aes crc32 atomics fphp asimdhp"
PROCESSORS = {
    "Zen 4": ("x86_64", f"{V4} avx512_vnni avx512_bf16", "avx512vnni"),
    "Skylake-X": ("x86_64", V4, "avx512"),
    "Knights Landing": ("x86_64", f"{V3} avx512f avx512pf avx512er avx512cd", "avx2"),
    "Alder Lake": ("x86_64", f"{V3} avx_vnni", "avxvnni"),
    "Sapphire Rapids": ("x86_64", f"{V4} avx512_vnni avx_vnni amx_int8", "avx512vnni"),
    "Zen 2": ("x86_64", V3, "avx2"),
    "Haswell without FMA, as a guest": ("x86_64", V3.replace(" fma", ""), "generic"),
    "Nehalem": ("x86_64", SSE, "generic"),
    "Graviton 3": ("aarch64", f"{ARM} asimddp i8mm bf16 sve", "i8mm"),
    "Graviton 2": ("aarch64", f"{ARM} asimddp", "dotprod"),
    "Raspberry Pi 4": ("aarch64", "fp asimd evtstrm crc32", "neon"),
    "a RISC-V": ("riscv64", "", "generic"),
}


def cpuinfo(machine: str, *cores: str) -> str:
    key = "Features\t" if machine == "aarch64" else "flags\t\t"
    return "".join(
        f"processor\t: {number}\nmodel name\t: avx2 avx512f\n{key}: {features}\n"
        f"vmx flags\t: avx512_vnni\nbugs\t\t: i8mm\n\n"
        for number, features in enumerate(cores)
    )


def pretend(
    monkeypatch: pytest.MonkeyPatch, machine: str, text: str, system: str = "Linux"
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_best_set_that_a_processor_has_is_chosen(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, features, chosen = PROCESSORS[name]
    pretend(monkeypatch, machine, cpuinfo(machine, features, features))
    assert choose(AUTO).name == chosen
    for lower in available_sets():
        assert choose(lower.name) is lower


def test_cores_that_differ_have_what_all_of_them_have(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "aarch64", cpuinfo("aarch64", f"{ARM} asimddp i8mm", f"{ARM} asimddp"))
    assert choose(AUTO).name == "dotprod"


def test_a_forced_set_must_be_one_that_the_processor_has(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "x86_64", cpuinfo("x86_64", V3))
    with pytest.raises(SettingsError) as caught:
        choose("avx512")
    assert str(caught.value) == (
        "TEXTMILL_KERNELS_ISA is 'avx512', which this processor does not have; it has avx2,"
        " generic. Set it to one of these, or to auto."
    )
    with pytest.raises(SettingsError, match="it has avx2, generic"):
        choose("neon")  # of another architecture


def test_nothing_is_assumed_of_a_processor_that_is_not_described(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: Any, **__: Any) -> str:
        raise PermissionError

    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(Path, "read_text", refused)
    assert choose(AUTO).name == "generic"


def test_an_emulated_program_does_not_believe_the_description_of_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Emulators of other processors pass the host's /proc/cpuinfo on."""
    pretend(monkeypatch, "x86_64", cpuinfo("aarch64", f"{ARM} asimddp i8mm"))
    assert choose(AUTO).name == "generic"
    pretend(monkeypatch, "aarch64", cpuinfo("x86_64", V4))
    assert choose(AUTO).name == "neon"


@pytest.mark.parametrize(
    ("machine", "output", "chosen"),
    [
        (
            "arm64",
            "hw.optional.AdvSIMD: 1\nhw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_I8MM: 0",
            "dotprod",
        ),
        (
            "arm64",
            "hw.optional.AdvSIMD: 1\nhw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_I8MM: 1",
            "i8mm",
        ),
        (
            "x86_64",
            "hw.optional.avx2_0: 1\nhw.optional.fma: 1\nhw.optional.bmi1: 1\nhw.optional.bmi2: 1\n"
            "hw.optional.avx512f: 0",
            "avx2",
        ),
        ("x86_64", "", "generic"),
    ],
    ids=["M1", "M2", "Haswell", "unknown"],
)
def test_macos_describes_its_processor_by_sysctl(
    machine: str, output: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, machine, "", "Darwin")
    done = subprocess.CompletedProcess([], 0, output)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert choose(AUTO).name == chosen


def test_this_processor_has_features() -> None:
    assert processor_features()
    assert available_sets()


def test_the_setting_accepts_the_names_of_all_sets() -> None:
    names = set(get_args(Settings.model_fields["kernels_isa"].annotation))
    assert names == {AUTO, *(item.name for item in INSTRUCTION_SETS)}
    described = Settings.model_fields["kernels_isa"].description or ""
    for name in names:
        assert name in described
